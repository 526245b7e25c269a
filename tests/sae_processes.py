"""Real processes that train: to be killed, to train together, or to be measured apart.

They are forked from a server that has imported saelab, and what torch imports at its first step, once: importing took
most of their time.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["saelab.sae", "saelab.sae.summary", "torch.distributed", "torch._dynamo", "matplotlib.backends.backend_agg"]
)
PATIENCE = 240  # seconds that a process may take before the test gives up on it


def killed_at(step: float, file: Path, folder: Path, rule: str, delay: float = 0.0) -> bool:
    """Train in a process, sent SIGKILL `delay` seconds after it has logged `step` (or one after it).

    True if it came to the end. With a delay, the kill falls into whatever it is doing by then.
    """
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_train, args=(theirs, file, folder, rule))
    process.start()
    theirs.close()
    try:
        while ours.poll(PATIENCE):
            if ours.recv() >= step:
                time.sleep(delay)
                process.kill()
                break
    except EOFError:  # it has ended, and with it its side of the pipe
        pass
    process.join(PATIENCE)
    return process.exitcode == 0


def together(size: int, store: Path, file: Path, folder: Path, rule: str) -> list[int | None]:
    """Train one SAE in `size` processes, each with a folder of its own in `folder`, named by its rank.

    Returns their exit codes (None: still running, and killed for it).
    """
    return _run([CONTEXT.Process(target=_share, args=(r, size, store, file, folder, rule)) for r in range(size)])


def each(size: int, store: Path, action: Callable[..., None], *arguments: object) -> list[int | None]:
    """Call `action(*arguments)` in `size` processes of one gloo group. Returns their exit codes.

    An error ends a process with status 1, and its last line lies in `<store>.<rank>`.
    """
    return _run([CONTEXT.Process(target=_act, args=(r, size, store, action, arguments)) for r in range(size)])


def apart(action: Callable[..., object], *arguments: object) -> object:
    """What `action(*arguments)` returns in a process of its own, whose memory holds nothing of other tests."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_answer, args=(theirs, action, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            raise TimeoutError(f"no answer in {PATIENCE} seconds")
        return ours.recv()
    finally:
        process.kill()
        process.join()


def _answer(answer: Connection, action: Callable[..., object], arguments: tuple[object, ...]) -> None:
    answer.send(action(*arguments))


def _run(processes: list) -> list[int | None]:
    """Start them all, wait, and return their exit codes; those that still run are killed."""
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _act(rank: int, size: int, store: Path, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        action(*arguments)
    except Exception as error:
        store.with_name(f"{store.name}.{rank}").write_text(f"{type(error).__name__}: {error}")
        raise
    dist.destroy_process_group()


def _config(rule: str):
    from saelab.sae import SAEConfig

    return SAEConfig(10, 48, rule=rule, k=3, lr=2e-3, dead_after=300)


def _train(log: Connection, file: Path, folder: Path, rule: str) -> None:
    import torch

    from saelab.sae import TrainConfig, fit

    torch.set_num_threads(1)
    train = TrainConfig(batch_size=64, steps=40, log_every=3, checkpoint_every=5)

    def slow(which: int, step: int, numbers: dict[str, float]) -> None:
        log.send(step)
        time.sleep(0.02)

    fit(np.load(file, mmap_mode="r"), _config(rule), train, folder, logger=slow, progress=False)


def _share(rank: int, size: int, store: Path, file: Path, folder: Path, rule: str) -> None:
    import torch
    import torch.distributed as dist

    from saelab.sae import TrainConfig, fit

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    train = TrainConfig(batch_size=64, steps=20, log_every=5)
    fit(np.load(file), _config(rule), train, folder / str(rank), progress=False)
    dist.destroy_process_group()
