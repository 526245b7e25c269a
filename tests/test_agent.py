"""The agent against a real server with scripted answers: what it may look at, where it ends, what is paid, resume."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import Pictures
from pictures import exemplars as mined_exemplars

from saelab.errors import UserError
from saelab.label import propose, selection
from saelab.label.agent.hands import Hands, Sight
from saelab.label.proposal import ShownExemplars
from saelab.label.propose import build_case, load_proposer
from saelab.label.tools import Toolbox

pytest.importorskip("openai")
FAST = {"model": "toy", "backoff": 0.01, "timeout": 20, "sheet_px": 448, "concurrency": 2}
LABEL = '{"concepts": ["red squares"], "evidence": "seen", "confidence": 0.7, "none": false}'
PER_CALL = {"prompt_tokens": 1000, "completion_tokens": 50}


class Photos(Pictures):
    """Pictures with splits: the first half is for mining."""

    def ids(self, split: str) -> np.ndarray:
        half = self.count // 2
        return np.arange(half) if split == "mine" else np.arange(half, self.count)


def exemplars(units: int = 3) -> ShownExemplars:
    """Unit u fires for photo i by how near i is to 4 u."""
    own = mined_exemplars(units)
    places = torch.arange(200.0)
    return ShownExemplars(own.positives, own.contrasts, own.activations, lambda u: (10 - (places - 4 * u).abs()).relu())


class Words:
    """A space in which the text "photo 7" lies at photo 7."""

    def __init__(self, photos: int = 200) -> None:
        self.images = torch.eye(photos)
        self.sight = Sight(self.images, lambda texts: torch.stack([self.images[int(t.split()[-1])] for t in texts]))


def call(name: str, own: str = "a", **given) -> dict:
    return {"id": own, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}


class Scripted:
    """An OpenAI-compatible server whose n-th answer in a talk is what `script(n, body)` gives: calls, or a text.

    `paid` counts whole answers by the messages that they answer. `slow`: seconds before each answer. sees=False: a
    talk without pictures is a talk, and no question whether pictures are seen.
    """

    def __init__(self, script: Callable[[int, dict], object], slow: float = 0.0, sees: bool = True) -> None:
        self.script, self.paid, self.bodies, self.slow = script, Counter(), [], slow
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.send({"object": "list", "data": [{"id": "toy", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                turn = sum(message["role"] == "assistant" for message in body["messages"])
                blind = not any(part["type"] == "image_url" for part in body["messages"][0]["content"])
                if blind and sees:  # are pictures seen?
                    return self.send(reply({"content": "no"}, {"prompt_tokens": 9, "completion_tokens": 1}))
                time.sleep(server.slow)
                said = server.script(turn, body)
                message = {"content": said} if isinstance(said, str) else {"content": None, "tool_calls": said}
                server.bodies.append(body)
                server.paid[json.dumps(body["messages"])] += 1
                return self.send(reply(message, PER_CALL))

            def send(self, value: dict) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def reply(message: dict, usage: dict) -> dict:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
    return {"id": "x", "object": "chat.completion", "model": "toy-1", "choices": [choice], "usage": usage}


def ask(server: Scripted, folder: Path, units=(0,), budget=None, **settings):
    own = {"base_url": server.url, "cache": folder / "answers", **FAST, **settings}
    proposer = load_proposer("agent", sight=Words().sight, **own)
    return propose.run(proposer, exemplars(), Photos(), list(units), folder / "run", budget=budget, progress=False)


def four_rounds(turn: int, body: dict):
    """Looks at the strongest, tests an idea, looks closely, answers."""
    return [
        [call("strongest", count=4)],
        [call("find_photos", "b", text="photo 7", count=2), call("activations", "c", photos=[0, 1])],
        [call("look", "d", photo=3)],
        LABEL,
    ][turn]


def transcript(folder: Path, unit: int) -> list[dict]:
    return [
        json.loads(line)
        for line in (folder / "run" / "transcripts" / f"unit-{unit:05d}.jsonl").read_text().splitlines()
    ]


def test_a_talk_reaches_a_label_and_leaves_a_transcript(tmp_path):
    with Scripted(four_rounds) as server:
        rows = ask(server, tmp_path, units=(0, 1, 2), prices={"input": 1.0, "output": 2.0})
    assert [row.status for row in rows] == ["answered"] * 3 and rows[0].labels == ("red squares",)
    assert set(server.paid.values()) == {1} and len(server.paid) == 12
    assert (rows[0].prompt_tokens, rows[0].completion_tokens, rows[0].attempts) == (4000, 200, 4)
    assert rows[0].cost == pytest.approx(4 * (1000 * 1.0 + 50 * 2.0) / 1e6)
    lines = transcript(tmp_path, 1)
    assert [len(line.get("calls", [])) for line in lines] == [1, 2, 1, 0] and lines[-1]["said"] == LABEL
    strongest = json.loads(lines[0]["calls"][0]["answer"])["photos"]
    assert [p["photo"] for p in strongest] == [4, 3, 5, 2]  # unit 1 fires for photos near 4
    found, numbers = (json.loads(c["answer"])["photos"] for c in lines[1]["calls"])
    assert found[0]["photo"] == 7 and found[0]["share"] == 0.7
    assert [p["share"] for p in numbers] == [0.6, 0.7]
    assert all((tmp_path / "run" / sheet).is_file() for sheet in rows[1].sheets) and len(rows[1].sheets) == 2 + 3
    body = next(b for b in server.bodies if len(b["messages"]) > 4)
    roles = [message["role"] for message in body["messages"]]
    assert roles[:4] == ["user", "assistant", "tool", "user"]  # pictures follow the answers that they belong to
    assert body["tool_choice"] == "auto" and [t["function"]["name"] for t in body["tools"]] == [
        "strongest",
        "find_photos",
        "activations",
        "look",
    ]


def test_tools_reach_no_photo_that_judges_a_label_and_no_caption():
    case = build_case(exemplars(), Photos(), 0, "contrast", 0, 9)
    box = Toolbox(Hands(case, Words().sight, 448).tools())
    for name, given in (("look", {"photo": 100}), ("activations", {"photos": [1, 150]})):
        with pytest.raises(UserError, match="none that you were shown"):
            box.call(name, given)
    shown = box.call("find_photos", {"text": "photo 150", "count": 9}).facts["photos"]
    assert all(row["photo"] < 100 for row in shown) and set(shown[0]) == {"photo", "share", "percentile"}
    assert box.call("strongest", {"first": 99}).facts == {"photos": []}  # no further photo fires it


def test_an_agent_that_reads_text_only_gets_captions_for_pictures(tmp_path):
    class Described(Photos):
        captions = tuple(f"square number {i}" if i % 2 else None for i in range(200))

    def script(turn: int, body: dict):
        calls = [call("find_photos", text="photo 7", count=2), call("activations", "b", photos=[3, 4]), call("look")]
        return calls if turn == 0 else LABEL

    with Scripted(script, sees=False) as server:
        own = {"base_url": server.url, "cache": tmp_path / "answers", **FAST, "layout": "captions"}
        agent = load_proposer("agent", sight=Words().sight, **own)
        (row,) = propose.run(agent, exemplars(), Described(), [1], tmp_path / "run", progress=False)
    assert row.status == "answered" and not row.sheets and len(server.bodies) == 2
    assert "image_url" not in json.dumps(server.bodies) and ": square number 5" in row.prompt
    found, numbers, look = (json.loads(c["answer"]) for c in transcript(tmp_path, 1)[0]["calls"])
    assert found["photos"][0] == {"photo": 7, "share": 0.7, "percentile": 0.94, "shows": "square number 7"}
    assert [p["shows"] for p in numbers["photos"]] == ["square number 3", "-"] and "known: strongest" in look["error"]
    assert [t["function"]["name"] for t in server.bodies[0]["tools"]] == ["strongest", "find_photos", "activations"]


@pytest.mark.parametrize(
    "calls, said",
    [
        ([call("exec", code="import os")], "known: strongest"),
        ([call("strongset")], "did you mean strongest"),
        ([call("look", photo="three")], "expected a whole number"),
        ([call("look", photo=3, code="x")], "has no such argument"),
        ([{"id": "a", "function": {"name": "look", "arguments": "{"}}], "one JSON object"),
        ([{"id": "a", "function": {"name": "look", "arguments": "[" * 9999}}], "one JSON object"),
        ([{"id": None, "function": {"name": "look", "arguments": None}}], "is missing"),
        ([call("activations", str(i), photos=[i]) for i in range(5)], "only 3 calls"),
    ],
)
def test_a_wrong_call_gets_one_line_and_the_talk_goes_on(tmp_path, calls, said):
    with Scripted(lambda turn, body: calls if turn == 0 else LABEL) as server:
        (row,) = ask(server, tmp_path)
    assert row.status == "answered"
    (answer,) = {c["answer"] for c in transcript(tmp_path, 0)[0]["calls"] if "error" in json.loads(c["answer"])}
    assert said in answer and "\n" not in json.loads(answer)["error"]


def test_an_agent_that_loops_is_told_so_and_made_to_answer(tmp_path):
    def script(turn: int, body: dict):
        return LABEL if body["tool_choice"] == "none" else [call("strongest")]

    with Scripted(script) as server:
        (row,) = ask(server, tmp_path, rounds=5)
    assert row.status == "answered" and len(server.paid) == 5
    lines = transcript(tmp_path, 0)
    assert "sheet" in json.loads(lines[0]["calls"][0]["answer"])
    assert all("you asked this before" in line["calls"][0]["answer"] for line in lines[1:4])
    assert "Answer now" in json.dumps(server.bodies[-1]["messages"][-1])


@pytest.mark.parametrize(
    "script, rounds, why",
    [
        (lambda turn, body: [call("look", photo=turn)], 4, "the model called look where it had to answer"),
        (lambda turn, body: "", 1, "the model answered nothing"),
        (lambda turn, body: [], 1, "the model answered nothing"),
        (lambda turn, body: "I think that it likes squares.", 1, None),
    ],
)
def test_an_agent_without_an_answer_gives_its_unit_a_row_that_says_why(tmp_path, script, rounds, why):
    with Scripted(script) as server:
        (row,) = ask(server, tmp_path, rounds=4)
        (again,) = ask(server, tmp_path, rounds=4)
    assert (row.status, row.labels, row.error) == ("unparsed", (), why) and again == row
    assert sum(server.paid.values()) == rounds  # asked again: nothing


class Lossy(Photos):
    """Photo 3 is gone while `gone` is set."""

    gone = True

    def load(self, i: int):
        if i == 3 and self.gone:
            raise UserError("image", "3.jpg", "can't be read any more", "put the file back")
        return super().load(i)


def test_a_photo_that_an_agent_asks_for_and_that_is_gone_fails_its_unit_alone(tmp_path):
    """Of two units the first asks for photo 3, the other for photo 9; the first goes on when photo 3 is back."""
    looks = [[call("look", photo=9)], [call("look", photo=3)]]

    def script(turn: int, body: dict):
        return looks.pop() if turn == 0 else LABEL

    own = ShownExemplars(torch.tensor([[0, 1], [4, 5], [8, 9]]), torch.full((3, 2), -1), torch.ones(3, 2))
    own = dataclasses.replace(own, column=exemplars().column)
    images = Lossy()
    with Scripted(script) as server:
        settings = {"base_url": server.url, "cache": tmp_path / "answers", **FAST, "concurrency": 1}

        def run() -> list[propose.Proposal]:
            agent = load_proposer("agent", sight=Words().sight, **settings)
            return propose.run(agent, own, images, [1, 2], tmp_path / "run", mode="positives", progress=False)

        rows = run()
        assert [row.status for row in rows] == ["failed", "answered"]
        assert rows[0].error == "image=3.jpg: can't be read any more; put the file back" and rows[0].labels == ()
        assert transcript(tmp_path, 1)[-1]["error"] == rows[0].error and sum(server.paid.values()) == 3
        images.gone = False
        assert [row.status for row in run()] == ["answered"] * 2
        assert sum(server.paid.values()) == 4 and set(server.paid.values()) == {1}  # only what came after the look


def test_a_talk_is_cut_at_its_tokens(tmp_path):
    def script(turn: int, body: dict):
        return LABEL if body["tool_choice"] == "none" else [call("look", photo=turn)]

    with Scripted(script) as server:
        (row,) = ask(server, tmp_path / "a", rounds=12, unit_tokens=9000, max_tokens=100)
        assert row.status == "answered" and 2 <= len(server.paid) <= 6
        assert row.prompt_tokens + row.completion_tokens <= 9000
        (row,) = ask(server, tmp_path / "b", rounds=12, unit_tokens=1500, max_tokens=100)
    assert row.status == "unparsed" and "cut at proposer.unit_tokens=1500" in row.error


def test_a_budget_for_all_units_holds_some_back(tmp_path):
    with Scripted(four_rounds) as server:
        budget = selection.Budget(tokens=25_000)
        rows = ask(server, tmp_path, units=(0, 1, 2), budget=budget, unit_tokens=20_000, concurrency=1)
    assert [row.unit for row in rows] == [0, 1] and len(server.paid) == 8  # a talk takes 4200, and may take 20,000


@pytest.mark.parametrize("given", [{"rounds": 1}, {"unit_tokens": 100}, {"max_tokens": 0}, {"rounds": "many"}])
def test_bounds_that_leave_no_room_are_refused(given):
    with pytest.raises(UserError, match="expected a whole number of at least"):
        load_proposer("agent", sight=Words().sight, **FAST, **given)


KILLED = """
import sys
sys.path.insert(0, sys.argv[3])
import test_agent as t
from pathlib import Path
from types import SimpleNamespace
t.ask(SimpleNamespace(url=sys.argv[1]), Path(sys.argv[2]), units=(0, 1, 2), concurrency=1)
"""


def test_a_killed_talk_goes_on_without_asking_twice(tmp_path):
    with Scripted(four_rounds, slow=0.15) as server:
        command = [sys.executable, "-c", KILLED, server.url, str(tmp_path), str(Path(__file__).parent)]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        while sum(server.paid.values()) < 6 and process.poll() is None:  # in the middle of the second unit's talk
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = sum(server.paid.values())
        rows = ask(server, tmp_path, units=(0, 1, 2), concurrency=1)
    assert 6 <= before < 12 and [row.status for row in rows] == ["answered"] * 3
    assert sorted(server.paid.values(), reverse=True)[1:] == [1] * 11 and max(server.paid.values()) <= 2
    # what was under way at the kill may have been paid: it is the only one that was sent again, and its row says so
    assert sum(server.paid.values()) - 12 <= sum(row.uncertain for row in rows) <= 1
    assert [row.prompt_tokens for row in rows] == [4000] * 3 and not any(row.cached for row in rows)


@pytest.mark.slow
def test_the_command_asks_an_agent_about_units_of_a_real_host(tmp_path):
    """`saelab label proposer=agent`: its labels join the vocabulary, and the second run asks nothing."""
    import commands
    from small_images import coloured

    pytest.importorskip("efficientnet_lite_pytorch")
    coloured(tmp_path / "pictures", 40, size=64)

    def script(turn: int, body: dict):
        return [[call("find_photos", text="a red square", count=3), call("look", "b", photo=0)], LABEL][turn]

    with Scripted(script) as server:
        command = [sys.executable, str(Path(__file__).parents[1] / "scripts" / "label.py"), "images=folder"]
        command += [f"images.root={tmp_path / 'pictures'}", f"root={tmp_path / 'runs'}", "bases=[neuron]"]
        command += ["scorer=[pearson]", "label.nulls=5", "label.mining.k=5", "label.vocabulary=[classes]", "workers=0"]
        command += ["layers=[_blocks.15]"]
        command += ["device=cpu", "proposer=agent", f"proposer.base_url={server.url}", "proposer.model=toy"]
        command += ["proposer.units=top:3"]
        first, paid = commands.run(command), sum(server.paid.values())
        again = commands.run(command)
    assert first.returncode == 0, first.stderr
    assert "agent: 3 units: 3 answered" in first.stdout and paid == 6 == sum(server.paid.values())
    assert again.returncode == 0 and again.stdout == first.stdout
    (vocabulary,) = (tmp_path / "runs" / "labels").glob("*/vocabulary.json")
    assert "red squares" in json.loads(vocabulary.read_text())["labels"]
