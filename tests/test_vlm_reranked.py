"""Candidates put in order by mutual information: a server on loopback that names log-probabilities."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pictures import Pictures, exemplars

from saelab.errors import UserError
from saelab.label import propose
from saelab.label.vlm.reranked import letter_log_p

IMAGES = Pictures()
NAMES = ["things", "cats", "tabby cats"]
SEEN, BLIND = [0.5, 0.3, 0.2], [0.25, 0.01, 0.001]  # as in tests/test_outside.py, worked out by hand


def likely(numbers: list[float]) -> dict:
    tokens = [{"token": t, "logprob": math.log(p)} for t, p in zip(["A", " B", "c"], numbers, strict=True)]
    return {"content": [{"token": "A", "logprob": math.log(numbers[0]), "top_logprobs": tokens}]}


def answer(body: dict) -> tuple[str, dict | None]:
    """Three names; asked for a letter, the numbers with pictures or without."""
    parts = body["messages"][0]["content"]
    if "logprobs" not in body:
        return json.dumps({"concepts": NAMES}), None
    assert body["max_tokens"] == 1 and body["top_logprobs"] == 20
    return "A", likely(SEEN if any(part["type"] == "image_url" for part in parts) else BLIND)


@contextlib.contextmanager
def serve(says: Callable[[dict], tuple[str, dict | None]] = answer) -> Iterator[tuple[str, list[dict]]]:
    """The address of a server, and the bodies that it was sent (the check for sight left out)."""
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.reply({"data": []})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = body["messages"][0]["content"]
            pictures = sum(part["type"] == "image_url" for part in parts)
            if pictures or "logprobs" in body:
                bodies.append(body)
            text, logprobs = says(body)
            if text is None:
                self.reply({"error": {"message": "unknown parameter: logprobs"}}, 400)
                return
            choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": logprobs}
            usage = {"prompt_tokens": 10 + 100 * pictures, "completion_tokens": 1}
            self.reply({"model": "toy", "choices": [choice], "usage": usage})

        def reply(self, content: dict, status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        server.server_close()


def ask(url: str, folder, units=(0, 1, 2), **more) -> list[propose.Proposal]:
    own = {"model": "toy", "base_url": url, "rerank": "pmi", "retries": 0, "cache": str(folder / "answers")} | more
    proposer = propose.load_proposer("openai", **own)
    return propose.run(proposer, exemplars(), IMAGES, list(units), folder / "made", progress=False)


def test_candidates_are_put_in_the_order_that_hand_values_give(tmp_path):
    with serve() as (url, bodies):
        rows = ask(url, tmp_path)
        assert [row.labels for row in rows] == [("tabby cats", "cats", "things")] * 3
        assert len(bodies) == 7  # a proposal and a question each, and once the same question without pictures
        assert sum(row.prompt_tokens for row in rows) == 6 * 210 + 10 and sum(row.attempts for row in rows) == 7
        assert ask(url, tmp_path) == rows and len(bodies) == 7
        by_likelihood = ask(url, tmp_path / "likelihood", weight=0)
        assert by_likelihood[0].labels == tuple(NAMES)


def test_a_run_that_lost_its_rows_buys_nothing_again(tmp_path):
    with serve() as (url, bodies):
        rows = ask(url, tmp_path)
        (tmp_path / "made/proposals.jsonl").write_text("")
        again = ask(url, tmp_path)
        assert [row.labels for row in again] == [row.labels for row in rows] and len(bodies) == 7


def test_an_estimate_holds_all_three_questions(tmp_path):
    with serve() as (url, _):
        own = {"model": "toy", "base_url": url}
        taken = [
            propose.estimate(propose.load_proposer("openai", **own | more), exemplars(), IMAGES, [0, 1])
            for more in ({}, {"rerank": "pmi"})
        ]
        assert [found.requests for found in taken] == [2, 6]
        assert taken[1].prompt_tokens > 1.9 * taken[0].prompt_tokens


def test_a_server_without_log_probabilities_is_one_line_and_a_unit_with_one_candidate_is_not_asked(tmp_path):
    with (
        serve(lambda body: (answer(body)[0], None)) as (url, _),
        pytest.raises(UserError, match="no log-probab") as error,
    ):
        ask(url, tmp_path)
    assert "\n" not in str(error.value)
    refuses = serve(lambda body: (None if "logprobs" in body else answer(body)[0], None))
    with refuses as (url, _), pytest.raises(UserError, match=r"no log-probabilities \(400 unknown parameter: logprobs"):
        ask(url, tmp_path / "refuses")
    one = json.dumps({"concepts": ["cats"]})
    with serve(lambda body: (one, None)) as (url, bodies):
        rows = ask(url, tmp_path / "one")
        assert rows[0].labels == ("cats",) and len(bodies) == 3


def test_wrong_settings_are_one_line():
    for name, more, words in (
        ("openai", {"model": "x", "rerank": "best"}, "must be null or pmi"),
        ("openai", {"model": "x", "rerank": "pmi", "weight": -1}, "weight"),
        ("transformers", {"model": "x", "rerank": "pmi"}, "names no log-probabilities"),
    ):
        with pytest.raises(UserError, match=words):
            propose.load_proposer(name, **more)


def test_letters_however_they_are_spelt():
    found = {"A": math.log(0.2), " a": math.log(0.1), "B.": math.log(0.3), "the": math.log(0.05)}
    assert letter_log_p(found, "A") == pytest.approx(math.log(0.3))
    assert letter_log_p(found, "B") == pytest.approx(math.log(0.3))
    assert letter_log_p(found, "C") == pytest.approx(math.log(0.05))  # at most as likely as the last that is listed
