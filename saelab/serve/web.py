"""The calls over HTTP, on loopback: `GET /tools` lists them, `POST /tools/NAME` asks one with a JSON object."""

import base64
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from saelab.label.tools import Answer, Toolbox
from saelab.report.live import guard, refusals

BODY = 64 * 2**20  # bytes of a question at most, pictures included


def application(box: Toolbox) -> Starlette:
    """Answers programs of this machine. What is wrong with a question is one line under `error`, never a raw 500."""

    async def describe(request: Request) -> Response:
        return JSONResponse({"tools": describe_tools(box)})

    async def call(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in box.tools:
            raise HTTPException(404, f"there is no such call; known: {', '.join(box.tools)}")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "expected content-type application/json")
        given = guard.json_object(await guard.body(request, BODY))
        answer = await run_in_threadpool(box.call, name, given)
        return JSONResponse(answer.facts | ({"pictures": pictures_of(answer)} if answer.pictures else {}))

    routes = [Route("/tools", describe), Route("/tools/{name}", call, methods=["POST"])]
    only_programs = Middleware(guard.Guard, programs=True)
    return Starlette(routes=routes, middleware=[only_programs], exception_handlers=refusals.HANDLERS)


def describe_tools(box: Toolbox) -> list[dict[str, Any]]:
    """`{"name", "description", "inputSchema"}` of every tool, as MCP lists them."""
    return [{"name": t.name, "description": t.about, "inputSchema": t.schema} for t in box.tools.values()]


def pictures_of(answer: Answer) -> list[dict[str, Any]]:
    """`{"name", "width", "height", "jpeg"}` of every picture, `jpeg` in base64."""
    return [
        {"name": p.name, "width": p.size[0], "height": p.size[1], "jpeg": base64.b64encode(p.jpeg).decode()}
        for p in answer.pictures
    ]
