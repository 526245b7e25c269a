"""The calls as tools of the Model Context Protocol: JSON-RPC 2.0, a message a line, on standard input and output.

Written from the protocol's specification (revision 2025-06-18, section "tools"); older revisions ask the same.
"""

import base64
import json
import logging
from typing import Any, BinaryIO

from saelab import __version__
from saelab.errors import UserError
from saelab.label.tools import Answer, Toolbox
from saelab.serve.web import BODY, describe_tools

VERSIONS = ("2025-06-18", "2024-11-05")  # revisions that are spoken, newest first
PARSE, INVALID, METHOD, PARAMS, FAULT = -32700, -32600, -32601, -32602, -32603  # JSON-RPC's error codes
log = logging.getLogger("saelab")


class Refused(Exception):
    """A message that gets an error instead of a result."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Server:
    """Answers messages; what a message asks for is one of its tools, or nothing at all."""

    def __init__(self, box: Toolbox, about: str) -> None:
        self.box, self.about = box, about

    def run(self, source: BinaryIO, sink: BinaryIO) -> None:
        """Answer lines until the source ends. A line above BODY bytes is read to its end and refused."""
        while line := source.readline(BODY + 1):
            if len(line) > BODY:
                while line and not line.endswith(b"\n"):
                    line = source.readline(BODY)
                answer: dict[str, Any] | None = _error(None, Refused(INVALID, f"a message has at most {BODY >> 20} MB"))
            else:
                answer = self.answer(line)
            if answer is not None:
                sink.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
                sink.flush()

    def answer(self, line: bytes) -> dict[str, Any] | None:
        """The answer to one message; None to notifications and empty lines."""
        if not line.strip():
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return _error(None, Refused(PARSE, "a message is one line of JSON"))
        if (
            not isinstance(message, dict)
            or message.get("jsonrpc") != "2.0"
            or not isinstance(message.get("method"), str)
        ):
            own = message.get("id") if isinstance(message, dict) else None
            return _error(own, Refused(INVALID, "a message is a JSON-RPC 2.0 object with a method"))
        if "id" not in message:
            return None  # a notification
        try:
            return {"jsonrpc": "2.0", "id": _id(message), "result": self._result(message)}
        except Refused as refused:
            return _error(message["id"], refused)
        except Exception as error:
            log.exception("%s could not be answered", message["method"])
            return _error(message["id"], Refused(FAULT, f"this could not be answered ({type(error).__name__})"))

    def _result(self, message: dict[str, Any]) -> dict[str, Any]:
        method, params = message["method"], message.get("params", {})
        if not isinstance(params, dict):
            raise Refused(PARAMS, "params is an object")
        if method == "initialize":
            return self._introduce(params)
        if method == "ping":
            return {}
        if method == "tools/list":
            return {"tools": describe_tools(self.box)}
        if method == "tools/call":
            return self._call(params)
        raise Refused(METHOD, "known methods: initialize, ping, tools/list, tools/call")

    def _introduce(self, params: dict[str, Any]) -> dict[str, Any]:
        asked = params.get("protocolVersion")
        return {
            "protocolVersion": asked if asked in VERSIONS else VERSIONS[0],
            "capabilities": {"tools": {"listChanged": False}},
            "serverInfo": {"name": "saelab", "version": __version__},
            "instructions": self.about,
        }

    def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        """A mistake in a call is its answer (`isError`), for the model to read; only an unknown tool is an error."""
        name, given = params.get("name"), params.get("arguments")
        if not isinstance(name, str) or name not in self.box.tools:
            raise Refused(PARAMS, f"there is no such tool; known: {', '.join(self.box.tools)}")
        try:
            answer = self.box.call(name, {} if given is None else given)
        except UserError as error:
            return {"content": [{"type": "text", "text": str(error)}], "isError": True}
        return {"content": _content(answer), "structuredContent": answer.facts, "isError": False}


def _content(answer: Answer) -> list[dict[str, Any]]:
    """The facts as JSON text, then each picture after a line with its name."""
    found: list[dict[str, Any]] = [{"type": "text", "text": json.dumps(answer.facts, allow_nan=False)}]
    for picture in answer.pictures:
        found.append({"type": "text", "text": picture.name})
        found.append({"type": "image", "data": base64.b64encode(picture.jpeg).decode(), "mimeType": "image/jpeg"})
    return found


def _id(message: dict[str, Any]) -> str | int:
    own = message["id"]
    if not isinstance(own, str | int) or isinstance(own, bool):
        raise Refused(INVALID, "an id is a text or a whole number")
    return own


def _error(own: Any, refused: Refused) -> dict[str, Any]:
    own = own if isinstance(own, str | int) and not isinstance(own, bool) else None
    return {"jsonrpc": "2.0", "id": own, "error": {"code": refused.code, "message": str(refused)}}
