"""The sae stage's held-out tokens: those of show, some of them, never in training, and never a folder made anew."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from saelab.artifacts import read_json
from saelab.cli.train import WandbRuns, show
from saelab.errors import UserError
from saelab.run.stages import sae as stage
from saelab.sae import SAE, quality
from saelab.sae.quality import OVERFIT

GIVEN = {"rule": "topk", "latents": 24, "k": 3, "lr": 2e-3, "train": {"batch_size": 50, "epochs": 4}}
SPLITS = {"mine": 400, "show": 120, "test": 200}
KEYS = {"fvu", "r2", "l0", "cosine", "dead", "rare", "dense", "density", "tokens"}


def store(splits: dict[str, int] | None = None) -> SimpleNamespace:
    """A cache of tokens [tokens, 8] in float16, the splits mixed; those of mine vary in two directions only."""
    splits = SPLITS if splits is None else splits
    names = np.random.default_rng(1).permutation(np.repeat(list(splits), list(splits.values())))
    tokens = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float16)
    tokens[names == "mine", 2:] /= 10
    tokens[names == "test"] = np.nan  # nobody may look at them
    mine = tokens[names == "mine"].astype(np.float64)
    return SimpleNamespace(
        layer="layer",
        digest="digest",
        d_in=8,
        tokens=tokens,
        mean=mine.mean(0),
        variance=float(mine.var(0).sum()),
        rows=lambda split: np.flatnonzero(names == split),
    )


def train(made: SimpleNamespace, root, given=GIVEN, seeds=(0,)) -> list:
    return stage.train_saes(made, given, seeds, root, "cpu")


def test_each_sae_is_measured_on_tokens_of_show(tmp_path):
    made = store()
    for artifact in train(made, tmp_path, seeds=(0, 1)):
        found, own = read_json(artifact.path / "quality.json"), SAE.load(artifact.path)
        unseen = torch.from_numpy(made.tokens[made.rows("show")])
        held = found["held_out"]
        wanted = quality(own, unseen)
        assert held["density"] == wanted["density"]
        for name in KEYS - {"density"}:
            assert held[name] == pytest.approx(wanted[name], rel=1e-9), name
        assert held["tokens"] == 120 and held["fvu_ratio"] == held["fvu"] / found["fvu"] > OVERFIT
        assert held["overfit"].startswith("The SAE overfits") and found["tokens"] == 400


def test_of_many_it_takes_some_that_are_drawn_at_random(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "HELD_OUT", 40)
    made = store()
    found = stage.draw_held_out(made, 50)
    rows = made.rows("show")
    assert len(set(found.rows)) == 40 and set(found.rows) <= set(rows) and bool((np.diff(found.rows) > 0).all())
    assert found.rows.tolist() == stage.draw_held_out(made, 50).rows.tolist(), "the same ones each time"
    first, last = (np.isin(found.rows, half).sum() for half in (rows[:60], rows[60:]))
    assert min(first, last) > 10, "of all of it"
    (artifact,) = train(made, tmp_path)
    assert read_json(artifact.path / "quality.json")["held_out"]["tokens"] == 40


def test_without_a_show_split_training_goes_as_before(tmp_path):
    made = store({"mine": 400, "test": 200})
    (artifact,) = train(made, tmp_path)
    assert read_json(artifact.path / "quality.json").keys() == KEYS


def test_a_finished_sae_stays_as_it_lies_there_and_its_weights_do_not_depend_on_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(stage, "draw_held_out", lambda *_: None)
        (before,) = train(store(), tmp_path / "old")
    files = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in before.path.iterdir()}
    (after,) = train(store(), tmp_path / "old")
    assert after.path == before.path
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in after.path.iterdir()} == files
    (new,) = train(store(), tmp_path / "new")
    assert new.path.name == before.path.name, "the same recipe"
    for name in ("sae.safetensors", "training.json", "metrics.jsonl", "recipe.json"):
        assert (new.path / name).read_bytes() == files[name][0], name
    found, old = read_json(new.path / "quality.json"), json.loads(files["quality.json"][0])
    assert found.pop("held_out") and found == old


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_cannot_be_measured_is_refused_before_training(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "fit_many", lambda *_, **__: pytest.fail("trained"))
    made = store()
    row = int(made.rows("show")[77])
    made.tokens[row, 3] = wrong
    with pytest.raises(UserError, match=f"row {row} holds NaN or an infinity"):
        train(made, tmp_path)


def test_the_log_says_where_thresholds_let_more_than_k_through(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "saelab"):
        train(store(), tmp_path, GIVEN | {"rule": "batchtopk"})
    assert "latents a held-out token exceed their thresholds, k is 3" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "saelab"):
        train(store(), tmp_path)
    assert "exceed" not in caplog.text


def test_the_command_prints_both_and_says_what_overfits(tmp_path, caplog, capsys):
    made = store()
    (artifact,) = train(made, tmp_path)
    with caplog.at_level(logging.WARNING, "saelab"):
        show(artifact)
    (line,) = capsys.readouterr().out.splitlines()
    found = read_json(artifact.path / "quality.json")
    numbers = json.loads(line.partition(": ")[2])
    assert numbers["fvu"] == round(found["fvu"], 4)
    assert (numbers["held_out_fvu"], numbers["held_out_l0"]) == (round(found["held_out"]["fvu"], 4), 3)
    assert found["held_out"]["overfit"] in caplog.text
    made = store({"mine": 400, "test": 200})
    show(train(made, tmp_path / "without")[0])
    assert json.loads(capsys.readouterr().out.partition(": ")[2]).keys() == {"fvu", "l0", "dead", "rare", "dense"}


def test_wandb_gets_the_numbers_of_both(tmp_path):
    saes = train(store(), tmp_path)
    found = read_json(saes[0].path / "quality.json")
    cfg = OmegaConf.create({"seeds": [0], "wandb": {"mode": "offline"}})
    runs, ended = WandbRuns(cfg, "layer", "digest"), []
    runs.runs[0] = SimpleNamespace(summary={}, finish=lambda: ended.append(True))
    runs.finish(saes)
    summary = runs.runs[0].summary
    assert summary["final/fvu"] == found["fvu"] and summary["final/held_out/fvu"] == found["held_out"]["fvu"]
    assert ended and not [name for name, value in summary.items() if isinstance(value, dict | list)]
