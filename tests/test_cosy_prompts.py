"""Seven pictures that should fire a unit and seven that should not: what is read, painted, compared, and paid once."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from servers import FaultServer
from test_generation import ImagesServer, own, png, quick  # noqa: F401  (quick: a fixture of both)

from saelab import images
from saelab.cli.cosy import _load_writer, _plan_writing, _write
from saelab.errors import UserError
from saelab.evaluate import cosy, prompted
from saelab.evaluate.generation import generate, label_folder
from saelab.evaluate.prompted import COUNT, Prompts, read_prompts
from saelab.run.stages.cosy import CosySettings

LABELS = ["red", "blue"]


def described(label: str) -> Prompts:
    """What a good writer says of red and blue."""
    other = {"red": "blue", "blue": "red"}[label]
    own, others = ([f"a {colour} thing, {i}" for i in range(COUNT)] for colour in (label, other))
    return Prompts(tuple(own), tuple(others))


def as_json(own: Prompts) -> str:
    return json.dumps({"fire": own.fire, "silent": own.silent})


@pytest.mark.parametrize("seed", range(30))
def test_any_answer_gives_two_sides_that_share_nothing_or_none(seed):
    rng = np.random.default_rng(seed)
    words = [f"thing {i}" for i in range(12)] + ["  Thing 3 ", "thing\n5", "", "x" * 400, 7, None, ["a"]]
    fire, silent = ([words[i] for i in rng.integers(0, len(words), rng.integers(0, 25))] for _ in range(2))
    text = json.dumps({"fire": fire, "silent": silent})
    found = read_prompts(
        ["{}", "Sure! {} I hope so.", "<think>{{[</think>\n```json\n{}\n```"][seed % 3].replace("{}", text)
    )

    def plain(side: list) -> list[str]:
        kept: list[str] = []
        for text in (" ".join(t.split()) for t in side if isinstance(t, str)):
            if text and len(text) <= 300 and text.lower() not in [k.lower() for k in kept]:
                kept.append(text)
        return kept

    sides = [plain(fire), plain(silent)]
    both = {t.lower() for t in sides[0]} & {t.lower() for t in sides[1]}
    expected = [[t for t in side if t.lower() not in both][:COUNT] for side in sides]
    if min(map(len, expected)) < 3:
        assert found is None
    else:
        assert [list(found.fire), list(found.silent)] == expected


@pytest.mark.parametrize(
    "answer", ["", "no", "[1, 2]", '{"fire": 3, "silent": {}}', '{"fire": ["a", "b", "c"]}', "{" * 99]
)
def test_what_is_no_answer_is_none(answer):
    assert read_prompts(answer) is None


def paint_colours(body: dict, before: int) -> tuple[int, bytes]:
    """What the prompt says: red or blue, each picture a little different."""
    colour = 200 if "red" in body["prompt"] else 10
    return 200, json.dumps({"data": [{"b64_json": png(colour + before % 20)} for _ in range(body["n"])]}).encode()


def answer_of(server: list[FaultServer], broken: tuple[str, ...] = ()):
    """An answer to the newest question: the descriptions of the label that it names."""

    def answer(question: str) -> str:
        text = json.dumps(server[0].bodies[-1]["messages"])
        label = next(label for label in (*LABELS, *broken) if f"respond to: {label}" in text)
        return "I'd rather not." if label in broken else as_json(described(label))

    return answer


def test_right_labels_order_the_pictures_and_wrong_ones_turn_them_round(tmp_path):
    written = {label: described(label) for label in LABELS}
    for text in {t for x in written.values() for t in x.fire + x.silent}:
        (tmp_path / label_folder(text)).mkdir()
        colour = (200 + len(text), 20, 10) if "red" in text else (10, 20, 200)
        Image.new("RGB", (20, 20), colour).save(tmp_path / label_folder(text) / "000.png")
    pictures = images.load("folder", root=str(tmp_path))
    redness = torch.tensor([float(np.asarray(pictures.load(i))[..., 0].mean()) for i in range(len(pictures))])
    acts = torch.stack([redness, redness, 250 - redness, redness], 1)
    labels = ["red", "blue", "blue", "unwritten"]
    fire, silent = prompted.sides(sorted(set(labels)), written, pictures)
    assert {label: (len(fire[label]), len(silent[label])) for label in fire} == {
        "red": (7, 7), "blue": (7, 7), "unwritten": (0, 0)
    }  # fmt: skip
    true_of = {label: np.setdiff1d(np.arange(len(pictures)), ids) for label, ids in silent.items()}
    most = torch.tensor([400.0, 400.0, 400.0, 0.0])
    rows = cosy.cosy(labels, acts, fire, acts, true_of, most)
    prompted.add_differences(rows, acts, fire, silent, most)
    assert [row["auc_half"] for row in rows[:3]] == [1.0, 0.0, 1.0] and np.isnan(rows[3]["auc_half"])
    assert [row["controls"] for row in rows] == [7, 7, 7, 0]
    red = [float(redness[i]) for i in range(len(pictures)) if "red" in pictures.files[i]]
    blue = [float(redness[i]) for i in range(len(pictures)) if "red" not in pictures.files[i]]
    gap = (np.mean(red) - np.mean(blue)) / 400
    assert [row["difference"] for row in rows[:3]] == pytest.approx([gap, -gap, gap]) and np.isnan(
        rows[3]["difference"]
    )
    mean = cosy.summarise(rows)["mean"]
    assert mean["difference"] == pytest.approx(gap / 3) and mean["auc_strict"] == pytest.approx(2 / 3)
    assert (
        "difference"
        not in cosy.summarise([{k: v for k, v in row.items() if k != "difference"} for row in rows])["mean"]
    )


def test_writing_and_painting_are_paid_once_and_a_refusal_is_a_line(tmp_path, caplog):
    server: list[FaultServer] = []
    with (
        FaultServer(answer=answer_of(server, broken=("green",)), sees=False) as chat,
        ImagesServer(paint_colours) as painter,
    ):
        server.append(chat)
        writer = _load_writer(
            {"name": "openai", "model": "toy", "base_url": chat.url, "cache": str(tmp_path / "answers"), "guided": True}
        )
        made = type("Made", (), {"root": tmp_path, "config": type("Config", (), {"name": "run"})})
        with caplog.at_level("INFO", logger="saelab"):
            first = _write(writer, [*LABELS, "green"], made)
        assert first.prompts == {label: described(label) for label in LABELS}
        assert "1 of 3 labels have none" in caplog.text and len(first.every) == 14
        (kept,) = (tmp_path / "generated").glob("prompts-*.jsonl")
        assert [json.loads(line)["label"] for line in kept.read_text().splitlines()] == LABELS
        root = generate(first.every, tmp_path / "generated", own(painter, prompt="{}", count=1), "openai")
        asked, painted = len(chat.bodies), len(painter.asked)
        assert {body["prompt"] for body in painter.asked} == set(first.every) and painted == 14
        again = _write(writer, [*LABELS, "green"], made)
        assert again.prompts == first.prompts and len(chat.bodies) == asked, "answers lie in the cache, the bad one too"
        assert generate(again.every, tmp_path / "generated", own(painter, prompt="{}", count=1), "openai") == root
        assert len(painter.asked) == painted
        texts = [json.dumps(body["messages"]) for body in chat.bodies]
        assert any("respond to: red" in text for text in texts) and all("Answer with JSON" in text for text in texts)
        assert _plan_writing(writer, LABELS).startswith("dry run: 2 labels: 2 requests") and len(chat.bodies) == asked
        with pytest.raises(UserError, match="described none of 1 labels"):
            _write(writer, ["green"], made)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"source": "prompts", "paint": "folder"}, "cosy.folder"),
        ({"source": "prompts", "paint": "heldout"}, "cosy.paint"),
        ({"source": "prompts", "controls": "somewhere"}, "cosy.controls"),
        ({"source": "prompt"}, "cosy.source"),
    ],
)
def test_settings_that_can_t_be_meant_are_one_line(given, says):
    with pytest.raises(UserError, match=says):
        CosySettings(**given)


def test_a_writer_without_a_name_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cosy\.writer\.model"):
        _load_writer({"name": "openai", "model": None})
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"name": "prompts/red", "raw": as_json(described("red"))}) + "\n")
    recorded = _load_writer({"name": "recorded", "model": None, "answers": str(answers), "mode": "contrast"})
    assert prompted.write_prompts(LABELS, recorded).prompts == {"red": described("red")}
