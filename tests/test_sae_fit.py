"""The loop: resume to the bit after a real kill, damage, several SAEs at once, two processes, bad input."""

import importlib
import itertools
import json
import logging
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from sae_processes import killed_at, together
from safetensors import safe_open

from saelab.errors import UserError
from saelab.sae import SAE, SAEConfig, TrainConfig, Trainer, checkpoints, fit, fit_many, quality

CONFIG = SAEConfig(10, 48, k=3, lr=2e-3, dead_after=300)
TRAIN = TrainConfig(batch_size=64, steps=40, log_every=3, checkpoint_every=5)


def tokens(n: int = 900, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 1.0, (n, 10)).astype(np.float16)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_a_run_killed_at_random_steps_ends_with_the_same_bytes(tmp_path, rule):
    np.save(tmp_path / "x.npy", tokens())
    assert killed_at(math.inf, tmp_path / "x.npy", tmp_path / "whole", rule)
    chance = random.Random(7)
    for _ in range(5):
        step, delay = chance.randrange(4, 38), chance.uniform(0, 0.04)
        assert not killed_at(step, tmp_path / "x.npy", tmp_path / "killed", rule, delay)
    assert killed_at(math.inf, tmp_path / "x.npy", tmp_path / "killed", rule)
    for name in ("sae.safetensors", "metrics.jsonl", "quality.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


class Stop(Exception):
    pass


def stop_at(step: int):
    def logger(which: int, now: int, numbers: dict) -> None:
        if now >= step:
            raise Stop

    return logger


RESUMED = {
    "relu": SAEConfig(10, 48, rule="relu", lr=2e-3, resample_every=7, dead_after=100),
    "jumprelu": SAEConfig(10, 48, rule="jumprelu", k=3, lr=2e-3),
    "archetypal": SAEConfig(10, 48, k=3, lr=2e-3, decoder="archetypal", candidates=20),
    "matryoshka": SAEConfig(10, 48, k=3, lr=2e-3, prefixes=(0.25, 1), weight_decay=0.1, clip=0.5),
}


@pytest.mark.parametrize("name", RESUMED)
def test_every_architecture_resumes_to_the_bit(tmp_path, name):
    fit(tokens(), RESUMED[name], TRAIN, tmp_path / "whole", progress=False)
    for step in (12, 27):
        with pytest.raises(Stop):
            fit(tokens(), RESUMED[name], TRAIN, tmp_path / "cut", progress=False, logger=stop_at(step))
    fit(tokens(), RESUMED[name], TRAIN, tmp_path / "cut", progress=False)
    for file in ("sae.safetensors", "metrics.jsonl", "quality.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()
    assert not (tmp_path / "cut" / "checkpoints").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, damage):
    fit(tokens(), CONFIG, TRAIN, tmp_path / "whole", progress=False)
    with pytest.raises(Stop):
        fit(tokens(), CONFIG, TRAIN, tmp_path / "cut", progress=False, logger=stop_at(30))
    last = sorted((tmp_path / "cut" / "checkpoints").glob("*"))[-1]
    content = bytearray(last.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[-1] ^= 1
    last.write_bytes(content)
    steps: list[int] = []
    with caplog.at_level(logging.INFO, "saelab"):
        fit(tokens(), CONFIG, TRAIN, tmp_path / "cut", progress=False, logger=lambda i, s, n: steps.append(s))
    assert "damaged" in caplog.text and last.name in caplog.text
    assert "at step 25 of 40" in caplog.text, "the checkpoint before the damaged one of step 30"
    assert steps == list(range(0, 40, 3)), "the lines from before the kill are told too"
    assert (tmp_path / "whole/sae.safetensors").read_bytes() == (tmp_path / "cut/sae.safetensors").read_bytes()


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path):
    with pytest.raises(Stop):
        fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False, logger=stop_at(12))
    before = {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}
    other = SAEConfig(10, 48, k=4, lr=2e-3, dead_after=300)
    with pytest.raises(UserError, match="another recipe"):
        fit(tokens(), other, TRAIN, tmp_path, progress=False)
    with pytest.raises(UserError, match="another recipe"):
        fit(tokens(seed=1), CONFIG, TRAIN, tmp_path, progress=False)
    assert before == {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}


OTHERS = {
    "sae.k was 3, is 4": (tokens(), replace(CONFIG, k=4), TRAIN),
    "train.log_every was 3, is 4": (tokens(), CONFIG, replace(TRAIN, log_every=4)),
    "steps was 40, is 41": (tokens(), CONFIG, replace(TRAIN, steps=41)),
    "data.variance was .*data.mean differs": (tokens(seed=1), CONFIG, TRAIN),
    "data.rows was [0-9a-f]{16}, is [0-9a-f]{16};": (tokens()[::-1], CONFIG, TRAIN),
    "data.tokens was 900, is 899": (tokens()[:-1], CONFIG, TRAIN),
}


@pytest.mark.parametrize("told", OTHERS)
def test_a_finished_sae_is_not_trained_over_by_another_recipe(tmp_path, told):
    fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"holds a finished SAE of another recipe: .*{told}.*another folder") as caught:
        fit(*OTHERS[told], tmp_path, progress=False)
    assert len(str(caught.value).splitlines()) == 1 and contents(tmp_path) == before


def contents(folder) -> dict:
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


def test_a_finished_sae_of_the_recipe_is_returned_as_it_lies_there(tmp_path, monkeypatch):
    lines: list[tuple] = []
    first = fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False, logger=lambda *told: lines.append(told))
    before, again = contents(tmp_path), []
    monkeypatch.setattr(Trainer, "step", lambda *given: pytest.fail("there is nothing to train"))
    often = replace(TRAIN, checkpoint_every=2, keep=1)  # changes nothing that is left in the end
    second = fit(tokens(), CONFIG, often, tmp_path, progress=False, logger=lambda *told: again.append(told))
    assert contents(tmp_path) == before and again == lines
    assert second.quality == first.quality and second.sae.meta == first.sae.meta and second.folder == tmp_path
    for name, tensor in first.sae.tensors().items():
        assert torch.equal(second.sae.tensors()[name], tensor), name
    wide = tokens().astype(np.float64)  # moments as another machine may have added them up
    moments = {"mean": wide.mean(0) * (1 + 1e-14), "variance": wide.var(0).sum() * (1 - 1e-14)}
    fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False, **moments)
    said = json.loads((tmp_path / "training.json").read_text())
    said["data"]["processes"] = 4
    (tmp_path / "training.json").write_text(json.dumps(said))
    fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False)
    moments["mean"] = wide.mean(0) + 1e-6  # other data
    with pytest.raises(UserError, match=r"recipe: data\.mean differs; SAE"):
        fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False, **moments)


def test_an_sae_that_does_not_say_what_it_was_trained_on_is_left_alone(tmp_path):
    """As folders from before training.json, and other packages' sae.safetensors."""
    fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False)
    (tmp_path / "training.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"no training\.json that says.*SAE\.load reads it.*another folder"):
        fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False)
    assert contents(tmp_path) == before and SAE.load(tmp_path).latents == 48
    (tmp_path / "sae.safetensors").unlink()
    fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False)
    assert (tmp_path / "sae.safetensors").read_bytes() == before[tmp_path / "sae.safetensors"][0]


def test_a_kill_between_the_record_and_the_weights_costs_nothing(tmp_path, monkeypatch):
    def dies(self, path):
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(SAE, "save", dies)
        with pytest.raises(Stop):
            fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False)
    steps: list[int] = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *given: (steps.append(self.steps), step(self, *given))[1])
    found = fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False)
    assert steps == [*range(35, 40)] and torch.equal(SAE.load(tmp_path).W_dec, found.sae.W_dec)


def test_the_record_says_in_plain_json_what_was_trained(tmp_path):
    fit(tokens(), CONFIG, TRAIN, tmp_path, progress=False)
    found, wide = json.loads((tmp_path / "training.json").read_text()), tokens().astype(np.float64)
    assert found["sae"]["k"] == 3 and found["train"]["batch_size"] == 64 and found["steps"] == 40
    assert found["data"]["tokens"] == 900 and found["data"]["mean"] == pytest.approx(wide.mean(0).tolist())
    assert found["data"]["variance"] == pytest.approx(wide.var(0).sum())


def test_several_saes_in_one_pass_equal_each_alone_to_the_bit(tmp_path):
    configs = [CONFIG, SAEConfig(10, 20, k=2, lr=1e-3, seed=5), SAEConfig(10, 48, rule="batchtopk", k=3)]
    names = ("sae.safetensors", "metrics.jsonl", "quality.json")
    fit_many(tokens(), configs, TRAIN, [tmp_path / f"together{i}" for i in range(3)], progress=False)
    for i, config in enumerate(configs):
        fit(tokens(), config, TRAIN, tmp_path / f"alone{i}", progress=False)
        for name in names:
            assert (tmp_path / f"together{i}" / name).read_bytes() == (tmp_path / f"alone{i}" / name).read_bytes()


def test_a_kill_in_the_final_passes_costs_no_sae_its_training(tmp_path, monkeypatch):
    module, folders = importlib.import_module("saelab.sae.job"), [tmp_path / "0", tmp_path / "1"]
    measured, taken = [], []

    def dies(sae, batches):
        measured.append(sae)
        if len(measured) == 2:
            raise Stop
        return quality(sae, batches)

    monkeypatch.setattr(module, "quality", dies)
    configs = [CONFIG, replace(CONFIG, seed=1)]
    with pytest.raises(Stop):
        fit_many(tokens(), configs, TRAIN, folders, progress=False)
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *given: (taken.append(self.steps), step(self, *given))[1])
    fit_many(tokens(), configs, TRAIN, folders, progress=False)
    assert taken == [*range(35, 40)], "the first is whole, the second went on from its last checkpoint"
    assert not list(tmp_path.rglob("step-*"))


def test_an_iterator_trains_as_the_array_that_it_spells_out(caplog):
    x = tokens()
    whole = fit(x, CONFIG, TRAIN, progress=False).sae
    parts = (torch.from_numpy(part) for part in np.split(x, [100, 101, 640]))
    for name, tensor in fit(parts, CONFIG, TRAIN, progress=False).sae.tensors().items():
        assert torch.equal(tensor, whole.tensors()[name]), name
    short = TrainConfig(batch_size=64, steps=5)
    endless = fit(itertools.repeat(x[:70]), CONFIG, short, progress=False).sae
    rows = np.concatenate([x[:70]] * 5)[: 5 * 64]
    assert torch.equal(endless.W_dec, fit(rows, CONFIG, short, progress=False).sae.W_dec)
    with caplog.at_level("WARNING", "saelab"):
        early = fit(iter([x[:128]]), CONFIG, short, progress=False).sae
    assert "the iterator ended after 128 tokens: 5 steps of 64 go over them 2.5 times" in caplog.text
    assert torch.equal(early.W_dec, fit(x[:128], CONFIG, short, progress=False).sae.W_dec)
    with pytest.raises(UserError, match="used up"):
        fit(iter([]), CONFIG, TRAIN, progress=False)
    with pytest.raises(UserError, match=r"chunks \[tokens, 10\]"):
        fit([x[:50], x[:50, :4]], CONFIG, TRAIN, progress=False)


def test_a_saved_sae_is_complete(tmp_path):
    x = torch.from_numpy(tokens().astype(np.float32))
    sae = fit(tokens(), SAEConfig(10, 48, rule="batchtopk", k=3), TRAIN, tmp_path, progress=False).sae
    loaded = SAE.load(tmp_path)
    assert torch.equal(loaded.encode(x).dense(), sae.encode(x).dense()) and torch.equal(loaded(x), sae(x))
    assert loaded.meta == sae.meta
    (tmp_path / "sae.safetensors").write_bytes((tmp_path / "sae.safetensors").read_bytes()[:500])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        SAE.load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        SAE.load(tmp_path / "nowhere.safetensors")


def test_bad_activations_are_named_by_file_and_row(tmp_path):
    x = tokens()
    x[321, 4] = np.inf
    np.save(tmp_path / "layer4.npy", x)
    with pytest.raises(UserError, match=r"layer4\.npy.*row 321"):
        fit(np.load(tmp_path / "layer4.npy", mmap_mode="r"), CONFIG, TRAIN, tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="d_in=10: the activations have 7"):
        fit(np.ones((50, 7), np.float32), CONFIG, TRAIN, progress=False)
    assert not (tmp_path / "out").exists()


def test_divergence_stops_with_the_last_good_checkpoint(tmp_path):
    """The rate rises so slowly to far too much that there are checkpoints by the time the loss explodes."""
    rising = TrainConfig(batch_size=64, steps=400, log_every=3, checkpoint_every=5, warmup=1.0, anneal=0.0)
    seen: list[dict] = []
    with pytest.raises(
        UserError, match=r"lr=3\.0e\+01: training diverged.*try lr=1\.0e\+01 or clip=.*checkpoint is kept"
    ):
        fit(
            tokens(),
            SAEConfig(10, 48, rule="relu", lr=30.0),
            rising,
            tmp_path,
            progress=False,
            logger=lambda which, step, numbers: seen.append({"step": step, **numbers}),
        )
    assert len(seen) >= 2 and all(line["fvu"] < 20 for line in seen), "nothing that has diverged was logged"
    files = sorted((tmp_path / "checkpoints").iterdir())
    step, state = checkpoints.latest(tmp_path / "checkpoints", recipe_of(files[-1]))
    assert files[-1].name == f"step-{step:08d}.safetensors" and step % 5 == 0 and step - 6 <= seen[-1]["step"]
    assert all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point())
    assert not (tmp_path / "sae.safetensors").exists() and not (tmp_path / "quality.json").exists()


def recipe_of(file) -> str:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()["recipe"]


def test_metrics_and_quality_tell_the_truth(tmp_path):
    x = tokens()
    found = fit(x, CONFIG, TRAIN, tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(0, 40, 3)] and lines[-1]["fvu"] < lines[0]["fvu"]
    wide = torch.from_numpy(x.astype(np.float64))
    rebuilt = found.sae(wide.float()).double()
    fvu = float((wide - rebuilt).square().sum() / (wide - wide.mean(0)).square().sum())
    codes = found.sae.encode(wide.float()).dense()
    for data in (x, [wide[:7], wide[7:500], wide[500:]], (row[None] for row in wide), [x[:300], x[300:]]):
        other = quality(found.sae, data)
        assert other["fvu"] == pytest.approx(fvu, rel=1e-6)
        assert other["l0"] == pytest.approx(float((codes > 0).sum(1).float().mean()), rel=1e-6)
        assert other["dead"] == pytest.approx(float((codes > 0).any(0).logical_not().float().mean()))
        assert sum(other["density"]["counts"]) == int((codes > 0).any(0).sum())


def test_fvu_is_measured_from_the_mean_not_from_zero():
    x = torch.randn(500, 10, generator=torch.Generator().manual_seed(0)) + 100.0
    trainer = Trainer(CONFIG)
    trainer.start(x)
    trainer.weights["b_enc"].fill_(-1e6)  # nothing fires: the reconstruction is the mean
    found = quality(trainer.sae, x)
    assert found["fvu"] == pytest.approx(1.0, abs=1e-5) and found["dead"] == 1.0 and found["l0"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu"])
def test_two_processes_give_the_result_of_one(tmp_path, rule):
    np.save(tmp_path / "x.npy", tokens())
    for size in (1, 2):
        store, out = tmp_path / f"store{size}", tmp_path / f"out{size}"
        assert together(size, store, tmp_path / "x.npy", out, rule) == [0] * size
    one, two = SAE.load(tmp_path / "out1" / "0"), SAE.load(tmp_path / "out2" / "0")
    assert [p.name for p in (tmp_path / "out2").iterdir()] == ["0"], "the second process writes nothing"
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(two.tensors()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    lines = [[json.loads(s) for s in (tmp_path / f"out{w}/0/metrics.jsonl").read_text().splitlines()] for w in (1, 2)]
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys() and a["silent"] == b["silent"]
        assert a["fvu"] == pytest.approx(b["fvu"], rel=1e-4) and a["l0"] == pytest.approx(b["l0"], rel=1e-3)


@pytest.mark.slow
def test_processes_that_see_different_folders_end_instead_of_waiting_for_each_other(tmp_path):
    np.save(tmp_path / "x.npy", tokens())
    codes = [together(2, tmp_path / f"store{i}", tmp_path / "x.npy", tmp_path / "out", "topk") for i in range(2)]
    assert codes == [[0, 0], [1, 1]], "the first process' folder holds the SAE by then, the second's nothing"


def test_a_folder_named_twice_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "one")
    for other in (tmp_path / "one", str(tmp_path / "two" / ".." / "one"), tmp_path / "link"):
        with pytest.raises(UserError, match=r"folders=.*is named for two SAEs; give each"):
            fit_many(tokens(), [CONFIG, replace(CONFIG, k=2)], TRAIN, [tmp_path / "one", other], progress=False)
        assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"format": FORMAT, "rule": "topk"}', '{"k": "3", REST}', "[" * 9])
def test_damaged_metadata_are_a_line(tmp_path, text):
    from safetensors.torch import save_file

    sae = fit(tokens(), CONFIG, replace(TRAIN, steps=2), progress=False).sae
    sae.save(tmp_path)
    with safe_open(tmp_path / "sae.safetensors", "pt") as file:
        whole = json.loads(file.metadata()["saelab"])
    rest = ", ".join(f'"{key}": {json.dumps(value)}' for key, value in whole.items() if key != "k")
    text = text.replace("FORMAT", json.dumps(whole["format"])).replace("REST", rest)
    save_file(sae.tensors(), tmp_path / "sae.safetensors", {"saelab": text})
    with pytest.raises(UserError, match="its metadata are damaged; copy or train it again"):
        SAE.load(tmp_path)
