"""Activation caches: right rows, right statistics, no row lost or doubled by a kill, a full disk or two processes."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cache_world import LAYERS, host, pictures, truth

from saelab import cache
from saelab.cache import layout, passes
from saelab.cache import write as write_function
from saelab.errors import UserError
from saelab.hosts import Host
from saelab.images import ImageSet

assert write_function is cache.write
write_module = sys.modules["saelab.cache.write"]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return pictures(tmp_path_factory.mktemp("pictures"), 41)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 8 pictures at batch size 4, so that 41 make six, the last one short."""
    monkeypatch.setattr(write_module, "SHARD_BYTES", 8 * 49 * 5 * 2)


def written(pictured: ImageSet, root: Path, **settings: object) -> dict[str, cache.ActivationCache]:
    return cache.write(pictured, host(), LAYERS, root, **({"batch_size": 4} | settings))  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.suffix in (".h5", ".json")}


def test_rows_are_those_of_a_plain_pass(pictured: ImageSet, tmp_path: Path) -> None:
    for store in written(pictured, tmp_path).values():
        expected = truth(store, host(), pictured)
        assert store.n_tokens == 41 * 49
        stored = np.asarray(store.tokens).reshape(41, 49, 5)
        np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)
        assert np.array_equal(store.image_tokens(17), stored[17].astype(np.float32))
        assert np.array_equal(store.offsets, np.arange(42) * 49)
        assert store.grid(3) == (7, 7)
        np.testing.assert_allclose(store.pooled("max"), expected.max(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(store.pooled("mean"), expected.mean(1), rtol=1e-4, atol=1e-6)
        largest = np.sort(expected, axis=1)[:, -4:].mean(1)  # a tenth of 49, rounded down
        np.testing.assert_allclose(store.pooled("top:0.1"), largest, rtol=1e-3, atol=1e-3)
        assert store.host == "net" and store.layer in LAYERS


def test_statistics_are_of_the_stored_mine_tokens(pictured: ImageSet, tmp_path: Path) -> None:
    for store in written(pictured, tmp_path).values():
        mine = np.concatenate([store.image_tokens(i) for i in pictured.ids("mine")]).astype(np.float64)
        assert 0 < store.count == len(mine) < store.n_tokens
        np.testing.assert_allclose(store.mean, mine.mean(0), rtol=1e-12)
        np.testing.assert_allclose(store.variances, mine.var(0), rtol=1e-12)
        assert store.variance == pytest.approx(mine.var(0).sum(), rel=1e-12)
        assert np.array_equal(store.rows("mine"), np.flatnonzero(store.split_of_rows == "mine"))
        assert np.array_equal(np.unique(store.rows("test") // 49), pictured.ids("test"))


def test_moments_survive_an_offset_that_cancels() -> None:
    tokens = torch.randn(3000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e7
    merged = passes.Moments.none(2)
    for part in tokens.split(7):
        merged = merged.merge(passes.Moments.of(part))
    torch.testing.assert_close(merged.mean, tokens.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.m2 / 3000, tokens.var(0, correction=0), rtol=1e-7, atol=0)


def test_reused_and_told_apart_by_recipe(pictured: ImageSet, tmp_path: Path) -> None:
    first = written(pictured, tmp_path)
    stamps = {n: (c.path / "tokens.h5").stat().st_mtime_ns for n, c in first.items()}
    again = written(pictured, tmp_path, batch_size=3)
    assert {n: (c.path / "tokens.h5").stat().st_mtime_ns for n, c in again.items()} == stamps
    other = written(pictured, tmp_path, dtype="float32")
    assert {c.path for c in other.values()}.isdisjoint(c.path for c in first.values())


def test_file_is_ordinary_hdf5(pictured: ImageSet, tmp_path: Path) -> None:
    store = written(pictured, tmp_path)["conv"]
    with h5py.File(store.path / "tokens.h5") as file:
        assert file["tokens"].chunks is None and file["tokens"].dtype == np.float16
        assert np.array_equal(file["tokens"][:], np.asarray(store.tokens))
        assert file.attrs["layer"] == "conv"


@pytest.mark.parametrize("batch_size", [4, 3])
@pytest.mark.parametrize("killed_after", [0, 4, 20, 40])
def test_killed_and_resumed_gives_the_same_bytes(
    pictured: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int, batch_size: int
) -> None:
    written(pictured, tmp_path / "whole")
    passed: list[int] = []
    original = Host.tokens

    def tokens(self: Host, batch: torch.Tensor, *rest: object) -> object:
        if sum(passed) >= killed_after:
            raise KeyboardInterrupt
        passed.append(len(batch))
        return original(self, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Host, "tokens", tokens)
    with pytest.raises(KeyboardInterrupt):
        written(pictured, tmp_path / "killed")
    redone: list[int] = []

    def counted(self: Host, batch: torch.Tensor, *rest: object) -> object:
        redone.append(len(batch))
        return original(self, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Host, "tokens", counted)
    written(pictured, tmp_path / "killed", batch_size=batch_size)
    assert sum(redone) == 41 - killed_after // 8 * 8, "finished shards are not done again"
    whole, resumed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    if batch_size == 4:
        assert whole == resumed
    else:  # other batches may differ in the last bit of a float32 sum
        assert whole.keys() == resumed.keys()
        for name in LAYERS:
            one, two = (written(pictured, tmp_path / folder)[name] for folder in ("whole", "killed"))
            np.testing.assert_allclose(two.tokens, one.tokens, atol=2e-3)
            np.testing.assert_allclose(two.mean, one.mean, atol=1e-5)
            assert two.verify() == []


def test_a_real_kill_between_shards(pictured: ImageSet, tmp_path: Path) -> None:
    """SIGKILL at the moment that a shard's record is about to be written: rows without a record are done again."""
    written(pictured, tmp_path / "whole")
    root = tmp_path / "killed"
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import cache_world
from saelab.cache import passes
sys.modules["saelab.cache.write"].SHARD_BYTES = {8 * 49 * 5 * 2}
record = passes.LayerWriter._write_record
def die(self, shard):
    if shard == 3: os.kill(os.getpid(), signal.SIGKILL)
    record(self, shard)
passes.LayerWriter._write_record = die
sys.argv = ["", {str(pictured.root)!r}, {str(root)!r}]
cache_world.main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == -9, ended.stderr
    partial = list(root.rglob("*.partial"))
    assert len(partial) == 2 and all(len(list(p.glob("shards/*.safetensors"))) >= 2 for p in partial)
    written(pictured, root)
    assert contents(root) == contents(tmp_path / "whole")


def test_two_processes_write_what_one_does(pictured: ImageSet, tmp_path: Path) -> None:
    written(pictured, tmp_path / "one")
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import cache_world
sys.modules["saelab.cache.write"].SHARD_BYTES = {8 * 49 * 5 * 2}
sys.argv = ["", {str(pictured.root)!r}, {str(tmp_path / "two")!r}]
cache_world.main()
"""
    both = start_two(code)
    assert [status for status, _ in both] == [0, 0], both
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys(), "the same artifact hashes"
    assert one == two


def test_a_mistake_in_one_process_ends_both_in_one_line(pictured: ImageSet, tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import cache_world
from saelab.cache import passes
from saelab.errors import UserError
if os.environ["RANK"] == "1":
    def full(*_): raise OSError(28, "No space left on device")
    passes.layout.write_at = full
sys.modules["saelab.cache.write"].SHARD_BYTES = {8 * 49 * 5 * 2}
sys.argv = ["", {str(pictured.root)!r}, {str(tmp_path / "two")!r}]
try:
    cache_world.main()
except UserError as error:
    print("told:", error)
    os._exit(3)
"""
    both = start_two(code)
    assert [status for status, _ in both] == [3, 3], both
    assert "no room left" in both[0][1] and "(in process 1)" in both[0][1]


def start_two(code: str) -> list[tuple[int, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums depend on how they are shared out
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=common | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    texts = [process.communicate(timeout=600)[0] for process in running]
    return [(process.returncode, text) for process, text in zip(running, texts, strict=True)]


def test_a_full_disk_is_one_line_and_keeps_what_was_written(
    pictured: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own refusal, by a limit on file size that lies in the middle of the tokens."""
    written(pictured, tmp_path / "whole")
    root, prepare = tmp_path / "full", write_module._prepare
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*given: object) -> int:
        made = prepare(*given)
        (partial,) = root.rglob("*.partial")
        start = layout.places(partial / "tokens.h5")[0]["tokens"].offset
        resource.setrlimit(resource.RLIMIT_FSIZE, (start + 20 * 49 * 5 * 2, old[1]))
        return made

    monkeypatch.setattr(write_module, "_prepare", limited)
    try:
        with pytest.raises(UserError, match=r"no room left.*finished shards are kept.*run again") as error:
            cache.write(pictured, host(), ["conv"], root, batch_size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "\n" not in str(error.value)
    (partial,) = root.rglob("*.partial")
    assert len(list(partial.glob("shards/*.safetensors"))) == 2
    monkeypatch.setattr(write_module, "_prepare", prepare)
    cache.write(pictured, host(), ["conv"], root, batch_size=4)
    whole = contents(tmp_path / "whole")
    assert contents(root).items() <= whole.items()


def test_too_little_disk_is_said_before_the_start(
    pictured: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(write_module.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(Host, "tokens", lambda *_: pytest.fail("it started"))
    with pytest.raises(UserError, match=r"GB of activations to write, 0\.00 GB free"):
        written(pictured, tmp_path)


def test_estimate_is_the_size_but_for_the_header(pictured: ImageSet, tmp_path: Path) -> None:
    store = written(pictured, tmp_path)["conv"]
    plan, _ = passes.plan_of(pictured, host(), "conv", "all", "float16", None, 0)
    assert 0 <= (store.path / "tokens.h5").stat().st_size - write_module.estimate(41, plan) < 40_000


@pytest.mark.parametrize("where", ["header", "first row", "middle", "last row", "pooled", "mean"])
def test_verify_finds_a_flipped_bit_anywhere(pictured: ImageSet, tmp_path: Path, where: str) -> None:
    store = written(pictured, tmp_path)["conv"]
    assert store.verify() == []
    places = store._places
    tokens = places["tokens"]
    at = {
        "header": 3,
        "first row": tokens.offset,
        "middle": tokens.offset + (tokens.end - tokens.offset) // 2,
        "last row": tokens.end - 1,
        "pooled": places["pooled_max"].end - 1,
        "mean": places["mean"].offset,
    }[where]
    with (store.path / "tokens.h5").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    (found,) = store.verify()
    expected = {"first row": "images 0 to 7", "middle": "images 16 to 23", "last row": "images 40 to 40"}
    assert expected.get(where, "header, offsets") in found


def test_damaged_foreign_and_unfinished_files_are_refused(pictured: ImageSet, tmp_path: Path) -> None:
    store = written(pictured, tmp_path)["conv"]
    file = store.path / "tokens.h5"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"damaged: tokens\.h5 has"):
        cache.open(store.path)
    file.write_bytes(b"\0" * len(data))
    with pytest.raises(UserError, match=r"damaged: the contents of tokens\.h5 are not what was written"):
        cache.open(store.path)
    with pytest.raises(UserError, match="damaged or no HDF5 file") as error:
        layout.places(file)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such folder"):
        cache.open(tmp_path / "nowhere")
    with h5py.File(tmp_path / "foreign.h5", "w") as foreign:
        foreign["x"] = np.zeros(3)
    with pytest.raises(UserError, match="not one of saelab's"):
        layout.places(tmp_path / "foreign.h5")
    with pytest.raises(UserError, match="another image set"):
        written(pictured, tmp_path / "other")["in:pool"].require_images("something")


def test_sampled_tokens_are_a_fixed_choice_and_pooling_sees_all(pictured: ImageSet, tmp_path: Path) -> None:
    full = written(pictured, tmp_path)["conv"]
    some = written(pictured, tmp_path, tokens_per_image=6)["conv"]
    assert some.n_tokens == 41 * 6 and some.grid(0) is None
    assert np.array_equal(some.pooled("max"), full.pooled("max"))
    chosen = []
    for i in range(41):
        own = {row.tobytes(): j for j, row in enumerate(np.asarray(full.tokens[full.offsets[i] : full.offsets[i + 1]]))}
        places = [own[row.tobytes()] for row in np.asarray(some.tokens[some.offsets[i] : some.offsets[i + 1]])]
        assert places == sorted(set(places)) and len(places) == 6
        chosen.append(tuple(places))
    assert len(set(chosen)) > 30, "each image has its own choice"
    assert len({j for places in chosen for j in places}) == 49
    again = written(pictured, tmp_path / "again", tokens_per_image=6, batch_size=5)["conv"]
    assert np.allclose(again.tokens, some.tokens, atol=1e-3)
    other = written(pictured, tmp_path, tokens_per_image=6, seed=1)["conv"]
    assert not np.array_equal(other.tokens, some.tokens)


def test_wider_dtypes_round_as_torch_does(pictured: ImageSet, tmp_path: Path) -> None:
    exact = written(pictured, tmp_path, dtype="float32")["conv"]
    rounded = written(pictured, tmp_path, dtype="bfloat16")["conv"]
    expected = torch.from_numpy(np.asarray(exact.tokens)).to(torch.bfloat16).float().numpy()
    assert np.array_equal(rounded.tokens[:], expected)
    rows = np.array([5, 900, 7])
    assert np.array_equal(np.asarray(rounded.tokens[rows]), expected[rows])
    np.testing.assert_allclose(rounded.mean, expected[rounded.rows("mine")].mean(0, dtype=np.float64), rtol=1e-6)
    batch = cache.Batches(rounded.tokens, 16, rows=rounded.rows("mine")).batch(0)
    assert batch.dtype == torch.float32 and batch.shape == (16, 5)


def test_values_beyond_the_dtype_are_refused(
    pictured: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = host()
    with torch.no_grad():
        made.model.conv.bias.fill_(7e4)
    with pytest.raises(UserError, match=r"dtype=float16: can't hold 7e\+04, a value of conv; set dtype=bfloat16"):
        cache.write(pictured, made, ["conv"], tmp_path)


def test_values_that_the_dtype_would_lose_are_refused(pictured: ImageSet, tmp_path: Path) -> None:
    """Shard by shard, before its record is written: no later run takes the zeros for activations."""
    made = host()
    with torch.no_grad():
        made.model.conv.weight.mul_(1e-9), made.model.conv.bias.mul_(1e-9)
    lost = r"dtype=float16: values of conv of at most \S+e-(09|10) are too small for it: 100% is lost; set dtype=bf"
    for _ in range(2):
        with pytest.raises(UserError, match=lost):
            cache.write(pictured, made, ["conv"], tmp_path)
    assert not list(tmp_path.rglob("shards/*"))
    kept = cache.write(pictured, made, ["conv"], tmp_path, dtype="bfloat16")["conv"]
    assert 0 < np.abs(kept.tokens[:]).max() < 1e-7
    with torch.no_grad():
        made.model.conv.weight.zero_(), made.model.conv.bias.zero_()  # a dead layer has nothing to lose
    assert not np.any(cache.write(pictured, made, ["conv"], tmp_path / "dead")["conv"].tokens)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dtype": "float8"}, "dtype=float8: unknown"),
        ({"tokens_per_image": 0}, "tokens_per_image=0"),
        ({"policy": "cls"}, "policy=cls: layer"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_settings_leave_nothing_behind(pictured: ImageSet, tmp_path: Path, settings: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        written(pictured, tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_pools_that_the_tokens_do_not_allow(pictured: ImageSet, tmp_path: Path) -> None:
    store = written(pictured, tmp_path)["conv"]
    for kind in ("cls", "median", "top:0", "top:x"):
        with pytest.raises(UserError, match=f"pool={kind}"):
            store.pooled(kind)
