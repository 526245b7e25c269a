"""Pictures of labels from a server with an images API, seeds, batches and black pictures."""

import base64
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saelab import images
from saelab.errors import UserError
from saelab.evaluate import cosy, generation, images_api
from saelab.evaluate.generation import count_missing, generate
from saelab.evaluate.painters import Generation
from saelab.run.presets import preset
from saelab.run.stages.cosy import leave_out_black
from saelab.settings import make

Answer = Callable[[dict, int], tuple[int, bytes]]  # body of a request, how many came before -> status, body


def png(colour: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (colour % 256, 9, 200)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def paint(body: dict, before: int) -> tuple[int, bytes]:
    """As many pictures as were asked for, each in a colour of its own."""
    return 200, json.dumps({"data": [{"b64_json": png(10 * before + i)} for i in range(body["n"])]}).encode()


class ImagesServer:
    """A server of /v1/images/generations on loopback; `asked` holds the bodies of all requests."""

    def __init__(self, answer: Answer = paint) -> None:
        self.asked: list[dict] = []
        self.keys: set[str] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/images/generations"
                server.keys.add(self.headers["Authorization"])
                status, content = answer(body, len(server.asked))
                server.asked.append(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "ImagesServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(images_api, "BACKOFF", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")


def own(server: ImagesServer, **more) -> Generation:
    return Generation(**{"model": "toy", "base_url": server.url, "count": 3, "retries": 2, "timeout": 5.0} | more)


def names(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in root.rglob("*.png"))


def test_a_server_paints_each_picture_once_and_more_are_only_added(tmp_path):
    with ImagesServer() as server:
        root = generate(["dog", "red cup"], tmp_path, own(server, size=64), "openai")
        assert names(root) == [f"{label}/00{i}.png" for label in ("dog", "red cup") for i in range(3)]
        body = {"model": "toy", "response_format": "b64_json", "n": 1, "size": "64x64"}
        assert server.asked[0] == body | {"prompt": "realistic photo of a close up of dog"}
        assert server.keys == {"Bearer sk-secret-0123456789"}
        there = own(server, size=64, count=5)
        assert count_missing(["dog", "red cup", "fish", "fish"], tmp_path, there, "openai") == 2 + 2 + 5
        assert generate(["dog", "red cup"], tmp_path, own(server, size=64), "openai") == root
        assert len(server.asked) == 6
        assert generate(["dog"], tmp_path, own(server, size=64, count=8, batch=4), "openai") == root
        assert [body["n"] for body in server.asked[6:]] == [4, 1] and len(names(root)) == 11
        assert Image.open(root / "dog/002.png").getpixel((0, 0)) == (20, 9, 200)  # the first run's
        assert generate(["dog"], tmp_path, own(server, prompt="{}"), "openai") != root  # another recipe


def test_killed_after_the_third_picture_only_the_missing_are_asked_for(tmp_path):
    go_on = threading.Event()

    def answer(body: dict, before: int) -> tuple[int, bytes]:
        if before >= 3:
            go_on.wait(30)
        return paint(body, before)

    with ImagesServer(answer) as server:
        child = os.fork()
        if child == 0:
            generate(["dog"], tmp_path, own(server, count=6), "openai")
            os._exit(0)
        deadline = time.monotonic() + 30
        while len(list(tmp_path.rglob("*.png"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        go_on.set()
        time.sleep(0.1)
        before = len(server.asked)
        root = generate(["dog"], tmp_path, own(server, count=6), "openai")
        assert len(server.asked) - before == 3 and len(names(root)) == 6


FAULTS: dict[str, tuple[int, bytes]] = {
    "busy": (429, b"{}"),
    "down": (503, b"no"),
    "half": (200, b'{"data": [{"b64_js'),
    "none": (200, b'{"data": []}'),
    "broken": (200, b'{"data": [{"b64_json": "aGVsbG8="}]}'),
    "strange": (200, b'["x"]'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_asked_again_and_what_stays_is_one_line(fault, tmp_path):
    with ImagesServer(lambda body, before: FAULTS[fault] if before == 0 else paint(body, before)) as server:
        assert len(names(generate(["dog"], tmp_path / "once", own(server), "openai"))) == 3
        assert len(server.asked) == 4
    with ImagesServer(lambda body, before: paint(body, before) if before == 0 else FAULTS[fault]) as server:
        with pytest.raises(UserError, match="after 3 attempts; run again") as error:
            generate(["dog"], tmp_path / "always", own(server), "openai")
        assert "\n" not in str(error.value) and len(server.asked) == 4
        assert len(list((tmp_path / "always").rglob("*.png"))) == 1  # what came is kept


FINAL = {
    "key": (401, b'{"error": {"message": "bad key sk-secret-0123456789"}}', "refused the key"),
    "credit": (429, b'{"error": {"message": "insufficient_quota"}}', "no credit left"),
    "model": (404, b'{"error": {"message": "no such model"}}', "no such model"),
    "redirect": (302, b"", "not followed"),
}


@pytest.mark.parametrize("fault", FINAL)
def test_what_every_request_would_meet_stops_at_once_without_the_key(fault, tmp_path):
    status, body, words = FINAL[fault]
    with ImagesServer(lambda *_: (status, body)) as server, pytest.raises(UserError, match=words) as error:
        generate(["dog"], tmp_path, own(server), "openai")
    assert len(server.asked) == 1 and "secret" not in str(error.value) and "\n" not in str(error.value)


def test_links_are_not_followed_and_no_server_is_one_line(tmp_path):
    link = json.dumps({"data": [{"url": "http://127.0.0.1:9/x.png"}]}).encode()
    with ImagesServer(lambda *_: (200, link)) as server, pytest.raises(UserError, match="links in place of pictures"):
        generate(["dog"], tmp_path, own(server, retries=0), "openai")
    with pytest.raises(UserError, match="after 1 attempts"):
        generate(["dog"], tmp_path, own(server, retries=0), "openai")  # it is closed


def test_a_refused_picture_is_left_out_and_a_refused_word_not_said_again(tmp_path, caplog):
    def answer(body: dict, before: int) -> tuple[int, bytes]:
        if "response_format" in body:
            return 400, b'{"error": {"message": "Unknown parameter: response_format"}}'
        return (400, b'{"error": {"message": "safety system"}}') if "gun" in body["prompt"] else paint(body, before)

    with ImagesServer(answer) as server:
        root = generate(["gun", "dog"], tmp_path, own(server, count=2), "openai")
        assert names(root) == ["dog/000.png", "dog/001.png"] and len(server.asked) == 5
    said = [record.getMessage() for record in caplog.records if record.name == "saelab"]
    assert len(said) == 1 and "safety system" in said[0] and "left out" in said[0]  # once a word, not once a picture


def test_a_server_that_refuses_every_picture_is_one_line(tmp_path):
    refuse = lambda *_: (400, b'{"error": {"message": "safety system"}}')  # noqa: E731
    with ImagesServer(refuse) as server, pytest.raises(UserError, match="model=toy: painted none of 2") as error:
        generate(["gun"], tmp_path, own(server, count=2), "openai")
    assert "\n" not in str(error.value)


def test_batches_have_the_same_names_and_seeds(tmp_path, monkeypatch):
    """A stand-in for the model keeps the seeds that it is given; what a real one paints is tests/test_cosy.py's."""
    seeds: dict[int, list[int]] = {}
    for batch in (1, 4):

        def painted(prompt: str, given: list[int], batch: int = batch) -> list[Image.Image]:
            seeds.setdefault(batch, []).extend(given)
            return [Image.new("RGB", (8, 8))] * len(given)

        monkeypatch.setattr(generation, "_painter", lambda *_, painted=painted: painted)
        root = generate(["dog", "cat"], tmp_path / str(batch), Generation("m", count=6, batch=batch))
        assert len(names(root)) == 12
    assert seeds[1] == seeds[4] and len(set(seeds[1])) == 12


def test_black_pictures_are_left_out_and_counted(tmp_path):
    for label, black in (("dog", {1, 4}), ("cat", {0, 1, 2, 3, 4, 5})):
        (tmp_path / label).mkdir()
        for i in range(6):
            noise = np.random.default_rng(i).integers(0, 6 if i in black else 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / label / f"{i:03}.png")
    pictures = images.load("folder", root=str(tmp_path))
    kept, black = leave_out_black(cosy.in_folders(["dog", "cat", "zebra"], pictures), pictures)
    assert black == {"dog": 2, "cat": 6, "zebra": 0} and len(kept["cat"]) == 0
    assert [pictures.files[i] for i in kept["dog"]] == [f"dog/00{i}.png" for i in (0, 2, 3, 5)]


def test_presets_are_the_authors():
    own = make(Generation, preset("cosy/generate", "cosy"), "cosy.generate.")
    assert own == Generation() and (own.count, own.prompt) == (50, "realistic photo of a close up of {}")
    csp = make(Generation, preset("cosy/generate", "csp"), "cosy.generate.")
    assert (csp.count, csp.prompt, csp.model.rpartition("/")[2]) == (20, "{}", "stable-diffusion-v1-5")
    for wrong, words in (({"count": 0}, "count"), ({"batch": 0}, "batch"), ({"prompt": "a dog"}, "needs {}")):
        with pytest.raises(UserError, match=words):
            Generation(**wrong)
