"""The official client's connections with an end: a server that sends forever, or a byte a minute, is cut off."""

import contextlib
import socket
import threading
from typing import Any

LARGEST = 16 << 20  # bytes of an answer, unpacked; a completion of 100,000 tokens has less than one million


class CutOff(Exception):
    """An answer that took too long or grew too large; its text says which."""


class Line:
    """The connection of one request, which another thread can cut.

    A time-out of the client's begins anew with every byte. This one is for the whole request: looking the server up,
    sending, waiting, and reading headers and body.
    """

    def __init__(self) -> None:
        self.is_cut = False
        self._socket: Any = None
        self._lock = threading.Lock()

    def follow(self, event: str, info: dict[str, Any]) -> None:
        """Note the socket when it is opened, and again when it is encrypted (httpcore's `trace` extension)."""
        opened = info.get("return_value")
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")) and opened is not None:
            with self._lock:
                self._socket = opened.get_extra_info("socket")
                if self.is_cut:
                    self._shut()

    def cut(self) -> None:
        """End the request: whoever reads from the socket or writes to it fails at once."""
        with self._lock:
            self.is_cut = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)


def bounded_client(http_client: Any, timeout: float) -> Any:
    """An `http_client` (the official client's class) whose every request ends, with an answer or a `CutOff`.

    timeout: seconds for a request as a whole, unless the request names its own. An answer may have `LARGEST` bytes.
    Redirects are not followed, and each request has a connection of its own.
    """

    class Bounded(http_client):
        def send(self, request: Any, **options: Any) -> Any:
            seconds, line = request.extensions["timeout"]["read"], Line()
            request.extensions = {**request.extensions, "trace": line.follow}
            request.headers["Connection"] = "close"  # so that its opening is seen
            watch = threading.Timer(seconds, line.cut)
            watch.daemon = True
            watch.start()
            response = None
            try:
                response = super().send(request, **{**options, "stream": True})
                response.iter_bytes = _limit(response.iter_bytes)
                response.read()
            except Exception as error:
                if response is not None:
                    response.close()
                if not line.is_cut:
                    raise
                raise CutOff(f"no answer within {seconds:g} s") from error
            finally:
                watch.cancel()
            if line.is_cut:  # to a reader without Content-Length, a cut is the end of the answer
                raise CutOff(f"no answer within {seconds:g} s")
            return response

    return Bounded(follow_redirects=False, timeout=timeout)


def _limit(pieces: Any) -> Any:
    """`iter_bytes` that raises CutOff after `LARGEST` bytes."""

    def limited(chunk_size: int | None = None) -> Any:
        size = 0
        for piece in pieces(chunk_size):
            size += len(piece)
            if size > LARGEST:
                raise CutOff(f"an answer of more than {LARGEST >> 20} MB")
            yield piece

    return limited
