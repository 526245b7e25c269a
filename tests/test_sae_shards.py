"""Latents sharded over real processes: the choice, the step and the files of one process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_processes import each
from safetensors.torch import load_file, save_file
from test_sae_memory import Held

from saelab.sae import SAE, Gate, SAEConfig, Trainer, objectives, rules
from saelab.sae.distributed import World, draw_rows

D, LATENTS, K, BATCH, STEPS = 16, 768, 16, 128, 50
# Some latents fall silent, so that AuxK has work; screen=float32 so that all see the same numbers.
CONFIG = SAEConfig(D, LATENTS, k=K, lr=1e-3, screen="float32", clip=1.0, dead_after=3 * BATCH, auxk_k=3, auxk_stride=2)
RULES = {
    "topk": CONFIG,
    "batchtopk": replace(CONFIG, rule="batchtopk"),
    "matryoshka": replace(CONFIG, rule="batchtopk", prefixes=(0.1, 0.4, 1)),
    "uncounted": replace(CONFIG, clip=0.0),  # as on devices that are not waited for
    "archetypal": replace(CONFIG, decoder="archetypal", candidates=100, multi_topk=True),
    "relu": replace(CONFIG, rule="relu", l1=0.1, resample_every=10, lr=1e-4),  # its first encoder rows are short
    "jumprelu": replace(CONFIG, rule="jumprelu", weight_decay=0.01),
}


def batch(step: int) -> torch.Tensor:
    """Tokens that are sums of few directions, some of them much more common than others."""
    g = torch.Generator().manual_seed(1000 + step)
    parts = torch.randn(64, D, generator=torch.Generator().manual_seed(0))
    codes = torch.rand(BATCH, 64, generator=g) * (torch.rand(BATCH, 64, generator=g) < 0.1)
    return codes @ parts + 0.05 * torch.randn(BATCH, D, generator=g) + 1


def train(config: SAEConfig, world: World, watch: list[np.ndarray]) -> tuple[Trainer, dict]:
    """50 steps; `watch` gets which latents of this shard each of this process' tokens keeps, step by step.

    Gates begin with every seventh latent silent, so that there is something to resample, or to revive.
    """
    trainer, metrics = Trainer(config, world=world), {}
    keep, gate = objectives.keep, type(trainer.rule)
    opens = getattr(gate, "open", None)

    def watched(pre, config, world, weights, centred):
        pairs, *rest = keep(pre, config, world, weights, centred)
        chosen = torch.zeros(len(centred), len(weights["W_enc"]), dtype=torch.bool)
        bags = torch.arange(len(pairs.offsets) - 1).repeat_interleave(pairs.offsets.diff())
        fires = pairs.values > 0
        chosen[bags[fires] % len(centred), pairs.latents[fires].long()] = True
        watch.append(chosen.numpy())
        return pairs, *rest

    def watched_gate(self, *given):
        made = opens(self, *given)
        watch.append((made.codes.detach() > 0).numpy())
        return made

    if isinstance(trainer.rule, Gate):
        trainer.start(share(0, world))
        rows = world.rows(LATENTS)
        trainer.weights["b_enc"][torch.arange(rows.start, rows.stop) % 7 == 0] = -100
        gate.open = watched_gate
    objectives.keep = watched
    try:
        trainer.counts_silent = config is not RULES["uncounted"]
        for step in range(STEPS):
            metrics = trainer.step(share(step, world))
    finally:
        objectives.keep = keep
        if opens is not None:
            gate.open = opens
    return trainer, metrics


def share(step: int, world: World) -> torch.Tensor:
    """What a process sees of a step's tokens."""
    return batch(step).view(world.data.size, -1, D)[world.data.rank]


def train_shards(folder: Path, shards: int, which: list[str]) -> None:
    world = World(shards)
    for rule in which:
        config = RULES[rule]
        watch: list[np.ndarray] = []
        trainer, metrics = train(config, world, watch)
        out = folder / f"{rule}-{world.data.rank}-{world.latents.rank}"
        weights = {name: tensor.clone() for name, tensor in trainer.weights.items()}
        extra = {"followed": trainer.threshold, "silent": trainer.silent}
        extra |= {"codes": trainer.sae.encode(batch(0)).dense(), "rebuilt": trainer.sae(batch(0))}
        extra |= {f"metric.{name}": value.float() for name, value in metrics.items()}
        save_file(weights | extra, f"{out}.safetensors")
        np.save(f"{out}.npy", np.packbits(np.stack(watch), axis=2))


@pytest.fixture(scope="module")
def alone() -> dict:
    found = {}
    for rule, config in RULES.items():
        watch: list[np.ndarray] = []
        trainer, metrics = train(config, World(), watch)
        found[rule] = (trainer, metrics, np.stack(watch))
    return found


@pytest.mark.parametrize(("size", "shards"), [(2, 2), (4, 4), (4, 2)])
def test_shards_choose_and_learn_what_one_process_does(size, shards, tmp_path, alone):
    which = [rule for rule in RULES if rule != "archetypal" or size == shards]
    assert each(size, tmp_path / "store", train_shards, tmp_path, shards, which) == [0] * size
    rows = size // shards
    for rule in which:
        trainer, metrics, chosen = alone[rule]
        parts = [[f"{rule}-{i}-{s}" for s in range(shards)] for i in range(rows)]
        masks = [
            np.concatenate([np.unpackbits(np.load(tmp_path / f"{p}.npy"), axis=2) for p in row], 2) for row in parts
        ]
        found, gates = np.concatenate(masks, axis=1).astype(bool), isinstance(trainer.rule, Gate)
        moved = found != chosen
        assert moved.any(2).mean() <= 1e-4 if not gates else moved.sum() <= 4, (rule, moved.sum())
        # A gate opens or not where two float32 values are as good as equal; that latent then learns from other tokens.
        kept = torch.from_numpy(~moved.any((0, 1)) | (not gates))
        files = [[load_file(tmp_path / f"{p}.safetensors") for p in row] for row in parts]
        for row in files:
            whole = {name: torch.cat([part[name] for part in row]) for name in (*trainer.weights, "silent", "codes")}
            whole["b_dec"], whole["codes"] = row[0]["b_dec"], torch.cat([part["codes"] for part in row], dim=1)
            for name, tensor in trainer.weights.items():
                own = slice(None) if name == "b_dec" else kept
                assert float((whole[name] - tensor)[own].norm() / tensor[own].norm()) <= 1e-5, (rule, name)
            assert torch.equal(whole["silent"][kept], trainer.silent[kept])
            for part in row:
                assert torch.equal(part["b_dec"], files[0][0]["b_dec"])
                torch.testing.assert_close(part["followed"], trainer.threshold, rtol=1e-5, atol=0)
                for name, value in metrics.items():
                    edge = 2 / BATCH if gates and name == "l0" else 0  # two pairs that rounding moves over a threshold
                    close = pytest.approx(float(value), rel=1e-5, abs=edge)
                    assert float(part[f"metric.{name}"]) == close, (rule, name)
            check_encoding(trainer, whole, row)
        if gates:
            assert float(trainer.weights["b_enc"][::7].min()) > -50, "there was something to resample or to revive"
        else:
            assert "auxk" in metrics and int(metrics["silent"]) > 3, "AuxK must have had a choice"


def check_encoding(trainer: Trainer, whole: dict[str, torch.Tensor], row: list[dict[str, torch.Tensor]]) -> None:
    """Shards encode and reconstruct as one SAE of their weights does."""
    named = {name: whole[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    threshold = whole.get("threshold")
    if trainer.rule.threshold == "followed":
        threshold = row[0]["followed"].expand(LATENTS)
    sae = SAE(**named, meta=trainer.sae.meta, threshold=threshold)
    codes = sae.encode(batch(0)).dense()
    assert ((codes > 0) == (whole["codes"] > 0)).float().mean() >= 0.99999
    torch.testing.assert_close(whole["codes"], codes, rtol=1e-4, atol=1e-4)
    for part in row:
        torch.testing.assert_close(part["rebuilt"], sae(batch(0)), rtol=1e-4, atol=1e-4)


# Shares of 20 and of 3 tokens, in which every eighth token of the batch lies elsewhere, or none.
SHARED = {
    2: SAEConfig(D, LATENTS, k=4, lr=1e-3, screen="float32", dead_after=120, auxk_k=3),
    4: SAEConfig(D, LATENTS, k=4, lr=1e-3, screen="float32", dead_after=36, auxk_k=3),
}
SMALL = {2: 40, 4: 12}  # tokens a batch, by the number of processes


def train_on_shares(folder: Path | None, size: int) -> tuple[Trainer, dict]:
    world = World()
    trainer, metrics = Trainer(SHARED[size], world=world), {}
    for step in range(20):
        metrics = trainer.step(batch(step)[: SMALL[size]].view(world.data.size, -1, D)[world.data.rank])
    if folder is not None:
        extra = {"auxk": metrics["auxk"].view(1)}
        save_file({**trainer.weights, **extra}, folder / f"{world.data.rank}.safetensors")
    return trainer, metrics


@pytest.mark.parametrize("size", SHARED)
def test_auxk_sees_the_same_tokens_however_many_processes_share_the_batch(size, tmp_path):
    assert each(size, tmp_path / "store", train_on_shares, tmp_path, size) == [0] * size
    trainer, metrics = train_on_shares(None, size)
    for rank in range(size):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert float(found["auxk"]) == pytest.approx(float(metrics["auxk"]), rel=1e-4)
        for name, tensor in trainer.weights.items():
            assert float((found[name] - tensor).norm() / tensor.norm()) <= 1e-5, (rank, name)


@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_a_shard_draws_its_rows_of_the_whole_draw(draw):
    """Whatever the widths: torch draws a last piece of fewer than 16 normal numbers in another way."""
    for latents, width in ((768, 16), (60, 7), (12, 1), (9000, 33)):
        generator = torch.Generator().manual_seed(3)
        whole, after = draw(latents, width, generator=generator), draw(5, generator=generator)
        for shards in (1, 2, 3, 4):
            rows = [slice(rank * latents // shards, (rank + 1) * latents // shards) for rank in range(shards)]
            for own in rows:
                generator = torch.Generator().manual_seed(3)
                assert torch.equal(draw_rows(draw, latents, width, own, generator), whole[own])
                assert torch.equal(draw(5, generator=generator), after), "what is drawn later is the same too"


TIED = torch.tensor([3.0] * 3 + [2] * 8 + [1] * 5 + [3] * 2 + [2] * 4 + [0] * 10)  # across the shards of 32 latents


def choose_among_equals(folder: Path, shards: int, k: int) -> None:
    """Write [row, latent] of what this process keeps of six equal tokens, with all pre-activations and in chunks."""
    world, rows_of_six = World(shards), torch.ones(6, 1)
    own, x = world.rows(32), rows_of_six.chunk(world.data.size)[world.data.rank]
    weights = {"W_enc": TIED[own].unsqueeze(1), "b_enc": torch.zeros(32 // shards)}
    for rule in ("topk", "batchtopk"):
        config = SAEConfig(1, 32, rule=rule, k=k, screen="float32")
        for name, pre in (("held", x @ weights["W_enc"].T), ("chunked", None)):
            pairs, _ = rules.find(rule).pairs(pre, config, world, weights, x)
            rows = torch.arange(len(x)).repeat_interleave(pairs.offsets.diff()) + len(x) * world.data.rank
            found = torch.stack([rows, pairs.latents + own.start])
            np.save(folder / f"{rule}-{name}-{world.all.rank}.npy", found.numpy())


@pytest.mark.parametrize(("size", "shards", "k"), [(2, 1, 7), (4, 2, 7), (4, 4, 7), (4, 4, 20)])
def test_ties_across_a_boundary_keep_exactly_k_and_the_first(size, shards, k, tmp_path):
    """With k = 20 each shard of 8 offers all it has."""
    assert each(size, tmp_path / "store", choose_among_equals, tmp_path, shards, k) == [0] * size
    first_of_row = TIED.sort(descending=True, stable=True)[1][:k].tolist()
    first_of_all = TIED.repeat(6).sort(descending=True, stable=True)[1][: 6 * k].tolist()
    expected = {
        "topk": [(row, latent) for row in range(6) for latent in first_of_row],
        "batchtopk": [divmod(flat, 32) for flat in first_of_all],
    }
    if k == 7:  # of each row the five threes and two twos; of the batch all threes, and the first token's twelve twos
        assert sorted(first_of_row) == [0, 1, 2, 3, 4, 16, 17] and len(expected["batchtopk"]) == 42
    for rule, pairs in expected.items():
        for name in ("held", "chunked"):
            files = tmp_path.glob(f"{rule}-{name}-*.npy")
            found = [tuple(pair) for file in files for pair in np.load(file).T.tolist()]
            assert sorted(found) == sorted(pairs), (rule, name)


def choose_all_in_one(folder: Path) -> None:
    """The k largest of each token, and of the batch, lie in the last shard."""
    world = World(4)
    own, x = world.rows(32), torch.rand(5, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    W = torch.rand(32, 8, generator=torch.Generator().manual_seed(1))
    W[24:] += 10
    weights = {"W_enc": W[own], "b_enc": torch.zeros(8)}
    for rule in ("topk", "batchtopk"):
        config = SAEConfig(8, 32, rule=rule, k=8, screen="float32")
        pairs, _ = rules.find(rule).pairs(x @ W[own].T, config, world, weights, x)
        assert len(pairs.values) == (40 if world.latents.rank == 3 else 0)
        if world.latents.rank == 3:
            assert pairs.latents.view(5, 8).sort(1).values.tolist() == [list(range(8))] * 5


def test_all_winners_in_one_shard_are_kept(tmp_path):
    assert each(4, tmp_path / "store", choose_all_in_one, tmp_path) == [0] * 4


WIDE, WIDTH, TOKENS = 4096, 64, 64  # so that rows of weights weigh more than tokens
BUFFERS = {"topk": 2, "jumprelu": 5}  # of pre-activations in float32 that a step adds at most, by docs/scale.md


def hold(shards: int, rule: str) -> int:
    """Peak of the bytes of tensors in three steps of a new trainer."""
    config = SAEConfig(WIDTH, WIDE, rule=rule, k=8, screen="float32")
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    world = World(shards)
    with Held() as held:
        trainer = Trainer(config, world=world)
        for _ in range(3):
            trainer.step(x)
    return held.peak


def hold_shards(folder: Path, shards: int, rule: str) -> None:
    (folder / f"{shards}-{torch.distributed.get_rank()}").write_text(str(hold(shards, rule)))


@pytest.mark.parametrize(("shards", "rule"), [(2, "topk"), (4, "topk"), (4, "jumprelu")])
def test_each_process_holds_its_share_of_the_memory(shards, rule, tmp_path):
    whole = hold(1, rule)
    assert 32 * WIDE * WIDTH < whole < 1.5 * 32 * WIDE * WIDTH + BUFFERS[rule] * 4 * TOKENS * WIDE, "by docs/scale.md"
    assert each(shards, tmp_path / "store", hold_shards, tmp_path, shards, rule) == [0] * shards
    for rank in range(shards):
        peak = int((tmp_path / f"{shards}-{rank}").read_text())
        assert peak <= 1.15 / shards * whole + TOKENS * (WIDE // shards) * 4, (rank, peak, whole)
