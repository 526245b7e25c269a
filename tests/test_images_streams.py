"""Pictures that never sit on this disk: webdataset tars over HTTP, read in passes and by place, nothing stored."""

import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_world import LAYERS, host, truth
from PIL import Image
from servers import FileServer

from saelab import cache as caches
from saelab.errors import UserError
from saelab.images import ImageSet, load, remote, scan, spots, tars
from saelab.images import parquet_cells as cells

ROOT = Path(__file__).resolve().parents[1]
COUNT, PER_SHARD = 24, 8
TWIN = 21  # shows what picture 2 shows


def picture(i: int) -> Image.Image:
    noise = np.random.default_rng(2 if i == TWIN else i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(i: int) -> bytes:
    buffer = io.BytesIO()
    picture(i).save(buffer, "PNG", compress_level=9 if i == TWIN else 1)
    return buffer.getvalue()


def member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three tars of eight pictures with captions and classes; one file of the last is no picture."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(COUNT // PER_SHARD):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
            for i in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                member(
                    tar, f"{'a' * 120 if i == 3 else ''}{i:04d}.png", encoded(i)
                )  # a long name has headers of its own
                member(tar, f"{'a' * 120 if i == 3 else ''}{i:04d}.txt", f"number {i}".encode())
                member(tar, f"{'a' * 120 if i == 3 else ''}{i:04d}.cls", str(i % 2).encode())
            if shard == 2:
                member(tar, "broken.jpg", b"\xff\xd8 no picture")
    return folder


def opened(where: str, **more) -> ImageSet:
    return load("webdataset", shards=f"{where}/train-{{000..002}}.tar", names=["even", "odd"], streaming=True, **more)


def stored(*folders: Path) -> list[Path]:
    return [p for folder in folders for p in folder.rglob("*") if p.is_file()]


def test_a_stream_is_the_set_that_a_copy_would_be(cache, shards):
    with FileServer(shards) as server:
        images = opened(server.url)
        again = len(server.parts)
        assert opened(server.url).fingerprint == images.fingerprint
        assert len(server.parts) == again + 3  # the index is kept: only the shards' sizes are asked for
        assert [i.tobytes() for i in images.pictures(range(COUNT))] == [picture(i).tobytes() for i in range(COUNT)]
    copied = load("webdataset", shards=str(shards / "*.tar"), names=["even", "odd"])
    assert images.captions == copied.captions == tuple(f"number {i}" for i in range(COUNT))
    assert images.classes == copied.classes and images.classes[3] == ("odd",)
    assert images.sizes == copied.sizes and (images.groups == copied.groups).all()
    assert images.groups[TWIN] == images.groups[2] and images.splits[TWIN] == images.splits[2]
    assert images.files[9] == "train-001/0009.png"
    assert [s for s in images.skipped if s[0] == "train-002/broken.jpg"] and len(images.skipped) == 1
    local = opened(str(shards))
    assert local.fingerprint == images.fingerprint and local.load(5).tobytes() == picture(5).tobytes()


def test_nothing_of_a_picture_is_stored_and_the_cache_is_that_of_files(cache, shards, tmp_path):
    with FileServer(shards) as server:
        images = opened(server.url)
        served = len(server.parts)
        made = caches.write(images, host(), LAYERS, tmp_path / "runs", batch_size=PER_SHARD)
        assert len(server.parts) == served + COUNT // PER_SHARD  # a request a batch, for both layers
        images.save(tmp_path / "runs")
        assert sum(p.stat().st_size for p in stored(cache)) < 2048 * COUNT
        for file in stored(cache, tmp_path / "runs"):
            data = file.read_bytes()
            assert not any(encoded(i)[60:90] in data for i in range(COUNT)), file
        (tmp_path / "files").mkdir()
        for i in range(COUNT):
            (tmp_path / "files" / f"{i:04d}.png").write_bytes(encoded(i))
        files = load("folder", root=str(tmp_path / "files"))
        for name, store in made.items():
            assert store.image_tokens(7) == pytest.approx(truth(store, host(), images)[7], rel=2e-3, abs=2e-3)
            twin = caches.write(files, host(), [name], tmp_path / "twin", batch_size=PER_SHARD)[name]
            assert np.array_equal(store.tokens, twin.tokens)
        read = ImageSet.load(tmp_path / "runs")  # a report or a viewer, later, fetches what it shows by its place
        before = len(server.parts)
        assert read.load(13).tobytes() == picture(13).tobytes()
        ((name, start, size),) = server.parts[before:]
        assert name == "train-001.tar" and size == len(encoded(13))
        assert (shards / name).read_bytes()[start : start + size] == encoded(13)


def test_workers_fetch_a_batch_at_once_in_the_same_order(cache, shards):
    with FileServer(shards) as server:
        images = opened(server.url)
        before = len(server.parts)
        seen = torch.cat([batch for _, batch in images.batches(pixels, 8, workers=2)])
        assert torch.equal(seen, torch.stack([pixels(picture(i)) for i in range(COUNT)]))
        assert len(server.parts) == before + 3


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_broken_off_index_goes_on_where_it_stopped(cache, shards, monkeypatch):
    looked: list[bytes] = []
    look = scan.look_at

    def until_eleven(data: bytes):
        if len(looked) == 11:
            raise KeyboardInterrupt
        looked.append(data)
        return look(data)

    with FileServer(shards) as server:
        monkeypatch.setattr(scan, "look_at", until_eleven)
        with pytest.raises(KeyboardInterrupt):
            opened(server.url)
        (table,) = (cache / "streams").glob("*.partial/index.jsonl")
        table.write_text(table.read_text()[:-9])  # and the last line was cut off
        kept = len(table.read_text().splitlines()) - 1
        assert 0 < kept <= 11
        monkeypatch.setattr(scan, "look_at", look)
        server.parts.clear()
        images = opened(server.url)
        first = next(part for part in server.parts if part[2] > 1)
        assert first[0] == f"train-{kept // PER_SHARD:03d}.tar" and (first[1] > 0) == (kept % PER_SHARD > 0)
        assert [i.tobytes() for i in images.pictures(range(COUNT))] == [picture(i).tobytes() for i in range(COUNT)]
        rows = [json.loads(line) for line in next((cache / "streams").glob("*/index.jsonl")).open()]
        assert len(rows) == COUNT + 1


def test_a_pass_that_lost_the_server_asks_only_for_the_rest(cache, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["saelab.cache.write"], "SHARD_BYTES", 1)  # a record for each batch
    with FileServer(shards) as server:
        images = opened(server.url)
        expected = caches.write(images, host(), ["conv"], tmp_path / "whole", batch_size=4)["conv"]
        made, forwards = host(), []

        def until_third(*args: object) -> None:
            forwards.append(args)
            server.faults = [404] if len(forwards) == 3 else []

        made.model.conv.register_forward_hook(until_third)
        with pytest.raises(UserError, match=r"can't be read any more \(404"):
            caches.write(images, made, ["conv"], tmp_path / "runs", batch_size=4)
        server.parts.clear()
        store = caches.write(images, host(), ["conv"], tmp_path / "runs", batch_size=4)["conv"]
        assert 0 < len(server.parts) < COUNT // 4
        assert np.array_equal(store.tokens, expected.tokens) and store.verify() == []


def test_each_sample_can_be_the_first(shards):
    file = str(shards / "train-000.tar")
    total = remote.size(file)
    whole = list(tars.samples(file, total, []))
    assert len(whole) == PER_SHARD
    for n, sample in enumerate(whole):
        rest = list(tars.samples(file, total, [], sample.after))
        assert rest == whole[n + 1 :]
        data = sample.item.data
        assert remote.part(file, sample.place[0], sample.place[0] + len(data)) == data


def test_failures_that_pass_are_not_seen_and_others_are_one_line(cache, shards):
    with FileServer(shards) as server:
        server.faults = [503, 429]
        images = opened(server.url, take=10)
        assert len(images) == 10
        server.faults = [500] * remote.TRIES
        with pytest.raises(UserError, match=r"train-000/0004\.png: can't be read any more \(500 Internal"):
            images.load(4)
        assert images.load(4).tobytes() == picture(4).tobytes()
        changed = shards / "train-000.tar"
        data = bytearray(changed.read_bytes())
        data[images.spots[5].offset + 50] ^= 1
        changed.write_bytes(data)
        with pytest.raises(UserError, match=r"0005\.png: can't be read any more \(its bytes have changed since"):
            list(images.batches(pixels, 4))
        (shards / "train-001.tar").unlink()
        with pytest.raises(UserError, match=r"images\.shards=http://.*train-001\.tar: can't be read \(404"):
            opened(server.url)
    with pytest.raises(UserError, match=r"can't be read any more \(.*refused\)"):
        images.load(0)


def test_what_can_not_be_streamed(cache, shards, tmp_path):
    with FileServer(shards, ranges=False) as server, pytest.raises(UserError, match="the server sends no parts of"):
        opened(server.url)
    (tmp_path / "z.tar.gz").write_bytes(gzip.compress((shards / "train-000.tar").read_bytes()))
    with pytest.raises(UserError, match="not a whole uncompressed tar file"):
        load("webdataset", shards=str(tmp_path / "z.tar.gz"), streaming=True)
    assert len(load("webdataset", shards=str(tmp_path / "z.tar.gz"))) == PER_SHARD
    whole, cut = (shards / "train-000.tar").read_bytes(), tmp_path / "cut.tar"
    for length in range(600, whole.rindex(b"0007.cls"), 997):  # tarfile itself passes over most of these in silence
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a whole uncompressed tar file"):
            load("webdataset", shards=str(cut), streaming=True)


@pytest.mark.parametrize("answer", ["long", "short", "unsaid"])
def test_a_server_that_lies_about_parts_is_told_of_in_one_line(cache, shards, monkeypatch, answer):
    """Too many bytes are not read, a cut line is no traceback, and a part of nobody knows what is refused."""

    told = Message()
    if answer != "unsaid":
        told["Content-Range"] = "bytes 0-0/3072"

    class Lying:
        status, headers = 206, told

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self, most):
            if answer == "short":
                raise http.client.IncompleteRead(b"")
            return bytes(most)

    monkeypatch.setattr(remote.urllib.request, "urlopen", lambda *_, **__: Lying())
    says = {"long": "more bytes than were asked for", "short": "IncompleteRead", "unsaid": "Content-Range: none"}[
        answer
    ]
    with pytest.raises(UserError, match=rf"images\.shards=http://h/a\.tar: can't be read \(.*{says}"):
        load("webdataset", shards="http://h/a.tar", streaming=True)


def test_members_that_are_no_pictures_or_claim_to_be_huge_are_not_held(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "LARGEST", 1 << 16)
    held: list[int] = []
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda tar, m: held.append(m.size) or extract(tar, m))
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        member(tar, "0.png", encoded(0))
        member(tar, "0.npy", bytes(1 << 17))
        member(tar, "1.png", bytes(1 << 17))
        member(tar, "../../2.png", encoded(2))
    images = load("webdataset", shards=str(tmp_path / "odd.tar"), streaming=True)
    assert images.files == ("odd/0.png", "odd/../../2.png") and max(held) < 1 << 16
    assert images.load(1).tobytes() == picture(2).tobytes()
    assert not list(tmp_path.rglob("2.png"))  # its name is a name, not a place


def test_addresses_of_other_kinds_and_copies_over_http(cache, shards):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for file in shards.iterdir():
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    images = opened("memory://bucket")
    assert [i.tobytes() for i in images.pictures([20, 3])] == [picture(20).tobytes(), picture(3).tobytes()]
    with FileServer(shards) as server:
        copied = load("webdataset", shards=f"{server.url}/train-{{000..001}}.tar", take=12)
    assert len(copied) == 12 and copied.load(11).tobytes() == picture(11).tobytes()  # the server is gone
    with pytest.raises(UserError, match=r"images\.shards=https://h: must hold no password") as refused:
        load("webdataset", shards="https://me:secret@h/a.tar")
    assert "secret" not in str(refused.value)
    for secret in ("https://s3cret@h/a.tar", "https://h/a.tar?X-Amz-Signature=s3cret", "http://h/a.tar?x=1&sig=s3cret"):
        with pytest.raises(UserError, match=r"images\.shards=https?://h: must hold no password, token or") as refused:
            load("webdataset", shards=secret, streaming=True)
        assert "s3cret" not in str(refused.value)
    assert tars._files("https://h/a.tar?download=true&design=1") == ["https://h/a.tar?download=true&design=1"]
    with pytest.raises(UserError, match=r"images\.shards=nosuch://x/a\.tar: can't be opened"):
        load("webdataset", shards="nosuch://x/a.tar")


def test_braces_and_names_of_shards():
    assert remote.expand_braces("https://h/{0..1}/a-{008..010}.tar") == [
        f"https://h/{d}/a-{n}.tar" for d in (0, 1) for n in ("008", "009", "010")
    ]
    assert remote.expand_braces("plain.tar") == ["plain.tar"]


def test_killed_and_run_again_from_the_command_line(cache, shards, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "cache.py"), "images=webdataset", "images.streaming=true"]
    command += ["images.names=[even,odd]", f"root={tmp_path / 'runs'}", "host=own", "host.name=module:stream_host:make"]
    command += ["host.layers=[conv]", "batch_size=2", "workers=0", "device=cpu"]
    (tmp_path / "stream_host.py").write_text(
        "import time\nfrom cache_world import Net, host\n"
        "class Slow(Net):\n"
        "    def forward(self, x):\n"
        "        time.sleep(0.2)\n"
        "        return super().forward(x)\n"
        "def make():\n"
        "    made = host()\n"
        "    net = Slow()\n"
        "    net.load_state_dict(made.model.state_dict())\n"
        "    return net, made.transform\n"
    )
    paths = f"{tmp_path}{os.pathsep}{ROOT / 'tests'}"
    env = {**os.environ, "PYTHONPATH": paths, "SAELAB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with FileServer(shards) as server:
        command.append(f"images.shards='{server.url}/train-{{000..002}}.tar'")
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as first:
            deadline = time.monotonic() + 600
            while time.monotonic() < deadline and first.poll() is None:
                if list((tmp_path / "runs").glob("activations/*.partial/plan.json")):
                    time.sleep(0.5)  # in the middle of the pass
                    break
                time.sleep(0.02)
            first.send_signal(signal.SIGKILL)
            said = first.communicate()[1]
        assert first.returncode == -signal.SIGKILL, said
        server.parts.clear()
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"conv: {COUNT} images" in done.stdout and "resuming" in done.stderr
        assert not any(start == 0 and size > 1 for _, start, size in server.parts)  # neither indexed nor begun again
        store = caches.open(next(p for p in (tmp_path / "runs" / "activations").iterdir() if p.is_dir()))
        images = opened(server.url)
        assert store.verify() == []
        assert np.asarray(store.tokens).reshape(COUNT, -1, 5) == pytest.approx(
            truth(store, host(), images), rel=2e-3, abs=2e-3
        )


# --- Hugging Face sets in Parquet files


@pytest.fixture
def parquet(tmp_path) -> Path:
    """24 pictures in two files of row groups of five; the column of pictures isn't the first."""
    datasets = pytest.importorskip("datasets")
    kinds = {
        "text": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["a", "b"]),
    }
    folder = tmp_path / "hf"
    folder.mkdir()
    for file, ids in enumerate((range(14), range(14, COUNT))):
        rows = {"text": [f"number {i}" for i in ids], "label": [i % 2 for i in ids]}
        rows["image"] = [{"bytes": encoded(i), "path": None} for i in ids]
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        made.to_parquet(folder / f"train-{file:05d}-of-00002.parquet", batch_size=5)
    return folder


def test_parquet_files_are_streamed_row_group_by_row_group(cache, parquet, tmp_path, monkeypatch):
    options = {"dataset": str(parquet), "caption": "text", "label": "label", "streaming": True}
    copied = load("huggingface", **options)
    for file in (cache / "pictures").rglob("*.img"):
        file.unlink()
    images = load("huggingface", **options, stored=False)
    assert images.captions == copied.captions and images.classes == copied.classes
    assert (images.groups == copied.groups).all() and images.groups[TWIN] == 2
    assert [i.tobytes() for i in images.pictures(range(COUNT))] == [picture(i).tobytes() for i in range(COUNT)]
    made = caches.write(images, host(), ["conv"], tmp_path / "runs", batch_size=4, workers=2)["conv"]
    assert np.asarray(made.tokens).reshape(COUNT, -1, 5) == pytest.approx(
        truth(made, host(), images), rel=2e-3, abs=2e-3
    )
    images.save(tmp_path / "runs")
    for file in stored(cache, tmp_path / "runs"):
        assert not any(encoded(i)[60:90] in file.read_bytes() for i in range(COUNT)), file
    assert ImageSet.load(tmp_path / "runs").load(19).tobytes() == picture(19).tobytes()
    assert len(load("huggingface", **options, stored=False, take=7)) == 7

    opened_parts: list[str] = []
    part = remote.part
    monkeypatch.setattr(remote, "part", lambda *asked: opened_parts.append(asked[0]) or part(*asked))
    cells._column.cache_clear()
    list(images.pictures(range(COUNT)))
    groups = {(s.file, s.group) for s in images.spots}
    assert len(groups) == 5 and len(opened_parts) <= 4 * len(groups)  # a group's column, and the file's own table


def test_parquet_files_over_http_are_read_in_parts(cache, tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    noise = [np.random.default_rng(i).bytes(60_000) for i in range(20)]
    table = pa.table({"image": [{"bytes": data, "path": None} for data in noise]})
    write_table(table, tmp_path / "noise.parquet", row_group_size=2)
    with FileServer(tmp_path) as server:
        cell = remote.Cell(f"{server.url}/noise.parquet", 6, 1, "image", hashlib.sha256(noise[13]).hexdigest())
        assert next(spots.read([cell])) == noise[13]
        assert sum(size for _, _, size in server.parts) < 60_000 * 2 + (1 << 17)  # a group and the file's own table


@pytest.mark.parametrize("plain", [False, True])
def test_rows_without_a_picture_are_listed(cache, tmp_path, plain):
    pytest.importorskip("datasets")
    import pyarrow as pa
    from pyarrow.parquet import write_table

    (tmp_path / "secret.png").write_bytes(encoded(9))
    cells = [encoded(0), None, encoded(2)]
    if not plain:
        cells = [None if c is None else {"bytes": c, "path": None} for c in cells]
        cells.append({"bytes": None, "path": str(tmp_path / "secret.png")})  # a set may not send us to our own files
    (tmp_path / "hf").mkdir()
    write_table(pa.table({"image": cells}), tmp_path / "hf" / "train-00000-of-00001.parquet")
    images = load("huggingface", dataset=str(tmp_path / "hf"), streaming=True, stored=False)
    assert [i.tobytes() for i in images.pictures([0, 1])] == [picture(0).tobytes(), picture(2).tobytes()]
    assert len(images) == 2 and {reason for _, reason in images.skipped} == {"zero bytes"}


def test_an_index_of_parquet_files_goes_on_where_it_stopped(cache, parquet, monkeypatch):
    options = {"dataset": str(parquet), "label": "label", "streaming": True, "stored": False}
    whole = load("huggingface", **options)
    (table,) = (cache / "streams").glob("*/index.jsonl")
    lines = table.read_text().splitlines(keepends=True)
    for kept in (0, 4, 5, 13, 14, 23):
        shutil.rmtree(cache / "streams")
        looked: list[bytes] = []
        look = scan.look_at

        def until(data: bytes, kept=kept, looked=looked, look=look):
            looked.append(data)
            if len(looked) > kept:
                raise KeyboardInterrupt
            return look(data)

        monkeypatch.setattr(scan, "look_at", until)
        with pytest.raises(KeyboardInterrupt):
            load("huggingface", **options)
        monkeypatch.setattr(scan, "look_at", look)
        (begun,) = (cache / "streams").glob("*.partial/index.jsonl")
        begun.write_text("".join(lines[:kept]))
        assert load("huggingface", **options).fingerprint == whole.fingerprint
        (again,) = (cache / "streams").glob("*/index.jsonl")
        assert again.read_text() == "".join(lines)


def test_what_is_no_parquet_set(cache, parquet, tmp_path):
    options = {"streaming": True, "stored": False}
    with pytest.raises(UserError, match=r"images\.stored=False: is for streamed sets"):
        load("huggingface", dataset=str(parquet), stored=False)
    (tmp_path / "folder" / "train").mkdir(parents=True)
    picture(1).save(tmp_path / "folder" / "train" / "1.png")
    with pytest.raises(UserError, match=r"does not lie in Parquet files; give images\.stored=true"):
        load("huggingface", dataset=str(tmp_path / "folder"), **options)
    images = load("huggingface", dataset=str(parquet), **options)
    file = next(parquet.glob("*00000*.parquet"))
    file.write_bytes(file.read_bytes()[:300])
    cells._column.cache_clear()
    with pytest.raises(UserError, match="not a whole Parquet file"):
        images.load(0)
