"""Training on the fly: the order is pure, tokens are a cache's to the bit, resume is exact, nothing is written."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cache_world
import numpy as np
import pytest
import torch
from cache_world import LAYERS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sae_processes import apart

from saelab import cache
from saelab.cache import Batches, superblocks
from saelab.cache.decks import REACH
from saelab.cache.stream import ActivationStream
from saelab.cache.superblocks import InTurn, Superblocks
from saelab.errors import UserError
from saelab.sae import SAEConfig, TrainConfig, fit, fit_layers

BATCH = 64
CONFIG = SAEConfig(5, 12, k=2, lr=3e-3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """41 pictures and a host with two layers, and their caches in float32."""
    folder = tmp_path_factory.mktemp("stream")
    images, host = cache_world.pictures(folder / "pictures", 41), cache_world.host()
    stores = cache.write(images, host, LAYERS, folder / "stored", dtype="float32", batch_size=4)
    return SimpleNamespace(images=images, host=host, stores=stores, mine=len(images.ids("mine")))


def unstored(world, root, dtype="float32", **more):
    return cache.recompute(world.images, world.host, LAYERS, root, dtype=dtype, batch_size=4, **more)


def streams(world, root, pictures, **more):
    return cache.stream(unstored(world, root, **more), BATCH, 3, pictures)


def weights(fitted):
    return fitted.sae.tensors()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def ordered(pictures: int, tokens: int, most: int, batch: int, seed: int) -> ActivationStream:
    """A stream over tokens that nobody computes."""
    ids = np.arange(0, 3 * pictures, 3)
    plan = SimpleNamespace(stored=tokens, row_bytes=1)
    host = SimpleNamespace(device=torch.device("cpu"))
    forward = SimpleNamespace(images=SimpleNamespace(ids=lambda _: ids), host=host)
    stores = {"layer": SimpleNamespace(plan=plan, forward=forward, tokens=None, d_in=2)}
    return ActivationStream(Superblocks(stores, most, seed), "layer", batch, seed)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 15), st.integers(4, 70), st.integers(1, 200), st.integers(0, 2**40))
def test_each_epoch_takes_tokens_once_and_a_batch_stays_in_its_decks(pictures, tokens, most, batch, seed):
    made = ordered(pictures, tokens, most, batch, seed)
    blocks = made.blocks
    assert blocks.pictures <= (pictures if pictures <= 2 * most else most // 4)
    assert made.steps_per_epoch == pictures * tokens // made.batch_size, "as many as a cache has"
    for epoch in range(2):
        steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
        rows = [made.rows_of(step) for step in steps]
        whole = np.concatenate(rows)
        assert len(np.unique(whole)) == len(whole) == len(steps) * made.batch_size
        assert pictures * tokens - len(whole) < made.batch_size, "only what fills no batch is left out"
        assert set(whole // tokens) <= set(range(0, 3 * pictures, 3)), "pictures of the split"
        touched = {step: [] for step in steps}
        for deck in range(epoch * blocks.count, (epoch + 1) * blocks.count):
            for step in made.steps_of(deck):
                touched[step].append(deck)
        for step, own in zip(steps, rows):
            assert touched[step] == list(made.decks_of(step))
            near = sorted({number for deck in made.decks_of(step) for number in made.decks.drawn_from(deck)})
            assert len(near) <= 2 * REACH + len(made.decks_of(step))
            assert epoch * blocks.count <= near[0] <= near[-1] < (epoch + 1) * blocks.count
            assert np.isin(own // tokens, np.concatenate([blocks.ids_of(number) for number in near])).all()
    held = np.concatenate([blocks.ids_of(number) for number in range(blocks.count)])
    assert np.array_equal(np.sort(held), np.arange(0, 3 * pictures, 3))
    step = 2 * made.steps_per_epoch - 1
    assert np.array_equal(made.rows_of(step), ordered(pictures, tokens, most, batch, seed).rows_of(step))


def test_the_order_changes_with_the_epoch_and_the_seed():
    made, other = ordered(400, 49, 100, 256, 0), ordered(400, 49, 100, 256, 1)
    assert not np.array_equal(made.blocks.ids_of(0), made.blocks.ids_of(16))
    assert not np.array_equal(made.blocks.ids_of(0), other.blocks.ids_of(0))
    again = made.steps_per_epoch  # the same step of the next epoch
    assert len(np.intersect1d(made.rows_of(0), made.rows_of(again))) < 50 and made.decks_of(again) == range(16, 17)


@pytest.mark.parametrize(("dtype", "kept"), [("float16", None), ("bfloat16", 7), ("float32", None)])
def test_what_is_read_is_what_a_cache_holds(world, tmp_path, dtype, kept):
    given = {"dtype": dtype, "batch_size": 4, "tokens_per_image": kept}
    stored = cache.write(world.images, world.host, LAYERS, tmp_path / "stored", **given)
    made = cache.recompute(world.images, world.host, LAYERS, tmp_path / "unstored", **given)
    for layer, store in stored.items():
        live = made[layer]
        assert live.digest == store.digest and live.recipe == store.recipe
        assert all(live.info[name] == value for name, value in store.info.items() if name in live.info)
        assert {"policy", "has_cls", "layer", "host", "dtype"} <= set(store.info) & set(live.info)
        rows = np.random.default_rng(0).permutation(store.n_tokens)[:50]
        for part in (rows, slice(3, 90), slice(None), rows[0], np.arange(store.n_tokens) % 7 == 0):
            found = live.tokens[part]
            assert found.dtype == store.tokens[part].dtype and np.array_equal(found, store.tokens[part])
        assert np.array_equal(live.image_tokens(5), store.image_tokens(5)) and live.grid(5) == store.grid(5)
        assert np.array_equal(live.mean, store.mean) and np.array_equal(live.variances, store.variances)
        assert (live.count, live.n_tokens, len(live)) == (store.count, store.n_tokens, len(store))
        assert np.array_equal(live.splits, store.splits) and np.array_equal(live.rows("mine"), store.rows("mine"))
        for kind in ("max", "mean", "top:0.1"):
            assert np.array_equal(live.pooled(kind), store.pooled(kind)), kind
    with pytest.raises(IndexError):
        live.tokens[[live.n_tokens]]


class Replay(Batches):
    """A cache's rows in a stream's order."""

    def __init__(self, tokens, stream):
        super().__init__(tokens, stream.batch_size)
        self.stream = stream

    def _rows_of(self, step, rank, world):
        return self.stream.rows_of(step)

    @property
    def steps_per_epoch(self):
        return self.stream.steps_per_epoch


@pytest.fixture(params=[ThreadPoolExecutor, InTurn])
def producer(request, monkeypatch):
    """Superblocks made by another thread while SAEs train, and by the same one in turn with them."""
    monkeypatch.setattr(superblocks, "producer_on", lambda device: request.param())


@pytest.mark.parametrize("pictures", [1000, 7])
def test_the_weights_are_those_of_the_same_order_from_a_cache(world, tmp_path, pictures, producer):
    made = streams(world, tmp_path, pictures)["conv"]
    mean, variance = made.moments()
    train = TrainConfig(epochs=3)
    live = fit(made, CONFIG, train, progress=False)
    stored = Replay(world.stores["conv"].tokens, streams(world, tmp_path, pictures)["conv"])
    assert same(weights(live), weights(fit(stored, CONFIG, train, mean=mean, variance=variance, progress=False)))
    if pictures > world.mine:
        exact = fit(Batches(world.stores["conv"].tokens, BATCH, rows=world.stores["conv"].rows("mine")), CONFIG)
        assert live.quality["tokens"] == exact.quality["tokens"] == 49 * world.mine
        assert np.allclose(mean, world.stores["conv"].mean, rtol=1e-12)


@pytest.mark.parametrize(("least", "pictures"), [(1, 13), (20, 21), (1000, 25)])
def test_moments_are_of_the_first_pictures_however_few_are_in_memory(world, tmp_path, monkeypatch, least, pictures):
    """13 superblocks of one or two pictures; the first deck draws from seven of them."""
    monkeypatch.setattr(superblocks, "MOMENTS", least)
    made = streams(world, tmp_path, 9)
    ids = np.concatenate([made["conv"].blocks.ids_of(number) for number in range(made["conv"].blocks.count)])[:pictures]
    for layer in LAYERS:
        mean, variance = made[layer].moments()
        rows = (ids[:, None] * 49 + np.arange(49)).ravel()
        x = world.stores[layer].tokens[np.sort(rows)].astype(np.float64)
        assert np.allclose(mean, x.mean(0), rtol=1e-10) and np.isclose(variance, x.var(0).sum(), rtol=1e-10)
        assert made[layer].moments_of == {"moments": f"of the first {pictures} pictures"}


def test_who_shares_a_cpu_takes_turns(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert isinstance(superblocks.producer_on(torch.device("cpu")), InTurn)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with superblocks.producer_on(torch.device("cpu")) as made, superblocks.producer_on(torch.device("cuda")) as other:
        assert isinstance(made, ThreadPoolExecutor) and isinstance(other, ThreadPoolExecutor)


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_bit_and_computes_no_superblock_before(world, tmp_path, monkeypatch, producer):
    monkeypatch.setattr("saelab.sae.summary.draw", lambda *_: None)
    train = TrainConfig(steps=40, log_every=1, checkpoint_every=5)

    def run(root, logger=None):
        configs, folders = {layer: [CONFIG] for layer in LAYERS}, {layer: [root / layer] for layer in LAYERS}
        return fit_layers(streams(world, root, 7), configs, train, folders, logger=logger, progress=False)

    whole = run(tmp_path / "whole")
    for at in (3, 8, 33):

        def kill(layer, which, step, numbers, at=at):
            if step == at and layer == LAYERS[1]:
                raise Killed

        root, passed = tmp_path / str(at), []
        with pytest.raises(Killed):
            run(root, kill)
        with monkeypatch.context() as patch:
            patch.setattr(Superblocks, "_fill", _noting(Superblocks._fill, passed))
            again = run(root)
        made = streams(world, root, 7)["conv"]
        first = made.decks.drawn_from(made.decks_of(at // 5 * 5)[0])[0]  # of the last checkpoint's deck
        last, quality = made.decks.drawn_from(made.decks_of(39)[-1])[-1], len(made.decks.drawn_from(0))
        wanted = [*range(first, last + 1), *range(quality)]
        assert passed == [made.blocks.ids_of(number).tolist() for number in wanted], "none before, none twice"
        for layer in LAYERS:
            assert same(weights(whole[layer][0]), weights(again[layer][0]))
            lines = [(place / layer / "metrics.jsonl").read_bytes() for place in (tmp_path / "whole", root)]
            assert lines[0] == lines[1]


def _noting(method, passed):
    def fill(self, buffer, number, ids, loaded, stop):
        passed.append(ids.tolist())
        return method(self, buffer, number, ids, loaded, stop)

    return fill


def test_layers_train_in_one_pass_of_the_host_as_alone(world, tmp_path, monkeypatch):
    passed = []
    monkeypatch.setattr(type(world.host), "tokens", _counting(type(world.host).tokens, passed), raising=True)
    configs, train = [CONFIG, SAEConfig(5, 9, rule="batchtopk", k=2, seed=1)], TrainConfig(epochs=2)
    made = streams(world, tmp_path, 9)
    assert made["conv"].blocks.count == -(-world.mine // 2)
    both = fit_layers(made, dict.fromkeys(LAYERS, configs), train, progress=False)
    superblocks = 3 * made["conv"].blocks.count + 7  # moments, two epochs, and those of the first deck for the quality
    assert len(passed) == superblocks, "a batch of 4 pictures each"
    for layer in LAYERS:
        for i, config in enumerate(configs):
            alone = fit(streams(world, tmp_path, 9)[layer], config, train, progress=False)
            assert same(weights(alone), weights(both[layer][i])) and alone.quality == both[layer][i].quality


def _counting(method, passed):
    def tokens(self, batch, layers, policy="all"):
        passed.append((len(batch), tuple(layers)))
        return method(self, batch, layers, policy)

    return tokens


def test_where_one_superblock_holds_all_the_host_runs_once(world, tmp_path, monkeypatch):
    passed = []
    monkeypatch.setattr(type(world.host), "tokens", _counting(type(world.host).tokens, passed))
    made = streams(world, tmp_path, -(-world.mine // 2))
    fit_layers(made, {layer: [CONFIG] for layer in LAYERS}, TrainConfig(epochs=9), progress=False)
    assert len(passed) == -(-world.mine // 4)
    assert {layers for _, layers in passed} == {tuple(LAYERS)}


def test_processes_take_their_shares_of_a_batch(world, tmp_path):
    made = streams(world, tmp_path, 9)["conv"]
    for step in (0, 5, made.steps_per_epoch + 1):
        halves = [made.batch(step, rank, 2) for rank in range(2)]
        assert torch.equal(torch.cat(halves), made.batch(step))
    with pytest.raises(UserError, match="divisible by the 3 processes"):
        made.batch(0, 0, 3)
    ahead = list(made.prefetch(3, 9, 1, 2))
    assert len(ahead) == 6 and all(torch.equal(x, made.batch(3 + i, 1, 2)) for i, x in enumerate(ahead))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux' /proc")
def test_peak_memory_is_that_of_twice_the_pictures():
    """In a process of its own: what earlier tests have freed here would be taken again without a new page."""
    pictures, tokens, width = 512, 64, 512
    one = pictures * tokens * width * 2
    steps, risen = apart(pass_through, pictures, tokens, width)
    assert steps == 3 * pictures * tokens
    assert 0.9 * 2 * one < risen < 1.1 * 2 * one + (8 << 20)


def pass_through(pictures: int, tokens: int, width: int) -> tuple[int, int]:
    """Stream twelve superblocks twice, first tiny ones, which load the code.

    Returns the tokens given and the bytes that memory rose by at its peak.
    """
    torch.set_num_threads(1)
    for size in (8, pictures):
        made = ordered(3 * size, tokens, size, 256, 0)
        store = made.store
        store.plan, store.d_in, store.dtype = SimpleNamespace(stored=tokens, total=tokens), width, "float16"
        made.blocks.forward.batch_size, made.blocks.forward.pictures = 8, _eights(tokens, width)
        made.blocks.forward.tokens = lambda loaded, layers: ((ids, {"layer": batch}) for ids, batch in loaded)
        made.blocks.forward.unchanged = SimpleNamespace(require=lambda ids: None)
        store.watch, store.digest = Unwatched, "store"
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")
        steps = sum(len(x) for x in made.prefetch(0, made.steps_per_epoch))
    return steps, resident("VmHWM") - before


def _eights(tokens: int, width: int):
    rows = torch.randn(8, tokens, width, dtype=torch.float16)
    return lambda ids, crops: ((ids[i : i + 8], rows) for i in range(0, len(ids), 8))


class Unwatched:
    def __call__(self, rows):
        return rows

    def finish(self, *others):
        pass


def resident(which: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def test_less_than_a_megabyte_is_written(world, tmp_path):
    made = streams(world, tmp_path / "root", 9)
    fit_layers(made, {layer: [CONFIG] for layer in LAYERS}, TrainConfig(epochs=2), progress=False)
    made["conv"].store.mean  # noqa: B018  (the other moments)
    size = sum(file.stat().st_size for file in (tmp_path / "root").rglob("*"))
    assert 0 < size < 100_000


def test_what_can_not_be_streamed_is_refused(world, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"stream\.pictures=3: at least 4"):
        streams(world, tmp_path, 3)
    monkeypatch.setattr(superblocks, "_free", lambda device: 10_000)
    with pytest.raises(UserError, match=r"15 pictures take 3\.01e-05 GB, 1e-05 GB are free; give about 4,"):
        streams(world, tmp_path, 9)


def test_a_picture_that_goes_bad_is_named(world, tmp_path, producer):
    made = unstored(world, tmp_path)
    broken = {"now": False}
    hook = world.host.model.conv.register_forward_hook(lambda *_: _[2] * (torch.nan if broken["now"] else 1.0))
    try:
        made = cache.stream(made, BATCH, 3, 9)
        fit(made["conv"], CONFIG, TrainConfig(steps=2), progress=False)
        broken["now"] = True
        with pytest.raises(UserError, match=r"\d{3}\.png gives NaN"):
            fit(made["conv"], CONFIG, TrainConfig(epochs=1), progress=False)
    finally:
        hook.remove()


@pytest.mark.parametrize("change", ["other pixels", "touched"])
def test_a_picture_that_changes_between_epochs_is_named(change, world, tmp_path, producer):
    images = cache_world.pictures(tmp_path / "pictures", 41)
    stores = cache.recompute(images, world.host, LAYERS, tmp_path, dtype="float32", batch_size=4)
    made, file = cache.stream(stores, BATCH, 3, 9)["conv"], images.path(int(images.ids("mine")[0]))
    for epoch in range(2):
        fit(made, CONFIG, TrainConfig(epochs=1 + epoch), progress=False)
    if change == "other pixels":
        Image.new("RGB", (20, 20)).save(file)
    else:
        os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match=rf"images=.*{file.name}: has changed since this run first read it; run again"):
        fit(made, CONFIG, TrainConfig(epochs=1), progress=False)


def test_fewer_pictures_than_a_superblock_and_tokens_than_a_batch_train(world, tmp_path):
    images = cache_world.pictures(tmp_path / "pictures", 3)
    stores = cache.recompute(images, world.host, LAYERS, tmp_path, dtype="float32", batch_size=4)
    made = cache.stream(stores, 10_000, 3)
    assert made["conv"].batch_size == made["conv"].n_tokens == 49 * len(images.ids("mine"))
    found = fit(made["conv"], CONFIG, TrainConfig(epochs=2), tmp_path / "out", progress=False)
    assert found.quality["tokens"] == made["conv"].n_tokens and made["conv"].blocks.count == 1
