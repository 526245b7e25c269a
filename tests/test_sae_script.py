"""scripts/train.py as users start it: every preset, W&B without a network, and torchrun."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import torch
from servers import free_port
from small_images import coloured

from saelab.artifacts import digest
from saelab.errors import UserError
from saelab.run.distributed import explain
from saelab.run.presets import preset
from saelab.run.stages.sae import check_names, sae_configs
from saelab.sae import SAE, SAEConfig, TrainConfig, fit

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted(file.stem for file in (ROOT / "conf" / "sae").glob("*.yaml"))
SMALL = (
    "host.weights=random",
    "sae.latents=48",
    "sae.k=4",
    "sae.train.batch_size=128",
    "seeds=[3]",
    "workers=0",
    "layers=[_blocks.15]",
)
KEY = "0123456789abcdef" * 2 + "01234567"  # of W&B's form, and nobody's
PATIENCE = 180


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_config_that_trains(preset):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train", [f"sae={preset}"]).sae)
    (wide,), train = sae_configs(settings, "layer", 12, [0])
    assert wide.latents == (settings["latents"] or 12 * (2 if preset == "quickstart" else settings["expansion"]))
    assert train.epochs >= 20
    for name in ("train", "latents", "expansion"):
        settings.pop(name)
    x = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)) + 3
    small = SAEConfig(d_in=12, latents=96, **{**settings, "k": 6} if "k" in settings else settings)
    lines: list[dict[str, float]] = []
    own = TrainConfig(batch_size=200, steps=60, log_every=1)
    found = fit(x, small, own, progress=False, logger=lambda which, step, numbers: lines.append(numbers))
    assert found.quality["fvu"] < 0.9 * lines[0]["fvu"] and found.quality["dead"] < 0.5


SLIPS = {
    "k": ("abc", r"sae\.k=abc: expected a whole number"),
    "foo": (1, r"sae\.foo=1: there is no such setting; .*known: latents, rule"),
    "lr": ("fast", r"sae\.lr=fast: expected a number or null"),
    "multi_topk": (1, r"sae\.multi_topk=1: expected true or false"),
    "expansion": (None, r"sae\.expansion=None: has to be a number"),
    "train": ({"epochs": "x"}, r"sae\.train\.epochs=x: expected a number"),
    "rule": ("topp", r"rule=topp: one of topk"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_the_settings_is_told_in_one_line(slip):
    good = {"rule": "topk", "expansion": 2, "latents": None, "k": 4, "lr": 1e-3, "train": {"epochs": 2}}
    found, train = sae_configs(good, "layer", 12, [0, 5])
    assert found[1] == SAEConfig(12, 24, k=4, lr=1e-3, seed=5) and train == TrainConfig(epochs=2)
    value, message = SLIPS[slip]
    with pytest.raises(UserError, match=message):
        sae_configs({**good, slip: value}, "layer", 12, [0])


def test_each_layer_has_its_own_expansion_by_name():
    named = {"rule": "topk", "expansion": {"default": 2, "head": 0.5}, "k": 4}
    assert [sae_configs(named, layer, 12, [0])[0][0].latents for layer in ("head", "other")] == [6, 24]
    assert sae_configs(named | {"latents": 7}, "head", 12, [0])[0][0].latents == 7
    check_names(named, ["head", "other"])
    with pytest.raises(UserError, match=r"sae\.expansion=head: is no layer of this run; .*haed"):
        check_names(named, ["haed", "other"])
    for wrong in ({"head": 2}, {"default": "two"}, {"default": 2, "other": None}, {"default": True}, {}):
        with pytest.raises(UserError, match=r"sae\.expansion=.*: has to be a number .*give a number, or one for each"):
            sae_configs(named | {"expansion": wrong}, "layer", 12, [0])
    check_names(preset("sae", "quickstart"), ["layer4"])  # the shipped one serves other hosts too


NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, {}, NCCL version 2.20.5\n{}\nLast error:\n{}"
USAGE = (
    "invalid usage (run with NCCL_DEBUG=WARN for details)",
    "ncclInvalidUsage: This usually reflects invalid usage.",
)
CUDA = ("unhandled cuda error (run with NCCL_DEBUG=INFO for details)", "ncclUnhandledCudaError: Call to CUDA failed.")
REMOTE = ("remote process exited or there was a network error", "ncclRemoteError: A call failed possibly due to ...")
STACK = "\nException raised from getNCCLComm (most recent call first):\nframe #0: c10::Error::Error + 0x57"
LOST = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:10895",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error [192.168.70.92]:25266: Connection reset by peer",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation",
    NCCL.format(*REMOTE, "socketProgress: Connection closed by remote peer node1<45074>") + STACK,
    NCCL.format(*REMOTE, "NET/IB : Got completion from peer 11.214.147.122<39138> with error 12"),
    "NCCL communicator was aborted on rank 2. Original reason for failure was: [Rank 2] Watchdog caught collective "
    "operation timeout: WorkNCCL(OpType=BROADCAST) ran for 1805457 milliseconds before timing out.",
    "The client socket has timed out after 60000ms while trying to connect to (node1, 29500).",
]
REFUSED = {
    NCCL.format(*USAGE, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 10") + STACK: (
        r"NCCL error in: .*invalid usage.*: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 10; "
        r"start as many processes as there are GPUs"
    ),
    NCCL.format(*CUDA, "Cuda failure 2 'out of memory'"): r"unhandled cuda error.*: Cuda failure 2 'out of memory'; NC",
    "Distributed package doesn't have NCCL built in": r"package doesn't have NCCL built in; NCCL_DEBUG=INFO",
}
OTHER = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8.00 GiB",
    "DataLoader timed out after 60 seconds",
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
]


@pytest.mark.parametrize("text", [*LOST, *REFUSED, *OTHER])
def test_what_goes_wrong_between_processes_is_told_as_what_it_is(text):
    """Texts as gloo, nccl and torch's store write them."""
    found = explain(text, 1, 2)
    assert (found is None) == (text in OTHER)
    if found is not None:
        lost = "another process ended before this one, or can't be reached; run the same command again"
        assert re.search(REFUSED.get(text, lost), str(found)) and ("another process" in str(found)) == (text in LOST)
        assert str(found).startswith("torchrun=process 1 of 2: ") and len(str(found).splitlines()) == 1


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with pictures and the cache of one layer of a random network (`runs`), made by the script."""
    folder = tmp_path_factory.mktemp("train")
    coloured(folder / "pictures", 30, size=64)
    done = run(folder, "runs", "+sae.train.steps=1")
    assert done.returncode == 0, done.stderr
    return folder


def command(folder: Path, root: str, *settings: str) -> list[str]:
    pictures = ["images=folder", f"images.root={folder / 'pictures'}"]
    return [str(ROOT / "scripts" / "train.py"), *pictures, f"root={folder / root}", "device=cpu", *SMALL, *settings]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Nobody logged in anywhere, one thread, and compiled files kept: children import torch in a third of the time."""
    own = {n: v for n, v in os.environ.items() if not n.startswith("WANDB") and n != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "HOME": str(folder), "NETRC": str(folder / "none"), "OMP_NUM_THREADS": "1", **more}


def run(folder: Path, root: str, *settings: str, **more: str) -> subprocess.CompletedProcess:
    """The script to its end."""
    return commands.run(
        [sys.executable, *command(folder, root, *settings)], cwd=folder, env=environment(folder, **more)
    )


def run_ranks(folder: Path, root: str, *settings: str, count: int = 2) -> list[subprocess.CompletedProcess]:
    """The script in so many processes, each with the environment that torchrun gives it."""
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    world["MASTER_PORT"] = str(free_port())
    given = [sys.executable, *command(folder, root, *settings)]
    ranks = [environment(folder, RANK=str(r), LOCAL_RANK=str(r), **world) for r in range(count)]
    going = [commands.start(given, cwd=folder, env=own) for own in ranks]
    return [one.wait() for one in going]


def with_cache(folder: Path, root: str) -> None:
    """A root of its own that has the cache already."""
    (folder / root).mkdir()
    (folder / root / "activations").symlink_to(folder / "runs" / "activations")


def killed_after_a_checkpoint(going: subprocess.Popen | commands.Going, root: Path, victims) -> None:
    """Send SIGKILL to `victims()` as soon as there is a checkpoint."""
    until = time.monotonic() + PATIENCE
    while not list(root.glob("sae/*.partial/checkpoints/step-*.safetensors")):
        assert going.poll() is None and time.monotonic() < until, "ended, or made no checkpoint"
        time.sleep(0.01)
    for pid in victims():
        os.kill(pid, signal.SIGKILL)


def logged(file: Path) -> Iterator[tuple[str, dict]]:
    """(kind, content) of the records in W&B's file: LevelDB's log format around protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    raw, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        part += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record.FromString(part)
            part = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield "history", {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in items}
            elif record.WhichOneof("record_type") == "run":
                yield "run", {"id": record.run.run_id, "project": record.run.project}


@pytest.mark.slow
def test_wandb_without_login_is_written_offline_and_goes_on_under_its_id_after_a_kill(place):
    with_cache(place, "logged")
    settings = (
        "wandb.project=mine",
        "+sae.train.steps=600",
        "sae.train.checkpoint_every=40",
        "+sae.train.log_every=20",
    )
    going = commands.start([sys.executable, *command(place, "logged", *settings)], cwd=place, env=environment(place))
    killed_after_a_checkpoint(going, place / "logged", lambda: [going.pid])
    assert going.wait().returncode == -signal.SIGKILL
    done = run(place, "logged", "wandb.mode=offline", *settings, WANDB_API_KEY=KEY)
    assert done.returncode == 0 and "resuming" in done.stderr, done.stderr
    assert "network" not in done.stderr.lower() and "Traceback" not in done.stderr

    files = sorted((place / "logged").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1, "one id"
    records = list(logged(files[1]))
    assert [content["project"] for kind, content in records if kind == "run"] == ["mine"]
    (saved,) = (place / "logged").glob("sae/*/metrics.jsonl")
    lines = {row["step"]: row for row in map(json.loads, saved.read_text().splitlines())}
    seen = {content["_step"]: content for kind, content in records if kind == "history"}
    assert sorted(lines) == [*range(0, 600, 20), 599] == sorted(seen), "those from before the kill too"
    assert all(seen[step]["fvu"] == row["fvu"] for step, row in lines.items())
    written = [file for file in place.rglob("*") if file.is_file()]
    assert not [file for file in written if KEY.encode() in file.read_bytes()]


def test_a_wandb_run_keeps_its_id_however_latents_are_shared_and_batches_cut():
    from omegaconf import OmegaConf

    from saelab.cli.train import WandbRuns

    told, cut = [], {"latent_shards": 4, "accumulate": 8}
    trains = ({"epochs": 2}, {"epochs": 2, "latent_shards": 1}, {"epochs": 2, **cut}, {"epochs": 3})
    given = [*((train, False) for train in trains), (trains[0], {"crop": None}), (trains[0], {"crop": "random"})]
    for train, stream in given:
        own = {"sae": {"rule": "topk", "train": train}, "host": {"name": "mine"}, "stream": stream}
        cfg = OmegaConf.create({**own, "seeds": [3], "wandb": {"mode": "offline"}})
        told.append(digest(WandbRuns(cfg, "layer", "cache").settings(3)))
    older = {"rule": "topk", "train": {"epochs": 2}, "layer": "layer", "seed": 3, "host": {"name": "mine"}}
    assert [*told[:3], told[4]] == [digest({**older, "cache": "cache"})] * 4
    assert len({told[0], told[3], told[5]}) == 3, "crops and epochs are another run"
    chosen = []
    for pieces in (1, 4, 8):
        sae = {"rule": "topk", "choose_by_piece": True, "train": {"epochs": 2, "accumulate": pieces}}
        own = {"sae": sae, "host": {"name": "mine"}, "stream": False}
        cfg = OmegaConf.create({**own, "seeds": [3], "wandb": {"mode": "offline"}})
        chosen.append(digest(WandbRuns(cfg, "layer", "cache").settings(3)))
    assert chosen[0] == told[0] and len(set(chosen)) == 3, "pieces that choose by themselves change the result"


@pytest.mark.slow
def test_torchrun_gives_the_result_of_one_process_and_goes_on_after_one_of_two_is_killed(place):
    settings = ("+sae.train.steps=60", "sae.train.checkpoint_every=10", "+sae.train.log_every=10")
    for root in ("alone", "two"):
        with_cache(place, root)
    assert run(place, "alone", *settings).returncode == 0

    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    going = subprocess.Popen(
        [*start, *command(place, "two", *settings)],
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed_after_a_checkpoint(going, place / "two", lambda: second_of(going.pid))
    _, told = going.communicate(timeout=PATIENCE)
    ours = [line for line in told.splitlines() if line.startswith("saelab:")]
    assert going.returncode != 0 and len(ours) <= 1, told  # torchrun may end the other one before it can say anything
    assert all("another process ended" in line for line in ours)
    assert "stages.py" not in told and "objectives.py" not in told, "no traceback of ours"

    first, second = run_ranks(place, "two", *settings)
    assert first.returncode == second.returncode == 0 and "resuming" in first.stderr, first.stderr + second.stderr
    assert len(first.stdout.splitlines()) == 1 and not second.stdout, "the first process alone prints"
    one, two = (next((place / root / "sae").glob("*/sae.safetensors")) for root in ("alone", "two"))
    assert not list((place / "two" / "sae").glob("*.partial"))
    for name, tensor in SAE.load(one).tensors().items():
        torch.testing.assert_close(SAE.load(two).tensors()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    lines = [[json.loads(s) for s in (f.parent / "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    for a, b in zip(*lines, strict=True):
        assert a["step"] == b["step"] and a["silent"] == b["silent"]
        assert a["fvu"] == pytest.approx(b["fvu"], rel=1e-4) and a["l0"] == pytest.approx(b["l0"], rel=1e-3)


@pytest.mark.slow
def test_two_shards_make_the_artifact_of_one_process(place):
    settings = (
        "+sae.train.steps=30",
        "sae.train.checkpoint_every=10",
        "+sae.train.log_every=10",
        "+sae.screen=float32",
    )
    for root in ("whole", "shards"):
        with_cache(place, root)
    assert run(place, "whole", *settings).returncode == 0
    alone = run(place, "none", *settings, "sae.train.latent_shards=2")
    last = alone.stderr.strip().splitlines()[-1]
    assert alone.returncode == 2 and "latent_shards=2: has to divide the number of processes, 1" in last
    assert not (place / "none" / "activations").exists(), "before anything is cached"
    first, second = run_ranks(place, "shards", *settings, "sae.train.latent_shards=2")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    one, two = ([*(place / root / "sae").glob("*/sae.safetensors")] for root in ("whole", "shards"))
    assert [file.parent.name for file in one] == [file.parent.name for file in two], "one recipe, however many shards"
    for name, tensor in SAE.load(one[0]).tensors().items():
        torch.testing.assert_close(SAE.load(two[0]).tensors()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    again = run(place, "shards", *settings)
    assert again.returncode == 0 and "reused" in again.stderr


@pytest.mark.slow
def test_two_processes_that_divide_a_stream_make_the_artifact_of_one(place):
    settings = ("stream={pictures:8}", "batch_size=2", "+sae.train.steps=20", "+sae.screen=float32", "workers=1")
    assert run(place, "streamed", *settings).returncode == 0
    first, second = run_ranks(place, "divided", *settings)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    one, two = ([*(place / root / "sae").glob("*/sae.safetensors")] for root in ("streamed", "divided"))
    assert len(one) == 1 and [file.parent.name for file in one] == [file.parent.name for file in two]
    for name, tensor in SAE.load(one[0]).tensors().items():
        torch.testing.assert_close(SAE.load(two[0]).tensors()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    moments = [[*(place / root / "moments").glob("*-first-*/*.safetensors")] for root in ("streamed", "divided")]
    assert len(moments[0]) == 1 and moments[0][0].read_bytes() == moments[1][0].read_bytes(), "of the same tokens"


def second_of(parent: int) -> list[int]:
    """The process of rank 1 among torchrun's children."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            child = entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
            if child and b"RANK=1" in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
