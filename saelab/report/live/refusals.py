"""Whatever goes wrong is answered in one line of JSON: `{"error": text}`."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from saelab.errors import UserError
from saelab.images.decode import Unreadable


async def _mistake(request: Request, error: UserError) -> Response:
    return _line(str(error), 400)


async def _no_picture(request: Request, error: Unreadable) -> Response:
    return _line(f"not a readable picture: {error}", 415)


async def _refusal(request: Request, error: HTTPException) -> Response:
    return _line(error.detail, error.status_code)


async def _fault(request: Request, error: Exception) -> Response:
    """Whatever else is raised: a line for the reader, the traceback for the terminal."""
    return _line(f"this could not be answered ({type(error).__name__}); the terminal says more", 500)


def _line(text: str, status: int) -> Response:
    return JSONResponse({"error": text.encode("utf-8", "replace").decode()}, status)


HANDLERS: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
    UserError: _mistake,
    HTTPException: _refusal,
    Unreadable: _no_picture,
    Exception: _fault,
}
