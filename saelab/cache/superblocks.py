"""Superblocks: the tokens of some thousand pictures, made by the host while an SAE trains on those before.

The pictures of an epoch are permuted as `Batches` permutes rows, and cut into superblocks of (nearly) equal size, so
which pictures a superblock holds is a pure function of its number, the seed and how many there are. Their tokens are
dealt to decks (decks.py), from which batches are drawn, and stay in memory (buffer.py) until their deck is used.

Processes of torch.distributed divide the host's batches of a superblock. They exchange the tokens in the thread that
trains, before its first deck is used: nccl's groups must not work at the same time, and a thread of its own would go on
to wait for the others where this process has come to its end.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.arrays import TORCH, Narrowing
from saelab.cache.batches import permute
from saelab.cache.buffer import Buffer
from saelab.cache.decks import LEAST, Decks, count_superblocks
from saelab.cache.passes import Moments, keep
from saelab.cache.ranks import Ranks
from saelab.cache.unstored import Loaded, UnstoredActivations, check_crops
from saelab.errors import UserError
from saelab.images.crops import Crops, describe_crops

log = logging.getLogger("saelab")
PICTURES = 4096  # half of those in memory
MOMENTS = 4096  # pictures that moments are of, at least, where there are as many
CHUNK = 16_384  # tokens that moments are summed over at once
LOGGED_EVERY = 60.0  # seconds between lines about the pace
Made = Generator[dict[str, Narrowing], None, None]  # superblocks one after the other: what was watched in each layer


@dataclass
class Pace:
    """Seconds that host and SAEs worked, and that each waited for the other, since the last line."""

    host: float = 0.0
    saes: float = 0.0
    host_waits: float = 0.0
    saes_wait: float = 0.0
    made: int = 0  # tokens that the host gave, of all layers and processes
    taken: int = 0  # tokens that SAEs were given, of all layers and processes
    since: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """What the log says of it."""
        host, saes = self.made / max(self.host, 1e-9), self.taken / max(self.saes, 1e-9)
        waits = [
            wait / max(work + wait, 1e-9) for work, wait in ((self.saes, self.saes_wait), (self.host, self.host_waits))
        ]
        return f"host {host:,.0f} tokens/s, SAEs {saes:,.0f} tokens/s; SAEs waited {waits[0]:.0%}, host {waits[1]:.0%}"


class Superblocks:
    """The superblocks of several layers of one host: which pictures each holds, and decks of tokens in memory."""

    def __init__(
        self, stores: Mapping[str, UnstoredActivations], pictures: int, seed: int, crop: str | None = None
    ) -> None:
        """Twice `pictures` are in memory. Raises UserError for fewer than LEAST, and where they don't fit in."""
        if pictures < LEAST:
            raise UserError("stream.pictures", pictures, f"at least {LEAST}", f"leave it out for {PICTURES}")
        self.stores, self.seed, self.crop = stores, seed, describe_crops(crop)
        self.forward = next(iter(stores.values())).forward
        self.ids = np.asarray(self.forward.images.ids("mine"), dtype=np.int64)
        if self.crop:
            check_crops(self.forward.images, self.forward.host)
        self.count = count_superblocks(len(self.ids), pictures, bool(self.crop))
        self.edges = np.arange(self.count + 1, dtype=np.int64) * len(self.ids) // self.count
        self.pictures = int(np.diff(self.edges).max())
        self.decks = {layer: Decks(np.diff(self.edges), store.plan.stored, seed) for layer, store in stores.items()}
        self._any = next(iter(self.decks.values()))  # superblocks have the same numbers in all layers
        self.pace = Pace()
        self._buffer: Buffer | None = None
        device = self.forward.host.device
        # Of its own, so that the host runs while the SAE trains; one for all, for memory is pooled by CUDA stream.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        held = {layer: decks.most_held / stores[layer].plan.stored for layer, decks in self.decks.items()}
        check_room(sum(held[layer] * stores[layer].plan.row_bytes for layer in stores), held, pictures, device)

    def ids_of(self, number: int) -> Int[np.ndarray, "pictures"]:
        """The pictures of a superblock, ascending; superblocks are numbered on from one epoch to the next."""
        epoch, inside = divmod(number, self.count)
        places = np.arange(self.edges[inside], self.edges[inside + 1], dtype=np.uint64)
        return np.sort(self.ids[permute(places, len(self.ids), self.seed, epoch)])

    @property
    def sampled(self) -> int:
        """How many of the first superblocks the moments are of: those of MOMENTS pictures, or of the first deck."""
        wanted = np.searchsorted(self.edges, min(len(self.ids), MOMENTS))
        return max(int(wanted), len(self._any.drawn_from(0)))

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Of each layer's tokens of the first superblocks."""
        found, done = {layer: Moments.none(store.d_in) for layer, store in self.stores.items()}, 0
        for number, buffer in self.run(0, self.sampled - self._any.reach):
            for superblock in range(done, number + self._any.reach + 1):  # those that are new
                for layer in found:
                    for part in buffer.superblock(layer, superblock, CHUNK):
                        found[layer] = found[layer].merge(Moments.of(part))
            done = number + self._any.reach + 1
        return found

    def first(self, layer: str, chunk: int) -> Iterator[Float[Tensor, "chunk d_in"]]:
        """A layer's tokens of the superblocks that the first deck draws from, of whole pictures, `chunk` at once."""
        buffer = self.at(0, whole=True)
        for number in self._any.drawn_from(0):
            yield from buffer.superblock(layer, number, chunk)

    def at(self, number: int, whole: bool = False) -> Buffer:
        """The buffer at a deck: as the last use left it, or filled now; `whole`: of whole pictures, never of crops."""
        ((_, buffer),) = self.run(number, number + 1, whole)
        return buffer

    def run(self, first: int, last: int, whole: bool = False) -> Iterator[tuple[int, Buffer]]:
        """The decks first..last-1, one after the other; while one is in use, the next superblock is made, or before.

        Where one superblock holds all pictures, the host passes over them once, however many epochs there are.
        `whole` is as in `at`. Raises UserError in all processes for what goes wrong in one, and where they ask for
        different decks.
        """
        ranks, buffer, self._buffer = Ranks.current(), self._buffer or self._allocate(), None
        cropped = bool(self.crop) and not whole
        if buffer.cropped != cropped or not buffer.move(first):
            buffer.restart(first, cropped)
        if ranks.world > 1:
            digests = [store.digest for store in self.stores.values()]
            ranks.agree(first, last, buffer.ready, cropped, self.seed, *digests)
        reach, end = self._any.reach, self._any.drawn_from(last - 1).stop if self._any.reach else 1
        stop = threading.Event()
        made = ranks.together(lambda: self._make(buffer, list(range(buffer.ready, end)), stop))
        with contextlib.closing(made), producer_on(self.forward.host.device) as producer:

            def start() -> Future[dict[str, Narrowing]] | None:
                if buffer.ready >= end:
                    return None
                buffer.reserve(buffer.ready)
                return producer.submit(next, made)

            try:
                coming = start()
                for number in range(first, last):
                    while coming is not None and buffer.ready <= number + reach:
                        self._wait(coming, ranks)
                        own, buffer.ready = buffer.ready, buffer.ready + 1
                        coming = start()
                        self._exchange(buffer, own, ranks)
                    begin = time.monotonic()
                    yield number, buffer
                    self.pace.saes += time.monotonic() - begin
                    self._log()
                    if number + 1 < last:
                        buffer.move(number + 1)
                self._buffer = buffer
            finally:
                stop.set()

    def _allocate(self) -> Buffer:
        widths = {layer: (store.d_in, TORCH[store.dtype]) for layer, store in self.stores.items()}
        with torch.cuda.stream(self._stream):  # does nothing where there is none
            return Buffer(self.decks, widths, self.forward.host.device)

    def _wait(self, coming: Future[dict[str, Narrowing]], ranks: Ranks) -> None:
        """Until all processes have made their share of a superblock."""
        begin = time.monotonic()
        first, *others = ranks.gather(ranks.together(coming.result))
        for name, narrow in first.items():
            narrow.finish(*(other[name] for other in others))
        self.pace.saes_wait += time.monotonic() - begin

    def _exchange(self, buffer: Buffer, number: int, ranks: Ranks) -> None:
        begin = time.monotonic()
        for layer, store in self.stores.items() if ranks.world > 1 else ():
            edges = self._shares(number, ranks) * store.plan.stored
            buffer.exchange(layer, number, edges.tolist(), ranks)
        self.pace.saes_wait += time.monotonic() - begin

    def _shares(self, number: int, ranks: Ranks) -> Int[np.ndarray, "edges"]:
        """Which of a superblock's pictures each process' host passes over, as `Ranks.edges`: whole batches of it."""
        pictures, size = int(np.diff(self.edges)[number % self.count]), self.forward.batch_size
        return np.minimum(pictures, np.array(ranks.edges(-(-pictures // size))) * size)

    def _own(self, number: int) -> slice:
        """Which of a superblock's pictures this process' host passes over."""
        ranks = Ranks.current()
        return slice(*self._shares(number, ranks)[ranks.rank : ranks.rank + 2].tolist())

    def _log(self) -> None:
        if time.monotonic() - self.pace.since > LOGGED_EVERY:
            log.info("stream: %s", self.pace.line())
            self.pace = Pace()

    def _make(self, buffer: Buffer, numbers: Sequence[int], stop: threading.Event) -> Made:
        """Write superblocks to their rows, in one pass of the loader: it decodes on across their borders.

        Each is filled up to whole batches with its last picture, so that all batches of the host have one size and a
        superblock's tokens don't depend on those before it. Of several processes, each makes its share.
        """
        size, every = self.forward.batch_size, [self.ids_of(number) for number in numbers]
        loaded: Loaded = iter(())
        own = [ids[self._own(number)] for number, ids in zip(numbers, every)]
        if sum(map(len, own)):
            padded = [np.pad(ids, (0, -len(ids) % size), mode="edge") for ids in own]
            ids, epochs = np.concatenate(padded), np.asarray(numbers) // self.count
            crops = Crops(self.seed, ids, np.repeat(epochs, list(map(len, padded)))) if buffer.cropped else None
            loading = self.forward.pictures(ids, crops)
            loaded = itertools.chain([next(loading)], loading)  # forks the workers here, in the thread that trains
        return self._fill_all(buffer, dict(zip(numbers, every)), loaded, stop)

    def _fill_all(self, buffer: Buffer, every: Mapping[int, np.ndarray], loaded: Loaded, stop: threading.Event) -> Made:
        for number, ids in every.items():
            begin = time.monotonic()
            with torch.cuda.stream(self._stream):
                watch = self._fill(buffer, number, ids, loaded, stop)
            if self._stream is not None:
                self._stream.synchronize()
            if stop.is_set():
                return
            self.pace.host += time.monotonic() - begin
            self.pace.made += sum(len(buffer.rows(number, layer)) for layer in self.stores)
            begin = time.monotonic()
            yield watch
            self.pace.host_waits += time.monotonic() - begin

    @torch.inference_mode(False)
    def _fill(
        self, buffer: Buffer, number: int, ids: Int[np.ndarray, "pictures"], loaded: Loaded, stop: threading.Event
    ) -> dict[str, Narrowing]:
        size, watch = self.forward.batch_size, {name: store.watch() for name, store in self.stores.items()}
        own = self._own(number)
        done = own.start
        batches = itertools.islice(loaded, -(-len(ids[own]) // size))
        for numbers, tokens in self.forward.tokens(batches, list(self.stores)):
            new = min(len(numbers), len(ids) - done)  # the last ones only fill the batch up
            for name, store in self.stores.items():
                rows = keep(tokens.pop(name)[:new], numbers[:new], store.plan, watch[name]).flatten(0, 1)
                self._require_finite(rows, numbers, name)
                buffer.write(name, number, done * store.plan.stored, rows)
            done += new
            if stop.is_set():
                return watch
        if len(ids[own]) < len(ids):  # files change for all processes, whichever reads them in which epoch
            self.forward.unchanged.require(np.delete(ids, own))
        return watch

    def _require_finite(self, rows: Tensor, numbers: np.ndarray, layer: str) -> None:
        """Once for each superblock, rather than in each step, which would wait for the device."""
        if not bool(rows.isfinite().all()):
            bad = int((~rows.isfinite()).any(1).nonzero()[0]) // self.stores[layer].plan.stored
            file = self.forward.images.files[int(numbers[bad])]
            raise UserError("activations", layer, f"{file} gives NaN or an infinity", "leave the picture out")


class InTurn(Executor):
    """Does what it is given at once, in the thread that gives it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # as an executor with threads keeps it, for whoever asks for the result
            done.set_exception(error)
        return done


def producer_on(device: torch.device) -> Executor:
    """What makes superblocks: another thread, while SAEs train, or the same one, where all share a CPU.

    There nothing is gained by both at once, and torch's threads of the one wait for those of the other.
    """
    shared = device.type == "cpu" and not torch.accelerator.is_available()
    return InTurn() if shared else ThreadPoolExecutor(1, "host")


def check_room(need: float, held: Mapping[str, float], pictures: int, device: torch.device) -> None:
    """Raise UserError where `need` bytes, those of `held` pictures, don't fit into the device's free memory."""
    free = _free(device)
    if free is not None and need > free:
        where = "" if device.type == "cpu" else f" on {device}"
        what = f"{max(held.values()):.0f} pictures take {need / 1e9:.3g} GB, {free / 1e9:.3g} GB{where} are free"
        fits = max(LEAST, int(pictures * free / need * 0.5))
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
