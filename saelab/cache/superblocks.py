"""Superblocks: the tokens of some thousand pictures in memory, made by the host while an SAE trains on those before.

The pictures of an epoch are permuted as `Batches` permutes rows, and cut into superblocks of (nearly) equal size, so
which pictures a superblock holds is a pure function of its number, the seed and how many there are.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab.arrays import TORCH
from saelab.cache.batches import permute
from saelab.cache.passes import keep
from saelab.cache.unstored import Loaded, UnstoredActivations
from saelab.errors import UserError

log = logging.getLogger("saelab")
PICTURES = 4096  # of a superblock
LOGGED_EVERY = 60.0  # seconds between lines about the pace


@dataclass
class Block:
    """The tokens of a superblock, by layer [pictures * tokens, d_in], in the stored dtype, where the host is."""

    ids: Int[np.ndarray, "pictures"]  # ascending
    tokens: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Pace:
    """Seconds that host and SAEs worked, and that each waited for the other, since the last line."""

    host: float = 0.0
    saes: float = 0.0
    host_waits: float = 0.0
    saes_wait: float = 0.0
    made: int = 0  # tokens that the host gave, of all layers
    taken: int = 0  # tokens that SAEs were given, of all layers
    since: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """What the log says of it."""
        host, saes = self.made / max(self.host, 1e-9), self.taken / max(self.saes, 1e-9)
        waits = [
            wait / max(work + wait, 1e-9) for work, wait in ((self.saes, self.saes_wait), (self.host, self.host_waits))
        ]
        return f"host {host:,.0f} tokens/s, SAEs {saes:,.0f} tokens/s; SAEs waited {waits[0]:.0%}, host {waits[1]:.0%}"


class Superblocks:
    """The superblocks of several layers of one host: which pictures each holds, and the tokens when they are wanted."""

    def __init__(self, stores: Mapping[str, UnstoredActivations], pictures: int, seed: int) -> None:
        """At most `pictures` in each. Raises UserError for fewer than 1, and where two of them don't fit in memory."""
        if pictures < 1:
            raise UserError("stream.pictures", pictures, "at least 1", f"leave it out for {PICTURES}")
        self.stores, self.seed = stores, seed
        self.forward = next(iter(stores.values())).forward
        self.ids = np.asarray(self.forward.images.ids("mine"), dtype=np.int64)
        self.count = -(-len(self.ids) // pictures)
        self.edges = np.arange(self.count + 1, dtype=np.int64) * len(self.ids) // self.count
        self.pictures = int(np.diff(self.edges).max())
        self.pace = Pace()
        self._memo: Block | None = None
        device = self.forward.host.device
        # Of its own, so that the host runs while the SAE trains; one for all, for memory is pooled by CUDA stream.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        of_one = self.pictures * sum(store.plan.row_bytes for store in stores.values())
        check_room(of_one * min(2, self.count), self.pictures, device)

    def ids_of(self, number: int) -> Int[np.ndarray, "pictures"]:
        """The pictures of a superblock, ascending; superblocks are numbered on from one epoch to the next."""
        epoch, inside = divmod(number, self.count)
        places = np.arange(self.edges[inside], self.edges[inside + 1], dtype=np.uint64)
        return np.sort(self.ids[permute(places, len(self.ids), self.seed, epoch)])

    def block(self, number: int) -> Block:
        """One superblock, made now unless it was the last one to be made."""
        if self._memo is None or not np.array_equal(self._memo.ids, self.ids_of(number)):
            self._memo = None  # before the next one takes memory
            self._memo = next(self._make([number], threading.Event()))
        return self._memo

    def run(self, numbers: Sequence[int]) -> Iterator[tuple[int, Block]]:
        """These superblocks, one after the other; while one is in use, another thread makes the next.

        A superblock that holds the same pictures as the one before it is not made again: where one holds all pictures,
        the host passes over them once, however many epochs there are.
        """
        block, self._memo = self._memo, None
        if block is not None and not np.array_equal(block.ids, self.ids_of(numbers[0])):
            block = None
        wanted = list(numbers[:1]) if self.count == 1 else list(numbers)
        stop = threading.Event()
        made = self._make(wanted if block is None else wanted[1:], stop)
        with contextlib.closing(made), ThreadPoolExecutor(1, "host") as producer:
            try:
                coming = producer.submit(next, made, None)
                for number in numbers:
                    if block is None:
                        block = self._wait(coming.result)
                        coming = producer.submit(next, made, None)
                    assert block is not None
                    begin = time.monotonic()
                    yield number, block
                    self.pace.saes += time.monotonic() - begin
                    self._log()
                    if self.count > 1 and number != numbers[-1]:
                        _release(block)
                        block = None
                self._memo = block
            finally:
                stop.set()

    def _wait(self, result: Callable[[], Block | None]) -> Block | None:
        begin = time.monotonic()
        block = result()
        self.pace.saes_wait += time.monotonic() - begin
        return block

    def _log(self) -> None:
        if time.monotonic() - self.pace.since > LOGGED_EVERY:
            log.info("stream: %s", self.pace.line())
            self.pace = Pace()

    def _make(self, numbers: Sequence[int], stop: threading.Event) -> Generator[Block, None, None]:
        """Superblocks, in one pass of the loader: it decodes on across their borders.

        Each is filled up to whole batches with its last picture, so that all batches of the host have one size and a
        superblock's tokens don't depend on those before it.
        """
        size, every = self.forward.batch_size, [self.ids_of(number) for number in numbers]
        loaded: Loaded = iter(())
        if every:
            padded = [np.pad(ids, (0, -len(ids) % size), mode="edge") for ids in every]
            loading = self.forward.pictures(np.concatenate(padded))
            loaded = itertools.chain([next(loading)], loading)  # forks the workers here, in the thread that trains
        return self._fill_all(every, loaded, stop)

    def _fill_all(self, every: list[np.ndarray], loaded: Loaded, stop: threading.Event) -> Generator[Block, None, None]:
        for ids in every:
            begin = time.monotonic()
            with torch.cuda.stream(self._stream):  # does nothing where there is none
                block = self._fill(ids, loaded, stop)
            if self._stream is not None:
                self._stream.synchronize()
            if stop.is_set():
                return
            self.pace.host += time.monotonic() - begin
            self.pace.made += sum(len(tokens) for tokens in block.tokens.values())
            begin = time.monotonic()
            yield block
            self.pace.host_waits += time.monotonic() - begin

    @torch.inference_mode(False)
    def _fill(self, ids: Int[np.ndarray, "pictures"], loaded: Loaded, stop: threading.Event) -> Block:
        device, size = self.forward.host.device, self.forward.batch_size
        block, watch = Block(ids), {}
        for name, store in self.stores.items():
            shape, kind = (len(ids) * store.plan.stored, store.d_in), TORCH[store.dtype]
            block.tokens[name], watch[name] = torch.empty(shape, dtype=kind, device=device), store.watch()
        done = 0
        batches = itertools.islice(loaded, -(-len(ids) // size))
        for numbers, tokens in self.forward.tokens(batches, list(self.stores)):
            new = min(len(numbers), len(ids) - done)  # the last ones only fill the batch up
            for name, store in self.stores.items():
                rows = keep(tokens.pop(name)[:new], numbers[:new], store.plan, watch[name]).flatten(0, 1)
                self._require_finite(rows, numbers, name)
                block.tokens[name][done * store.plan.stored : (done + new) * store.plan.stored].copy_(rows)
            done += new
            if stop.is_set():
                return block
        for narrow in watch.values():
            narrow.finish()
        return block

    def _require_finite(self, rows: Tensor, numbers: np.ndarray, layer: str) -> None:
        """Once for each superblock, rather than in each step, which would wait for the device."""
        if not bool(rows.isfinite().all()):
            bad = int((~rows.isfinite()).any(1).nonzero()[0]) // self.stores[layer].plan.stored
            file = self.forward.images.files[int(numbers[bad])]
            raise UserError("activations", layer, f"{file} gives NaN or an infinity", "leave the picture out")


def _release(block: Block) -> None:
    """Free a superblock after the last step that reads it."""
    for tokens in block.tokens.values():
        if tokens.device.type == "cuda":
            torch.cuda.synchronize(tokens.device)  # its memory belongs to another stream than the one that reads it
    block.tokens.clear()


def check_room(need: int, pictures: int, device: torch.device) -> None:
    """Raise UserError where superblocks of `need` bytes don't fit into the device's free memory."""
    free = _free(device)
    if free is not None and need > free:
        where = "" if device.type == "cpu" else f" on {device}"
        what = f"superblocks of {pictures} pictures take {need / 1e9:.3g} GB, {free / 1e9:.3g} GB{where} are free"
        fits = max(1, int(pictures * free / need * 0.5))
        raise UserError("stream.pictures", pictures, what, f"give about {fits}, or tokens_per_image")


def _free(device: torch.device) -> int | None:
    """Bytes that can be taken on a device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
