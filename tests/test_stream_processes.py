"""Streams of several processes: each picture passes one host, and all get the tokens that one process would make."""

import hashlib
import itertools
import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import cache_world
import numpy as np
import pytest
import torch
from cache_world import LAYERS
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_processes import each
from safetensors.torch import load_file, save_file
from test_stream import pass_through

from saelab import cache
from saelab.arrays import Narrowing
from saelab.cache import superblocks
from saelab.cache.ranks import Ranks
from saelab.errors import UserError
from saelab.run.distributed import explain
from saelab.sae import SAEConfig, TrainConfig, fit_layers, summary

streaming = import_module("saelab.cache.stream")  # which `saelab.cache.stream`, the function, hides
BATCH, SIZE, PICTURES = 60, 2, 90  # tokens of a batch; pictures that pass the host at once; pictures, of which 54 train
SUPERBLOCKS = {16: 14, 1000: 1}  # by M: of 3 or 4 pictures, two batches of the host; or one with 27 batches
CONFIG = SAEConfig(5, 12, k=2, lr=3e-3, screen="float32")
TRAIN = TrainConfig(steps=60, log_every=5, checkpoint_every=10)  # a third of them in the second epoch


def streams(folder: Path, most: int, root: str, dtype: str = "float32", threads: bool = False):
    """Streams of a host whose tokens depend on the pictures that pass it together."""
    images, host = cache_world.pictures(folder / "pictures", 0), cache_world.host()
    host.model.conv.register_forward_hook(lambda *given: given[2] + given[2].mean(0, keepdim=True))
    stores = cache.recompute(images, host, LAYERS, folder / root, dtype=dtype, batch_size=SIZE)
    if threads:
        superblocks.producer_on = lambda device: ThreadPoolExecutor(1)
    return cache.stream(stores, BATCH, 3, most)


def note(made) -> list[list[int]]:
    """The batches of pictures that pass the host from now on."""
    passed, forward = [], made[LAYERS[0]].blocks.forward
    tokens = type(forward).tokens

    def noting(loaded, layers):
        for numbers, found in tokens(forward, loaded, layers):
            passed.append(numbers.tolist())
            yield numbers, found

    object.__setattr__(forward, "tokens", noting)
    return passed


def read(folder: Path, name: str, most: int, dtype: str, threads: bool) -> dict:
    """Moments, then two epochs of all layers, from the second batch on, and the tokens that quality is measured on."""
    made = streams(folder, most, name, dtype, threads)
    passed = note(made)
    moments = {layer: [part.tobytes().hex() for part in map(np.asarray, made[layer].moments())] for layer in LAYERS}
    of_moments, passed[:] = list(passed), []
    feed = streaming.together(made, {layer: (1, 2 * made[layer].steps_per_epoch) for layer in LAYERS})
    batches = [[layer, step, digest(x)] for layer, step, x in feed]
    of_steps, passed[:] = list(passed), []
    quality = [[digest(x) for x in made[layer].in_order(100)] for layer in LAYERS]
    single = digest(made[LAYERS[1]].batch(7))
    found = {"moments": moments, "batches": batches, "quality": quality, "single": single}
    return {"found": found, "passed": [of_moments, of_steps, passed]}


def digest(x: torch.Tensor) -> str:
    return hashlib.sha256(x.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def read_each(folder: Path, cases: list) -> None:
    rank = torch.distributed.get_rank()
    for name, *case in cases:
        found = read(folder, f"{name}-{torch.distributed.get_world_size()}", *case)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("processes")
    assert len(cache_world.pictures(place / "pictures", PICTURES).ids("mine")) == 54
    return place


CASES = {
    "superblocks": (16, "float32", False),
    "threads": (16, "bfloat16", True),
    "one": (1000, "float16", False),
}


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superblocks, "producer_on", superblocks.producer_on)  # what `streams` changes is put back
        return {name: read(folder, f"{name}-1", *case) for name, case in CASES.items()}


@pytest.mark.parametrize("size", [2, 3])
def test_every_process_gets_the_tokens_of_one_and_each_picture_passes_one_host(size, folder, alone):
    cases = [(name, *case) for name, case in CASES.items()]
    assert each(size, folder / f"store-{size}", read_each, folder, cases) == [0] * size
    for name, expected in alone.items():
        parts = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(size)]
        for part in parts:
            assert part["found"] == json.loads(json.dumps(expected["found"])), name
        for stage, passed in enumerate(expected["passed"]):
            own = [part["passed"][stage] for part in parts]
            assert sorted(itertools.chain(*own)) == sorted(passed), "the batches of one process, over all processes"
            most = max(map(len, own))
            assert not passed or most < len(passed), "no process makes all"
        epochs = [ids for batch in expected["passed"][1] for ids in set(batch)]
        assert sorted(epochs) == sorted(2 * sorted(set(epochs))) or name == "one"


def train(folder: Path, root: str, shards: int, shared: bool, dies: int = -1) -> None:
    """Train two SAEs of each layer; the last process is killed when its host comes to superblock `dies`.

    Not `shared`: every process' host passes over all pictures.
    """
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if not shared:
        superblocks.Ranks = streaming.Ranks = Alone
    made, fill = streams(folder, 16, root), superblocks.Superblocks._fill

    def perhaps_the_last(self, buffer, number, *given):
        if rank == size - 1 and number == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return fill(self, buffer, number, *given)

    superblocks.Superblocks._fill, summary.draw = perhaps_the_last, lambda *_: None
    configs = [CONFIG, replace(CONFIG, rule="batchtopk", seed=1)]
    folders = {layer: [folder / root / f"{layer}-{i}" for i in range(2)] for layer in LAYERS}
    many = replace(TRAIN, latent_shards=shards)
    try:
        fits = fit_layers(made, dict.fromkeys(LAYERS, configs), many, folders, progress=False)
    except RuntimeError as error:
        raise explain(str(error), rank, size) or error from None
    for layer, found in fits.items():
        for i, own in enumerate(found):
            tensors = {name: tensor.contiguous() for name, tensor in own.sae.tensors().items()}
            save_file(tensors, folder / f"{root}-{layer}-{i}-{rank}.safetensors")


class Alone(Ranks):
    @classmethod
    def current(cls) -> Ranks:
        return Ranks()


def run(folder: Path, root: str, size: int, *given) -> tuple[list, list[str]]:
    """Exit codes and last words of such processes."""
    store = folder / f"store-{root}-{size}-{'-'.join(map(str, given))}"
    codes = each(size, store, train, folder, root, *given)
    words = [store.with_name(f"{store.name}.{rank}") for rank in range(size)]
    return codes, [word.read_text() if word.exists() else "" for word in words]


def left(folder: Path, root: str, size: int) -> list:
    """Weights in every process, metrics, quality and moments."""
    files = [sorted(folder.glob(f"{root}-*-{rank}.safetensors")) for rank in range(size)]
    assert all(len(own) == 4 for own in files)
    weights = [[(n, t.tolist()) for n, t in sorted(load_file(file).items())] for own in files for file in own]
    texts = [file.read_text() for file in sorted((folder / root).glob("*-[01]/[mq]*.json*"))]
    moments = [load_file(file) for file in sorted((folder / root / "moments").glob("*-first-*/*.safetensors"))]
    assert len(texts) == 8 and len(moments) == 2
    return [weights, texts, [{name: tensor.tolist() for name, tensor in own.items()} for own in moments]]


@pytest.mark.parametrize(("size", "shards"), [(3, 1), (2, 2)])
def test_weights_are_those_of_processes_that_run_the_whole_host_each(size, shards, folder):
    for shared in (True, False):
        codes, words = run(folder, f"{size}-{shards}-{shared}", size, shards, shared)
        assert codes == [0] * size, words
    ours, theirs = (left(folder, f"{size}-{shards}-{shared}", size) for shared in (True, False))
    assert ours == theirs


@pytest.mark.slow
def test_a_run_that_loses_a_process_goes_on_with_others_to_the_bit(folder):
    """Of two that train, one is killed; of three that go on, another one; then one ends it."""
    for shared in (True, False):
        root = f"killed-{shared}"
        for size, dies in ((2, 15), (3, 22)):
            codes, words = run(folder, root, size, 1, shared, dies)
            assert codes == [1] * (size - 1) + [-signal.SIGKILL]
            assert all("another process ended before this one" in word for word in words[:-1]), words
        steps = [file.name for file in (folder / root / f"{LAYERS[0]}-0" / "checkpoints").glob("step-*")]
        assert steps and not (folder / root / f"{LAYERS[0]}-0" / "sae.safetensors").exists()
        codes, words = run(folder, root, 1, 1, shared)
        assert codes == [0], words
    assert left(folder, "killed-True", 1) == left(folder, "killed-False", 1)


def fail_each(folder: Path) -> None:
    """What each process says where something goes wrong in the last one, and then where they go apart."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    last, words = rank == size - 1, {}

    def tell(name: str, made, first: int = 0) -> None:
        steps = 2 * made[LAYERS[0]].steps_per_epoch
        with pytest.raises(UserError) as caught:
            for _, step, _ in streaming.together(made, dict.fromkeys(LAYERS, (first, steps))):
                if step == 30 and name == "touched" and rank == 0:
                    os.utime(file, ns=(1, 1))
        words[name] = str(caught.value)

    for threads in (False, True):
        made = streams(folder, 16, "failed", threads=threads)
        forward = made[LAYERS[0]].blocks.forward
        if last:
            forward.host.model.conv.register_forward_hook(nan_after(20))
        tell(f"nan-{threads}", made)
    made = streams(folder, 16, "failed")
    forward = made[LAYERS[0]].blocks.forward
    if last:
        object.__setattr__(forward, "pictures", refuse)
    tell("unreadable", made)
    made = streams(folder, 16, "failed")
    blocks = made[LAYERS[0]].blocks
    file = made[LAYERS[0]].blocks.forward.images.path(read_by_others(blocks))
    tell("touched", made)
    tell("apart", streams(folder, 16, "failed"), first=10 * rank)  # so many steps are more than a deck
    (folder / f"words-{rank}.json").write_text(json.dumps([words, file.name]))


def nan_after(batches: int):
    """A hook that gives NaN from the host's batch of that number on."""
    passed = itertools.count()
    return lambda module, given, found: found * (torch.nan if next(passed) >= batches else 1)


def refuse(ids, crops):
    raise UserError("images", "one.png", "is no picture any more", "leave it out")


def read_by_others(blocks) -> int:
    """A picture that one process reads in the first epoch, and another one late in the second."""
    ranks, readers = Ranks.current(), [{}, {}]
    for number in range(2 * blocks.count):
        edges = blocks._shares(number, ranks)
        for reader, (first, last) in enumerate(itertools.pairwise(edges)):
            readers[number // blocks.count].update(dict.fromkeys(blocks.ids_of(number)[first:last].tolist(), reader))
    late = np.concatenate([blocks.ids_of(number) for number in range(blocks.count + 6, 2 * blocks.count)]).tolist()
    return next(i for i in late if readers[0][i] != readers[1][i])


@pytest.mark.parametrize("size", [2, 3])
def test_what_goes_wrong_in_one_process_ends_all_by_name(size, folder, tmp_path):
    cache_world.pictures(tmp_path / "pictures", PICTURES)
    assert each(size, tmp_path / "store", fail_each, tmp_path) == [0] * size
    told = [json.loads((tmp_path / f"words-{rank}.json").read_text()) for rank in range(size)]
    file = told[0][1]
    expected = {
        "nan-False": r"activations=conv: \d{3}\.png gives NaN or an infinity",
        "nan-True": r"activations=conv: \d{3}\.png gives NaN or an infinity",
        "unreadable": r"images=one\.png: is no picture any more",
        "touched": rf"images=.*{file}: has changed since this run first read it",
        "apart": "stream=process . of .: the processes want different tokens of it",
    }
    for rank, (words, _) in enumerate(told):
        for name, pattern in expected.items():
            assert re.match(pattern, words[name]) and "\n" not in words[name], (name, words[name])
            if name not in ("touched", "apart"):
                assert (f"(in process {size - 1})" in words[name]) == (rank < size - 1), words[name]


def pass_through_together(folder: Path, *sizes: int) -> None:
    (folder / str(torch.distributed.get_rank())).write_text(json.dumps(pass_through(*sizes)))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux' /proc")
def test_each_process_holds_twice_the_pictures_and_little_beside(tmp_path):
    pictures, tokens, width = 512, 64, 512
    one = pictures * tokens * width * 2
    assert each(2, tmp_path / "store", pass_through_together, tmp_path, pictures, tokens, width) == [0, 0]
    for rank in range(2):
        steps, risen = json.loads((tmp_path / str(rank)).read_text())
        assert steps == 3 * pictures * tokens
        assert 0.9 * 2 * one < risen < 1.1 * 2 * one + (8 << 20), risen / (2 * one)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-9, 1e-4), st.integers(0, 60), st.integers(0, 60))
def test_what_a_dtype_loses_is_judged_over_all_processes(seed, small, first, last):
    """Whether it is too much is said of all numbers, not of a share in which it may be."""
    x = torch.randn(60, generator=torch.Generator().manual_seed(seed)) * small
    x[torch.rand(60, generator=torch.Generator().manual_seed(seed + 1)) < 0.2] *= 1e4
    edges = [0, *sorted((first, last)), 60]
    whole, parts = Narrowing("float16"), [Narrowing("float16") for _ in range(3)]
    whole(x)
    for part, (begin, end) in zip(parts, itertools.pairwise(edges)):
        part(x[begin:end])
    assert refused(whole) == refused(*parts)


def refused(one: Narrowing, *others: Narrowing) -> str | None:
    try:
        one.finish(*others)
    except UserError as error:
        return str(error)
    return None
