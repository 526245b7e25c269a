"""Streams of several processes: each picture passes one host, and all get the tokens that one process would make."""

import hashlib
import itertools
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cache_world
import numpy as np
import pytest
import torch
from cache_world import LAYERS
from PIL import Image
from sae_processes import each
from safetensors.torch import load_file, save_file

from saelab import cache
from saelab.cache import superblocks
from saelab.cache.ranks import Ranks
from saelab.cache.stream import together
from saelab.run.distributed import explain
from saelab.sae import SAEConfig, TrainConfig, fit_layers

BATCH, SIZE, PICTURES = 60, 2, 90  # tokens of a batch; pictures that pass the host at once; pictures, of which 54 train
SUPERBLOCKS = {16: 14, 1000: 1}  # by M: of 3 or 4 pictures, two batches of the host; or one with 27 batches
CONFIG = SAEConfig(5, 12, k=2, lr=3e-3, screen="float32")
TRAIN = TrainConfig(steps=50, log_every=5, checkpoint_every=10)


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
    feed = together(made, {layer: (1, 2 * made[layer].steps_per_epoch) for layer in LAYERS})
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
