"""Who may use the live viewer, and for what: this machine's own pages, in bounded amounts.

Any web page that is open in a browser can send requests to loopback, and a name that an attacker owns can be made to
point there (DNS rebinding). So only requests that name this machine are answered, changes only from our own pages.
"""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
DRAINED = 64 * 2**20  # bytes of a body too large that are read and dropped, so that its sender gets to read why
KEPT = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class Guard:
    """Refuses other hosts' names and other sites' requests; adds the headers that keep pages to themselves.

    `programs`: whether changes are also taken from what sends no Origin, which browsers never leave out of a POST.
    """

    def __init__(self, app: ASGIApp, programs: bool = False) -> None:
        self.app, self.programs = app, programs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":  # lifespan; there are no web sockets here
            await self.app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(KEPT)
            await send(message)

        refusal = refused(scope["method"], Headers(scope=scope), self.programs)
        answer = PlainTextResponse(refusal[1], refusal[0]) if refusal else self.app
        await answer(scope, receive, sent)


def refused(method: str, headers: Headers, programs: bool = False) -> tuple[int, str] | None:
    """The status and the reason with which a request is refused; None for one of our own pages (or `programs`)."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:  # a bracket that is never closed
        return 400, "the Host header is not a host\n"
    if name not in HOSTS or len(headers.getlist("host")) != 1:
        return 403, "only this machine is served, by the address 127.0.0.1 or localhost\n"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        return 403, "another site's page may not ask\n"
    own = (f"http://{host}", None) if programs else (f"http://{host}",)
    if method not in ("GET", "HEAD") and headers.get("origin") not in own:
        return 403, "changes are taken from this viewer's own pages only\n"
    return None


async def body(request: Request, limit: int) -> bytes:
    """The request's body, of `limit` bytes at most. Raises HTTPException 413."""
    held, seen = bytearray(), 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen <= limit:
            held += chunk
        elif seen > DRAINED:
            break
    if seen > limit:
        raise HTTPException(413, f"at most {limit / 2**20:g} MB")
    return bytes(held)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises HTTPException 400 for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # not JSON, or nested without end
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "a JSON object was expected")
    return found


def policy(page: str) -> str:
    """The Content-Security-Policy of a page: its own files and the scripts written in it, nothing from elsewhere."""
    inline = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline]
    scripts = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in hashes)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
