"""Runs whose latents several processes hold: killed, gone on with by another number of shards, finished in one file."""

import json
import logging
import os
import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_processes import each
from safetensors import safe_open

from saelab import artifacts
from saelab.cache.batches import Batches
from saelab.errors import UserError
from saelab.run.distributed import explain
from saelab.run.presets import folder, preset
from saelab.run.stages.sae import sae_configs
from saelab.sae import SAE, Meta, SAEConfig, TrainConfig, Trainer, checkpoints, fit, rough
from saelab.sae.job import Job
from saelab.sae.parts import INDEX

sharing = import_module("saelab.sae.fit")  # which `saelab.sae.fit`, the function, hides
CONFIG = SAEConfig(10, 96, k=6, lr=2e-3, screen="float32", dead_after=300)
CONFIGS = {
    "topk": CONFIG,
    "batchtopk": replace(CONFIG, rule="batchtopk"),
    "relu": replace(CONFIG, rule="relu", dead_after=64, resample_every=4),
    "jumprelu": replace(CONFIG, rule="jumprelu", dead_after=64),
    "averaged": replace(CONFIG, rule="jumprelu", dead_after=64),
}
TRAIN = TrainConfig(batch_size=64, steps=30, log_every=1, checkpoint_every=5)
TRAINS = dict.fromkeys(CONFIGS, TRAIN) | {"averaged": replace(TRAIN, ema=0.9)}


def tokens() -> np.ndarray:
    return np.random.default_rng(0).normal(2.0, 1.0, (900, 10)).astype(np.float16)


def train(folder: Path, rule: str, shards: int, dies: tuple[int, int] = (-1, -1)) -> None:
    """Train in a process of the default group; the one of rank `dies[0]` is killed before step `dies[1]`."""
    rank, size, step = torch.distributed.get_rank(), torch.distributed.get_world_size(), Trainer.step

    def perhaps_the_last(self, *given):
        if (rank, self.steps) == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *given)

    Trainer.step = perhaps_the_last
    config, how, held_out = CONFIGS[rule], replace(TRAINS[rule], latent_shards=shards), tokens()[:50]
    try:
        found = fit(tokens(), config, how, folder, held_out=held_out, progress=False)
    except RuntimeError as error:
        raise explain(str(error), rank, size) or error from None
    finally:
        Trainer.step = step
    assert found.sae.latents == 96 and found.quality["held_out"]["tokens"] == 50


def train_each(folder: Path, shards: int) -> None:
    for rule in CONFIGS:
        train(folder / rule, rule, shards)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def together(size: int, folder: Path, rule: str, shards: int, dies: tuple[int, int] = (-1, -1)) -> tuple[list, list]:
    """Exit codes and last words of such processes."""
    store = folder.with_name(f"store-{folder.name}-{size}-{shards}-{dies[0]}")
    codes = each(size, store, train, folder, rule, shards, dies)
    words = [store.with_name(f"{store.name}.{rank}") for rank in range(size)]
    return codes, [word.read_text() if word.exists() else "" for word in words]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for rule, config in CONFIGS.items():
        fit(tokens(), config, TRAINS[rule], folder / rule, held_out=tokens()[:50], progress=False)
    return folder


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu", "averaged"])
def test_a_run_of_four_shards_that_loses_one_goes_on_with_two_and_then_with_one(rule, tmp_path, alone, caplog):
    out = tmp_path / "out"
    codes, words = together(4, out, rule, 4, dies=(3, 13))
    assert codes == [1, 1, 1, -signal.SIGKILL]
    assert all("another process ended before this one" in word for word in words[:3]), words
    assert {file.name for file in (out / "checkpoints").glob("step-*")} == {f"step-{n:08d}{INDEX}" for n in (5, 10)}
    codes, words = together(2, out, rule, 2, dies=(0, 22))
    assert codes == [-signal.SIGKILL, 1] and "another process ended" in words[1]
    with caplog.at_level(logging.INFO, "saelab"):
        found = fit(tokens(), CONFIGS[rule], TRAINS[rule], out, held_out=tokens()[:50], progress=False)
    assert "at step 20 of 30" in caplog.text and "damaged" not in caplog.text
    expected = lines(alone / rule)
    assert [line["step"] for line in lines(out)] == list(range(30)) and not (out / "checkpoints").exists()
    for ours, theirs in zip(lines(out), expected, strict=True):
        assert ours.keys() == theirs.keys() and ours["silent"] == theirs["silent"]
        for name in ("loss", "fvu", "l0"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), (name, ours["step"])
    whole = SAE.load(alone / rule).tensors()
    for name, tensor in found.sae.tensors().items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("size", "shards"), [(2, 2), (4, 2)])
def test_shards_leave_what_one_process_leaves(size, shards, tmp_path, alone):
    assert each(size, tmp_path / "store", train_each, tmp_path, shards) == [0] * size
    for rule, config in CONFIGS.items():
        names = {file.name for file in (alone / rule).iterdir()}
        assert {file.name for file in (tmp_path / rule).iterdir()} == names
        found, expected = (json.loads((at / rule / "quality.json").read_text()) for at in (tmp_path, alone))
        edge = 0 if rule == "topk" else 2  # tokens' latents that rounding moves over a threshold
        for ours, theirs in ((found, expected), (found["held_out"], expected["held_out"])):
            for part in ("fvu", "l0", "cosine", "dead", "rare", "dense", "tokens"):
                moved = edge / theirs["tokens"] if part == "l0" else 0
                assert ours[part] == pytest.approx(theirs[part], rel=1e-5, abs=moved), (rule, part)
        ours, theirs = SAE.load(tmp_path / rule), SAE.load(alone / rule)
        assert ours.meta == theirs.meta
        ours.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / rule / "sae.safetensors").read_bytes()
        again = fit(tokens(), config, TRAINS[rule], tmp_path / rule, progress=False)
        assert torch.equal(again.sae.W_dec, ours.W_dec), "finished: the number of processes makes no difference"


OTHERS = {
    "decoder": replace(CONFIG, frozen="decoder"),
    "soft_decoder": replace(CONFIG, frozen="soft_decoder", lr=0.05),
    "all": replace(CONFIG, rule="batchtopk", frozen="all"),
    "decay": replace(CONFIG, weight_decay=0.1, prefixes=(0.25, 1), clip=0.5),
    "start": CONFIG,
    "multi_topk": replace(CONFIG, multi_topk=True),
    "archetypal": replace(CONFIG, rule="batchtopk", decoder="archetypal", candidates=64),
    "soft_gate": replace(CONFIG, rule="jumprelu", frozen="soft_decoder", lr=0.05),
    "start_gate": replace(CONFIG, rule="jumprelu", weight_decay=0.1, clip=0.5),
    "relu": CONFIGS["relu"],
}


def begun(name: str) -> SAE | None:
    """The SAE that a run starts from, with decoder rows of other lengths than 1."""
    if not name.startswith("start"):
        return None
    g = torch.Generator().manual_seed(5)
    return SAE(*(torch.randn(s, generator=g) for s in ((96, 10), 96, (96, 10), 10)), Meta("topk", 6))


def cut_all_short(folder: Path) -> None:
    for name, config in OTHERS.items():
        cut_short(folder / name, config, begun(name))


def test_every_control_goes_on_in_one_process_where_two_shards_left_it(tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.sae.summary.draw", lambda *_: None)
    assert each(2, tmp_path / "store", cut_all_short, tmp_path / "cut") == [0, 0]
    for name, config in OTHERS.items():
        assert (tmp_path / "cut" / name / "checkpoints" / f"step-00000010{INDEX}").exists()
        cut = fit(tokens(), config, TRAIN, tmp_path / "cut" / name, start=begun(name), progress=False)
        whole = fit(tokens(), config, TRAIN, tmp_path / "whole" / name, start=begun(name), progress=False)
        for ours, theirs in zip(lines(tmp_path / "cut" / name), lines(tmp_path / "whole" / name), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6), (name, ours["step"])
        for part, tensor in whole.sae.tensors().items():
            torch.testing.assert_close(cut.sae.tensors()[part], tensor, rtol=1e-4, atol=1e-5, msg=f"{name} {part}")


class Stop(Exception):
    pass


def cut_short(folder: Path, config: SAEConfig = CONFIG, start: SAE | None = None, shards: int = 2) -> None:
    """Shards that all stop before step 12, with checkpoints of steps 5 and 10."""
    step = Trainer.step

    def stops(self, *given):
        if self.steps == 12:
            raise Stop
        return step(self, *given)

    Trainer.step = stops
    try:
        with pytest.raises(Stop):
            fit(tokens(), config, replace(TRAIN, latent_shards=shards), folder, start=start, progress=False)
    finally:
        Trainer.step = step


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_part_makes_all_fall_back_to_the_checkpoint_before(damage, tmp_path, caplog, alone):
    out = tmp_path / "out"
    assert each(2, tmp_path / "store", cut_short, out) == [0, 0]
    names = sorted(file.name for file in (out / "checkpoints").iterdir())
    parts = [f"part-{step:08d}-{part:05d}-of-00002.safetensors" for step in (5, 10) for part in (1, 2)]
    assert names == [*parts, *(f"step-{step:08d}{INDEX}" for step in (5, 10))]
    last = out / "checkpoints" / parts[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    if damage == "gone":
        last.unlink()
    with caplog.at_level(logging.INFO, "saelab"):
        fit(tokens(), CONFIG, TRAIN, out, progress=False)
    assert "damaged" in caplog.text and f"step-00000010{INDEX}" in caplog.text and "at step 5 of 30" in caplog.text
    assert lines(out)[-1]["loss"] == pytest.approx(lines(alone / "topk")[-1]["loss"], rel=1e-6)


def fall_back(folder: Path) -> None:
    fit(tokens(), CONFIG, replace(TRAIN, latent_shards=2), folder, progress=False)


def test_shards_agree_on_the_checkpoint_where_one_finds_damage(tmp_path, alone):
    out = tmp_path / "out"
    assert each(2, tmp_path / "store", cut_short, out) == [0, 0]
    last = sorted((out / "checkpoints").glob("part-*"))[-1]
    last.write_bytes(last.read_bytes()[:-3] + b"abc")
    assert each(2, tmp_path / "store2", fall_back, out) == [0, 0]
    assert lines(out)[-1]["loss"] == pytest.approx(lines(alone / "topk")[-1]["loss"], rel=1e-6)


def test_parts_say_what_they_hold_and_belong_to_a_recipe(tmp_path):
    out = tmp_path / "out"
    assert each(2, tmp_path / "store", cut_short, out) == [0, 0]
    index = json.loads((out / "checkpoints" / f"step-00000010{INDEX}").read_text())
    assert index["metadata"]["step"] == 10
    cut_short(tmp_path / "alone", shards=1)
    with safe_open(tmp_path / "alone" / "checkpoints" / "step-00000010.safetensors", framework="pt") as whole:
        assert whole.metadata()["recipe"] == index["metadata"]["recipe"], "however many shards"
    for name, file in index["weight_map"].items():
        with safe_open(out / "checkpoints" / file, framework="pt") as opened:
            shape = opened.get_slice(name).get_shape()
        assert ("[" in name) == (bool(shape) and "b_dec" not in name and not name.startswith("adam.3")), name
        if "[" in name:
            assert shape[0] == 48 and name.endswith(("[0:48]", "[48:96]"))
    with pytest.raises(UserError, match="another recipe"):
        fit(tokens(), replace(CONFIG, k=5), TRAIN, out, progress=False)
    assert checkpoints.latest(out / "none", "x") is None


def go_on_from_an_older_version(folder: Path) -> None:
    """Two processes stop before step 12, with checkpoints that count them in the recipe, and go on."""
    step, save, taken = Trainer.step, Job.save, []

    def stops(self, *given):
        if self.steps == 12:
            raise Stop
        return step(self, *given)

    def saves(self, *given):
        self.digest = artifacts.digest(self.recipe)
        save(self, *given)

    Trainer.step, Job.save = stops, saves
    with pytest.raises(Stop):
        fit(tokens(), CONFIG, TRAIN, folder, progress=False)
    Job.save = save
    Trainer.step = lambda self, *given: taken.append(self.steps) or step(self, *given)
    fit(tokens(), CONFIG, TRAIN, folder, progress=False)
    assert taken == list(range(10, 30))


def test_checkpoints_of_several_processes_that_are_older_than_shards_are_gone_on_from(tmp_path):
    assert each(2, tmp_path / "store", go_on_from_an_older_version, tmp_path / "out") == [0, 0]


def train_on_different_processors(folder: Path) -> None:
    """The first process has int8 and bfloat16 instructions, the second none."""
    first = torch.distributed.get_rank() == 0
    rough.has_fast_int8 = rough.has_fast_bfloat16 = lambda device: first
    rough.has_amx = lambda device: False
    fit(tokens(), replace(CONFIG, screen="auto"), TRAIN, folder, progress=False)


def test_processes_that_settle_on_different_screens_are_refused_in_a_line(tmp_path):
    assert each(2, tmp_path / "store", train_on_different_processors, tmp_path / "out") == [1, 1]
    for rank in range(2):
        word = (tmp_path / f"store.{rank}").read_text()
        assert "screen=auto: the processes settle on float32 and int8; use screen=float32" in word


REFUSED = {
    "latent_shards=2: has to divide the number of processes, 1; start a multiple of 2": (CONFIG, 2, "out"),
    "latent_shards=7: has to divide the 96 latents": (CONFIG, 7, "out"),
    "latent_shards=2: the parts of an SAE meet in its folder": (CONFIG, 2, None),
}


@pytest.mark.parametrize("message", REFUSED)
def test_shards_that_cannot_be_are_refused_before_anything_is_written(message, tmp_path):
    config, shards, folder = REFUSED[message]
    place = None if folder is None else tmp_path / folder
    with pytest.raises(UserError, match=message) as caught:
        fit(tokens(), config, replace(TRAIN, latent_shards=shards), place, progress=False)
    assert len(str(caught.value).splitlines()) == 1 and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="latent_shards=0: must be at least 1"):
        TrainConfig(latent_shards=0)


PRESETS = sorted(file.stem for file in (folder() / "sae").glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_the_shards_and_can_be_sharded(name):
    given = preset("sae", name)
    assert given["train"]["latent_shards"] == 1 == given["train"]["accumulate"], "settings of the command"
    (config,), train = sae_configs({**given, "train": {**given["train"], "latent_shards": 4}}, "layer", 768, [0])
    sharing.check_shards([config], train, 8)


def test_shards_and_batches_that_processes_cannot_share_are_refused_before_the_long_work(monkeypatch):
    sharing.check_shards([CONFIG], replace(TRAIN, latent_shards=2))
    sharing.check_shards([CONFIG], replace(TRAIN, latent_shards=2), 4)
    with pytest.raises(UserError, match="latent_shards=2: has to divide the number of processes, 3"):
        sharing.check_shards([CONFIG], replace(TRAIN, latent_shards=2), 3)
    with pytest.raises(UserError, match="batch_size=65: divisible by the 2 processes"):
        sharing.check_shards([CONFIG], replace(TRAIN, batch_size=65, latent_shards=2), 4)
    monkeypatch.setattr(Batches, "moments", lambda batches: pytest.fail("a pass over the data"))
    two = SimpleNamespace(data=SimpleNamespace(size=2))
    with pytest.raises(UserError, match="batch_size=65: divisible by the 2 processes"):
        sharing._jobs(Batches(tokens(), 65), [CONFIG], TRAIN, None, None, None, "cpu", two)
