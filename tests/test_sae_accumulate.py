"""Batches in pieces: the steps of the whole batch, in the memory of a piece, and what they refuse."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_processes import each
from safetensors.torch import load_file, save_file
from test_sae_memory import Held

from saelab.artifacts import digest, read_json
from saelab.artifacts import plain as plainly
from saelab.cache.batches import Batches
from saelab.errors import UserError
from saelab.run.stages.sae import _recipe
from saelab.sae import SAEConfig, TrainConfig, Trainer, fit
from saelab.sae import fit as fitting
from saelab.sae.distributed import World
from saelab.sae.fit import check_shards

D, LATENTS, BATCH, STEPS = 24, 256, 1024, 20
CONFIG = SAEConfig(D, LATENTS, k=8, lr=1e-3, dead_after=30_000, auxk_k=6, auxk_stride=3, screen="float32")
RULES = {
    "topk": CONFIG,
    "screened": replace(CONFIG, screen="bfloat16", clip=0.1),
    "uncounted": replace(CONFIG, auxk_stride=1),  # as on devices that are not waited for
    "matryoshka": replace(CONFIG, prefixes=(0.25, 1)),
    "multi_topk": replace(CONFIG, multi_topk=True),
    "archetypal": replace(CONFIG, decoder="archetypal", candidates=50),
    "relu": replace(CONFIG, rule="relu", l1=0.2, resample_every=6, lr=1e-4),
    "jumprelu": replace(CONFIG, rule="jumprelu"),
}
BY_PIECE = replace(CONFIG, rule="batchtopk", choose_by_piece=True)
CHOSEN = {"plain": BY_PIECE, "prefixes": replace(BY_PIECE, prefixes=(0.25, 1)), "every": replace(BY_PIECE, auxk_k=99)}
SHARED = {rule: RULES[rule] for rule in ("topk", "relu", "jumprelu")} | {"batchtopk": BY_PIECE}


def batch(step: int) -> torch.Tensor:
    """Tokens that grow from the first to the last, so that no piece is like the batch."""
    g = torch.Generator().manual_seed(100 + step)
    parts = torch.randn(64, D, generator=torch.Generator().manual_seed(0))
    codes = torch.rand(BATCH, 64, generator=g) * (torch.rand(BATCH, 64, generator=g) < 0.1)
    return (codes @ parts) * torch.linspace(0.2, 1.8, BATCH).unsqueeze(1) + 1


def start(config: SAEConfig, x: torch.Tensor, world: World | None = None, pieces: int = 1) -> Trainer:
    """A trainer after one step of which every seventh latent is silent, and won't fire by itself."""
    trainer = Trainer(config, torch.device("cpu"), world=world, accumulate=pieces)
    trainer.counts_silent = config is not RULES["uncounted"]
    trainer.start(x)
    rows = trainer.world.rows(LATENTS)
    far = torch.arange(rows.start, rows.stop) % 7 == 0
    trainer.weights["b_enc"][far] = -3
    trainer.silent[far] = config.dead_after
    return trainer


@pytest.mark.parametrize("rule", RULES)
def test_pieces_learn_what_the_whole_batch_does(rule):
    whole, cut = start(RULES[rule], batch(0)), start(RULES[rule], batch(0), pieces=4)
    seen = set()
    for step in range(STEPS):
        wanted, found = whole.step(batch(step)), cut.step(batch(step))
        seen |= {"silent"} if int(wanted["silent"]) else set()
        seen |= wanted.keys() & {"auxk"}
        assert found.keys() == wanted.keys()
        for name, number in wanted.items():
            torch.testing.assert_close(found[name].float(), number.float(), rtol=2e-6, atol=0, msg=f"{name}, {step}")
        assert torch.equal(cut.silent, whole.silent), "whoever fired in any piece"
    assert seen == ({"silent", "auxk"} if whole.config.rule == "topk" else {"silent"})
    for name, weight in whole.weights.items():
        assert float((cut.weights[name] - weight).norm() / weight.norm()) < 1e-6, name


def test_one_piece_for_each_token_is_the_extreme():
    x = batch(0)[:16]
    whole, cut = Trainer(CONFIG), Trainer(CONFIG, accumulate=16)
    for trainer in (whole, cut):
        trainer.step(x)
    torch.testing.assert_close(cut.weights["W_enc"], whole.weights["W_enc"], rtol=1e-5, atol=1e-7)


def choose_each(x: torch.Tensor, trainer: Trainer, pieces: int) -> tuple[torch.Tensor, dict, list[float]]:
    """Loss, gradients and smallest kept values where each piece keeps k times its own tokens: dense, in float64."""
    config, x, parts = trainer.config, x.double(), range(pieces)
    leaves = {name: weight.double().requires_grad_() for name, weight in trainer.weights.items()}
    pre = (x - leaves["b_dec"]) @ leaves["W_enc"].T + leaves["b_enc"]
    least = torch.stack([pre[i::pieces].flatten().topk(config.k * len(x) // pieces).values[-1] for i in parts])
    codes = torch.where(pre >= least.repeat(len(x) // pieces).unsqueeze(1), pre, 0).relu()
    sizes, loss = config.prefix_sizes or (config.latents,), torch.zeros(())
    for size in sizes:
        error = codes[:, :size] @ leaves["W_dec"][:size] + leaves["b_dec"] - x
        loss = loss + error.square().sum() / (len(sizes) * len(x) * trainer.variance.double())
    plain, silent = loss, trainer.silent >= config.dead_after
    left, aux = -error.detach()[:: config.auxk_stride], pre[:: config.auxk_stride, silent]
    best = aux >= aux.topk(min(config.auxk_k, int(silent.sum()))).values[:, -1:]
    guess = torch.where(best, aux, 0).relu() @ leaves["W_dec"][silent]
    loss = loss + config.auxk_weight * (guess - left).square().sum() / left.square().sum()
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    rows = leaves["W_dec"].detach()
    grads["W_dec"] = grads["W_dec"] - (grads["W_dec"] * rows).sum(1, keepdim=True) * rows
    kept = (codes.detach()[i::pieces] for i in parts)
    return plain.detach(), grads, [float(part[part > 0].min()) for part in kept]


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("kind", CHOSEN)
def test_pieces_that_choose_by_themselves_have_the_sum_of_their_gradients(kind, pieces):
    x = batch(0)
    trainer = start(CHOSEN[kind], x, pieces=pieces)
    trainer.weights["W_enc"] += 0.1 * torch.randn(LATENTS, D, generator=torch.Generator().manual_seed(1))
    trainer.weights["b_enc"][::7] = 0.05  # silent so far, but AuxK has something to hold on to
    loss, grads, least = choose_each(x, trainer, pieces)
    found = trainer._gradients(x, len(x))
    for name, gradient in grads.items():
        assert float((found.grads[name] - gradient).norm() / gradient.norm()) < 1e-5, name
    assert float(found.metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(found.metrics["auxk"]) > 0 and found.threshold.tolist() == pytest.approx(least, rel=1e-5)
    whole = start(CHOSEN[kind], x)
    whole.weights = {name: weight.clone() for name, weight in trainer.weights.items()}
    other = whole._gradients(x, len(x)).grads["W_enc"]
    assert float((other - grads["W_enc"]).norm() / other.norm()) > 0.01, "the batch chooses otherwise"
    trainer.step(x)
    assert float(trainer.threshold) == pytest.approx(sum(least) / pieces, rel=1e-5)


def test_a_piece_that_keeps_nothing_leaves_the_threshold_to_the_others():
    x = batch(0)
    trainer = start(BY_PIECE, x, pieces=4)
    trainer.weights["b_enc"].fill_(0)
    x[1::4] = trainer.weights["b_dec"]
    *_, least = choose_each(x[2::4], trainer, 1)
    every = [choose_each(x[i::4], trainer, 1)[2][0] for i in (0, 2, 3)]
    assert least[0] == every[1]
    trainer.step(x)
    assert float(trainer.threshold) == pytest.approx(sum(every) / 3, rel=1e-5)


@pytest.mark.parametrize("screen", ["float32", "bfloat16", "int8"])
def test_one_piece_that_chooses_by_itself_is_the_batch(screen):
    config = replace(BY_PIECE, screen=screen)
    one, plain = Trainer(config), Trainer(replace(config, choose_by_piece=False))
    for step in range(3):
        found, wanted = (trainer.step(batch(step)) for trainer in (one, plain))
        assert all(torch.equal(found[name], number) for name, number in wanted.items())
    assert all(torch.equal(one.state()[name], tensor) for name, tensor in plain.state().items())


@pytest.mark.parametrize("screen", ["bfloat16", "int8"])
def test_pieces_are_chosen_by_the_screen_as_without(screen):
    screened, plain = (start(replace(BY_PIECE, screen=by), batch(0), pieces=4) for by in (screen, "float32"))
    for step in range(4):
        found, wanted = (trainer.step(batch(step)) for trainer in (screened, plain))
        assert ("screen_recall" in found) == (step == 0)
        for name, number in wanted.items():
            torch.testing.assert_close(found[name].float(), number.float(), rtol=1e-4, atol=1e-6, msg=name)
    assert screened.screened and float(found["fvu"]) > 0


def train_share(folder: Path) -> None:
    """Twenty steps of each rule in pieces, by one of four processes: two shares of the batch, two of the latents."""
    world = World(2)
    for rule, config in SHARED.items():
        shares = [batch(step).view(world.data.size, -1, D)[world.data.rank] for step in range(STEPS)]
        trainer = start(config, shares[0], world, pieces=4)
        for x in shares:
            metrics = trainer.step(x)
        numbers = {f"metric.{name}": number.float() for name, number in metrics.items()}
        weights = {name: weight.clone() for name, weight in trainer.weights.items()}
        save_file({**weights, **numbers, "silent": trainer.silent}, folder / f"{rule}-{world.all.rank}.safetensors")


def test_pieces_of_shares_of_shards_learn_what_one_process_does(tmp_path):
    assert each(4, tmp_path / "store", train_share, tmp_path) == [0] * 4, sorted(tmp_path.glob("store.*"))
    for rule, config in SHARED.items():
        whole = start(config, batch(0), pieces=4 if config.choose_by_piece else 1)
        for step in range(STEPS):
            metrics = whole.step(batch(step))
        parts = [load_file(tmp_path / f"{rule}-{rank}.safetensors") for rank in range(2)]
        for name, weight in whole.weights.items():
            found = parts[0][name] if name == "b_dec" else torch.cat([part[name] for part in parts])
            assert float((found - weight).norm() / weight.norm()) < 1e-6, f"{rule}: {name}"
        assert torch.equal(torch.cat([part["silent"] for part in parts]), whole.silent)
        for name, number in metrics.items():
            torch.testing.assert_close(parts[0][f"metric.{name}"], number.float(), rtol=1e-5, atol=0, msg=name)


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "relu", "jumprelu"])
def test_a_step_holds_the_buffers_of_a_piece(rule):
    settings = {"screen": "float32" if rule.endswith("topk") else "auto", "choose_by_piece": rule == "batchtopk"}
    config = SAEConfig(8, 2048, rule=rule, k=8, dead_after=10**6, auxk_stride=1, **settings)
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))

    def peak(pieces: int) -> float:
        trainer = Trainer(config, accumulate=pieces)
        for _ in range(2):
            trainer.step(x)
        trainer._pre = None
        trainer.silent[::4] = config.dead_after
        with Held() as held:
            trainer.step(x)
        return held.peak

    rows = 8 * 2048 * 4  # bytes of one weight
    assert peak(8) < peak(1) / 8 + 8 * rows + 6 * x.nbytes


def tokens() -> np.ndarray:
    return np.random.default_rng(0).normal(2.0, 1.0, (900, 10)).astype(np.float16)


SMALL = SAEConfig(10, 48, k=3, lr=2e-3, dead_after=300)
TRAIN = TrainConfig(batch_size=64, steps=40, log_every=3, checkpoint_every=5)


class Stop(Exception):
    pass


def test_the_artifact_is_the_one_of_the_whole_batch_unless_pieces_choose():
    store = SimpleNamespace(layer="layer", digest="digest")
    batchtopk = replace(SMALL, rule="batchtopk")
    chosen, plain = replace(batchtopk, choose_by_piece=True), _recipe(store, batchtopk, TRAIN)
    assert _recipe(store, chosen, TRAIN) == plain, "one piece is the batch"
    pieces = [_recipe(store, chosen, replace(TRAIN, accumulate=n, latent_shards=n))[1] for n in (2, 4)]
    assert len({digest(recipe) for recipe in (plain[1], *pieces)}) == 3
    assert plainly(pieces[0])["sae"]["choose_by_piece"] and plainly(pieces[0])["train"]["accumulate"] == 2
    assert not plainly(plain[1])["sae"].keys() & {"choose_by_piece"}
    assert _recipe(store, SMALL, replace(TRAIN, accumulate=4)) == _recipe(store, SMALL, TRAIN)
    assert _recipe(store, SMALL, replace(TRAIN, batch_size=32)) != _recipe(store, SMALL, TRAIN)


def test_recipes_do_not_say_it_and_a_run_goes_on_with_other_pieces(tmp_path):
    def stops(which: int, now: int, numbers: dict) -> None:
        if now >= 27:
            raise Stop

    made = fit(tokens(), SMALL, TRAIN, tmp_path / "whole", progress=False).sae
    with pytest.raises(Stop):
        fit(tokens(), SMALL, TRAIN, tmp_path / "cut", logger=stops, progress=False)
    other = replace(TRAIN, accumulate=4)
    found = fit(tokens(), SMALL, other, tmp_path / "cut", progress=False).sae
    torch.testing.assert_close(found.W_dec, made.W_dec, rtol=1e-5, atol=1e-6)
    recipes = [(tmp_path / name / "training.json").read_bytes() for name in ("whole", "cut")]
    assert recipes[0] == recipes[1] and b"accumulate" not in recipes[0]
    again = fit(tokens(), SMALL, replace(TRAIN, accumulate=2), tmp_path / "whole", progress=False).sae
    assert torch.equal(again.W_enc, made.W_enc), "finished, so returned as it lies there"


def test_pieces_that_choose_are_part_of_the_recipe_and_a_cut_run_goes_on_to_the_same_bytes(tmp_path):
    def stops(which: int, now: int, numbers: dict) -> None:
        if now >= 27:
            raise Stop

    config, train = replace(SMALL, rule="batchtopk", choose_by_piece=True), replace(TRAIN, accumulate=4)
    fit(tokens(), config, train, tmp_path / "whole", progress=False)
    with pytest.raises(Stop):
        fit(tokens(), config, train, tmp_path / "cut", logger=stops, progress=False)
    with pytest.raises(UserError, match="another recipe"):
        fit(tokens(), config, replace(train, accumulate=2), tmp_path / "cut", progress=False)
    fit(tokens(), config, train, tmp_path / "cut", progress=False)
    for file in ("sae.safetensors", "metrics.jsonl", "quality.json", "training.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()
    recipe = read_json(tmp_path / "whole" / "training.json")
    assert (recipe["sae"]["choose_by_piece"], recipe["train"]["accumulate"]) == (True, 4)
    with pytest.raises(UserError, match=r"train\.accumulate was 4, is 2"):
        fit(tokens(), config, replace(train, accumulate=2), tmp_path / "whole", progress=False)
    fit(tokens(), config, TRAIN, tmp_path / "one", progress=False)
    fit(tokens(), replace(config, choose_by_piece=False), TRAIN, tmp_path / "without", progress=False)
    for file in ("sae.safetensors", "training.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


REFUSED = {
    "accumulate=2: needs rule=topk or jumprelu or relu; set it to 1, or choose_by_piece=true, and each piece keeps k": (
        {"rule": "batchtopk"},
        {"accumulate": 2},
    ),
    "accumulate=3: has to divide the 64 tokens that a process takes": (
        {"rule": "batchtopk", "choose_by_piece": True},
        {"accumulate": 3},
    ),
    "accumulate=3: has to divide the 64 tokens that a process takes a step": ({}, {"accumulate": 3}),
    "accumulate=0: must be at least 1": ({}, {"accumulate": 0}),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_cut_is_refused_in_a_line_before_the_work(line, tmp_path, monkeypatch):
    config, train = REFUSED[line]
    monkeypatch.setattr(Batches, "moments", lambda batches: pytest.fail("a pass over the data"))
    with pytest.raises(UserError, match=line):
        fit(tokens(), replace(SMALL, **config), replace(TRAIN, **train), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rule", ["topk", "relu", "jumprelu"])
def test_the_consent_is_refused_where_it_means_nothing(rule):
    with pytest.raises(UserError, match=r"choose_by_piece=True: needs rule=batchtopk, .*; leave it out") as caught:
        replace(SMALL, rule=rule, choose_by_piece=True)
    assert len(str(caught.value).splitlines()) == 1


def test_what_no_batch_can_serve_is_refused_before_tokens_are_read(monkeypatch):
    monkeypatch.setattr(fitting, "spool", lambda *given: pytest.fail("tokens were read"), raising=False)
    endless = (pytest.fail("tokens were read") for _ in count())
    with pytest.raises(UserError, match="accumulate=2: needs rule=topk"):
        fit(endless, replace(SMALL, rule="batchtopk"), replace(TRAIN, accumulate=2))
    check_shards([SMALL], replace(TRAIN, accumulate=16), 4)
    with pytest.raises(UserError, match="accumulate=32: has to divide the 16 tokens that a process takes a step"):
        check_shards([SMALL], replace(TRAIN, accumulate=32), 4)
    with pytest.raises(UserError, match="accumulate=2: has to divide the 63 tokens"):
        Trainer(SMALL, accumulate=2).step(torch.randn(63, 10))
