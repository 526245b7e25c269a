"""Servers for tests, on loopback: one that fails on purpose and counts what it is paid, and `transformers serve`."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PICTURE_TOKENS = 100


Reply = dict[str, Any]  # a completion as the fault server would send it


def concepts(question: str) -> str:
    """The fault server's usual answer: the schema's JSON, different for each question."""
    return json.dumps({"concepts": [f"thing {question[:6]}"], "evidence": "seen", "confidence": 0.5, "none": False})


class FaultServer:
    """An OpenAI-compatible server that goes through a list of faults for every new question before it answers.

    A question is the pictures and the text of a request. faults(n) lists what the n-th new question meets first: a
    status ("429", "500", "401", ...), "half" (of a JSON), "nothing", "late" (sleeps `late` seconds, then hangs up),
    "cut" (hangs up within the answer), "hang" (never answers while the server lives), "drip" and "drip head" (a byte of
    the body or of the headers every 20 ms, forever), "flood" (a body without an end). `paid` counts whole answers per
    question, `asked` requests per question, without the probe for sight (a text without pictures). reshape: makes
    another shape of the completion with pictures that it would send. headers: sent along with every answer.
    """

    def __init__(
        self,
        faults: Callable[[int], Sequence[str]] = lambda n: (),
        answer: Callable[[str], str] = concepts,
        refuse: Callable[[dict], str | None] = lambda body: None,
        key: str | None = None,
        late: float = 1.5,
        sees: bool = True,
        usage: bool = True,
        reshape: Callable[[Reply], Reply | bytes] = lambda reply: reply,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.reshape, self.headers = reshape, headers or {}
        self.faults, self.answer, self.refuse, self.key = faults, answer, refuse, key
        self.late, self.sees, self.usage = late, sees, usage
        self.asked: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.probes, self.refusal_status = 0, 400
        self.left: defaultdict[str, list[str]] = defaultdict(list)
        self.under_way: set[BaseHTTPRequestHandler] = set()
        self.most_at_once = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                    server.refuse_key(self)
                else:
                    server.send(self, 200, {"object": "list", "data": [{"id": "toy", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.handle(self, body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self) -> "FaultServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def handle(self, handler: BaseHTTPRequestHandler, body: dict) -> None:
        parts = body["messages"][0]["content"]
        pictures = sum(part["type"] == "image_url" for part in parts)
        question = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        with self.lock:
            self.bodies.append(body)
            self.under_way.add(handler)
            self.most_at_once = max(self.most_at_once, len(self.under_way))
            if pictures and question not in self.asked:
                self.left[question] = list(self.faults(len(self.asked)))
            if pictures:
                self.asked[question] += 1
            else:
                self.probes += 1
            fault = self.left[question].pop(0) if self.left[question] else "ok"
        try:
            self.respond(handler, body, question, pictures, fault)
        finally:
            self.under_way.discard(handler)

    def respond(self, handler: BaseHTTPRequestHandler, body: dict, question: str, pictures: int, fault: str) -> None:
        if self.key and handler.headers["Authorization"] != f"Bearer {self.key}":
            return self.refuse_key(handler)
        if words := self.refuse(body):
            error = {"error": {"message": words, "type": "BadRequestError", "code": self.refusal_status}}
            return self.send(handler, self.refusal_status, error)
        if fault.isdigit():
            headers = {"Retry-After": "0"} if fault == "429" and "Retry-After" not in self.headers else {}
            return self.send(handler, int(fault), {"error": {"message": f"fault {fault}"}}, headers)
        if fault in ("late", "hang"):
            self.closing.wait(self.late if fault == "late" else None)
            handler.close_connection = True
            return None
        if fault in ("drip", "drip head", "flood"):
            return self.send_forever(handler, fault)
        usage = {"prompt_tokens": 20 + PICTURE_TOKENS * pictures * self.sees, "completion_tokens": 7}
        reply = {
            "id": "x",
            "object": "chat.completion",
            "model": "toy-1",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": self.answer(question)},
                }
            ],
            **({"usage": usage | {"total_tokens": sum(usage.values())}} if self.usage else {}),
        }
        shaped = self.reshape(reply) if pictures else reply
        text = shaped if isinstance(shaped, bytes) else json.dumps(shaped).encode()
        if fault == "half":
            return self.send(handler, 200, text[: len(text) // 2])
        if fault == "nothing":
            return self.send(handler, 200, b"")
        if fault == "cut":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(text)))
            handler.end_headers()
            handler.wfile.write(text[:30])
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return None
        if pictures:
            with self.lock:
                self.paid[question] += 1
        return self.send(handler, 200, text)

    def send_forever(self, handler: BaseHTTPRequestHandler, fault: str) -> None:
        """A byte after the other, or many at once, for as long as somebody listens."""
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"X-Slow: " if fault == "drip head" else b"\r\n"))
        with contextlib.suppress(OSError):
            while not self.closing.wait(0 if fault == "flood" else 0.02):
                handler.wfile.write(b" " * (1 << 16 if fault == "flood" else 1))

    def refuse_key(self, handler: BaseHTTPRequestHandler) -> None:
        """As hosted servers do: the refused key stands in the message."""
        sent = handler.headers["Authorization"].removeprefix("Bearer ")
        self.send(handler, 401, {"error": {"message": f"Incorrect API key provided: {sent}."}})

    def send(
        self, handler: BaseHTTPRequestHandler, status: int, body: dict | bytes, headers: dict[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.under_way.discard(handler)  # before the client can read the answer and ask the next
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", **self.headers, **(headers or {})}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)


class FileServer:
    """Files of a folder over HTTP, whole or in parts (Range), as a bucket serves them.

    `parts` lists (name, first byte, bytes) of every part that was sent. `faults` are statuses that the next requests
    meet first. ranges=False: always sends the whole file.
    """

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.parts: list[tuple[str, int, int]] = []
        self.faults: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                file = folder / self.path.lstrip("/")
                if server.faults or not file.is_file():
                    return self.send_error(server.faults.pop(0) if server.faults else 404)
                total = file.stat().st_size
                first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
                start, stop = (int(first), min(int(last or total - 1) + 1, total)) if ranges else (0, total)
                server.parts.append((file.name, start, stop - start))
                self.send_response(206 if ranges else 200)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
                self.send_header("Content-Length", str(stop - start))
                self.end_headers()
                with file.open("rb") as opened, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    opened.seek(start)
                    self.wfile.write(opened.read(stop - start))
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self) -> "FileServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


@contextlib.contextmanager
def transformers_serve(model: Path, log: Path, seconds: float = 300) -> Iterator[str]:
    """`transformers serve` with `model` on the CPU; yields its address and stops it afterwards."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    command += ["--device", "cpu", "--port", str(port), "--host", "127.0.0.1"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env) as process:
        try:
            deadline = time.monotonic() + seconds
            while not _answers(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"transformers serve did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.3)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """A port of loopback that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False
