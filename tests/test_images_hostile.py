"""Pictures and sets from strangers: whatever a file holds or is, it is a picture or a line in `skipped`."""

import io
import json
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saelab.errors import UserError
from saelab.images import decode, duplicates, load, scan, tars
from saelab.images.decode import Unreadable
from saelab.text import visible

CALM = settings(max_examples=40)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def png(i: int = 0, size: tuple[int, int] = (24, 16), kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return str(path)


# ---- decoders ----


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "ICO", "SGI", "IM", "DDS", "XBM", "MSP"])
def test_no_decoder_beside_the_listed_ones_is_asked_whatever_the_name_says(tmp_path, kind, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    buffer = io.BytesIO(EPS)
    if kind != "EPS":
        Image.new("1" if kind in ("XBM", "MSP") else "RGB", (16, 16)).save(buffer, kind)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "b.png").write_bytes(png())
    images = load("folder", root=tmp_path)
    assert images.files == ("b.png",) and dict(images.skipped)["a.jpg"].startswith("not a picture in a format")
    with pytest.raises(Unreadable, match="not a picture in a format"):
        decode.decode(buffer.getvalue())


@CALM
@given(st.binary(max_size=200), st.sampled_from(["", "PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"]))
def test_any_bytes_are_a_picture_or_unreadable(data, kind):
    whole = bytearray(png(1, kind=kind)) if kind else bytearray()
    for place, value in enumerate(data):  # bytes of a real file, exchanged here and there
        if whole:
            whole[place * 37 % len(whole)] = value
    for source in (data, bytes(whole)):
        try:
            image = decode.decode(source)
        except Unreadable as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert image.mode == "RGB" and max(image.size) <= decode.MAX_SIDE
        found = scan.look_at(source)
        assert isinstance(found, scan.Scan | str)


# ---- what is no file ----


def test_pipes_devices_and_endless_files_are_listed_and_not_waited_for(tmp_path):
    (tmp_path / "good.png").write_bytes(png())
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "good.txt")  # in the place of a caption
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "sparse.tif").open("wb") as file:
        file.truncate(decode.MAX_BYTES + 1)
    images = load("folder", root=tmp_path)
    reasons = dict(images.skipped)
    assert images.files == ("good.png",) and images.captions == (None,)
    assert reasons == {
        "pipe.jpg": "not a regular file",
        "zero.png": "not a regular file",
        "sparse.tif": "more than 1 GB",
    }


def test_a_table_points_at_nothing_outside_its_root_and_at_no_pipe(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    (tmp_path / "private.png").write_bytes(png(1))
    (root / "a.png").write_bytes(png(2))
    os.mkfifo(root / "pipe.png")
    names = [
        "a.png",
        "../private.png",
        str(tmp_path / "private.png"),
        "/etc/passwd",
        "pipe.png",
        "a\0b",
        "../set/a.png",
    ]
    (root / "t.jsonl").write_text("\n".join(json.dumps({"file": name}) for name in names))
    images = load("csv", table=str(root / "t.jsonl"))
    assert images.files == ("a.png",)
    reasons = dict(images.skipped)
    assert "outside images.root" in reasons["../private.png"] and "outside images.root" in reasons["/etc/passwd"]
    assert reasons["../set/a.png"] == "named twice in the table"


# ---- memory ----


def test_pixels_are_counted_before_any_is_decoded_whatever_pillow_is_told(monkeypatch):
    data = png()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(decode, "MAX_PIXELS", 24 * 16 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Unreadable, match="megapixels"):
        decode.decode(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "CMYK", "I;16", "1", "F", "I"])
def test_conversion_in_bands_gives_what_the_whole_would_give(monkeypatch, mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (37, 23, 3), dtype=np.uint8))
    if mode == "RGBA":
        image = Image.fromarray(rng.integers(0, 256, (37, 23, 4), dtype=np.uint8), "RGBA")
    elif mode in ("I;16", "I", "F"):
        values = rng.integers(0, 60_000, (37, 23))
        image = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        image = image.convert(mode)
    whole = decode.to_rgb(image.copy())
    monkeypatch.setattr(decode, "_BAND", 50)  # two rows
    assert decode.to_rgb(image).tobytes() == whole.tobytes()


def test_all_threads_together_decode_within_the_room_and_a_forked_process_has_its_own():
    room = decode._Room(100)
    with room.take(70):
        assert room.left == 30
        with room.take(30):
            assert room.left == 0
    with room.take(1000):  # alone
        assert room.left == 0
    assert room.left == 100
    with decode._shared.room.take(decode.AT_ONCE):
        child = os.fork()
        if child == 0:
            os._exit(0 if decode._shared.room.left == decode.AT_ONCE else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_scanning_decodes_only_as_many_at_a_time_as_there_is_room_for(tmp_path, monkeypatch):
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(png(i, (40, 40), mode="RGBA"))
    cost = 40 * 40 * 8  # RGBA and its copy in RGB, four bytes a pixel each
    monkeypatch.setattr(decode._shared, "room", decode._Room(2 * cost + 1))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    inside: list[int] = []
    most: list[int] = []

    def watched(image, _whole=decode._whole):
        inside.append(1)
        time.sleep(0.01)
        most.append(len(inside))
        made = _whole(image)
        inside.pop()
        return made

    monkeypatch.setattr(decode, "_whole", watched)
    assert len(load("folder", root=tmp_path)) == 12 and 1 <= max(most) <= 2


def test_a_thousand_alike_are_joined_without_their_pairs(monkeypatch):
    monkeypatch.setattr(duplicates, "AT_ONCE", 64)
    look = duplicates.look(Image.new("RGB", (32, 32), "white"))
    counted: list[int] = []
    monkeypatch.setattr(np, "isin", lambda *a, _of=np.isin, **k: counted.append(1) or _of(*a, **k))
    groups = duplicates.group([str(i) for i in range(1000)], [look] * 1000)
    assert groups.tolist() == [0] * 1000 and len(counted) <= 1000 // 64 + 2


# ---- tars ----


def test_pictures_that_share_a_key_links_and_giants_are_listed(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "LARGEST", 1 << 16)
    members = [("22.seg.png", png(1)), ("22.png", png(2)), ("22.left.png", png(3)), ("b.png", bytes(1 << 17))]
    file = tar(tmp_path / "t.tar", [*members, ("c.png", png(4))])
    with tarfile.open(file, "a") as more:
        link = tarfile.TarInfo("d.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        more.addfile(link)
    for streaming in (False, True):
        images = load("webdataset", shards=file, streaming=streaming)
        reasons = {name.removeprefix("t/"): reason for name, reason in images.skipped}
        assert set(reasons) == {"22.seg.png", "22.left.png", "b.png", "d.png"}, streaming
        assert all("22.png, which is kept" in reasons[name] for name in ("22.seg.png", "22.left.png"))
        assert "passed over" in reasons["b.png"] and "a link" in reasons["d.png"]
        assert [images.load(i).tobytes() for i in (0, 1)] == [decode.decode(png(i)).tobytes() for i in (2, 4)]
        assert len(load("webdataset", shards=file, streaming=streaming, take=1)) == 1


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("json", b"[" * 100_000),
        ("json", b'{"label": ' + b"1" * 5000 + b"}"),
        ("json", b'{"caption": "\\ud800 owl", "classes": ["\\udfff", {"a": []}, null]}'),
        ("cls", "٣".encode()),
        ("cls", b"9" * 5000),
        ("txt", b"\xff\xfe\x00"),
    ],
)
def test_what_lies_beside_a_picture_never_ends_the_set(cache, tmp_path, kind, data):
    file = tar(tmp_path / "t.tar", [("0.png", png(0)), (f"0.{kind}", data), ("1.png", png(1))])
    for streaming in (False, True):
        images = load("webdataset", shards=file, names=["owl"], streaming=streaming)
        assert len(images) == 2
        images.save(tmp_path)  # whatever was said can be written


@pytest.mark.parametrize("what", ["header", "name"])
def test_a_damaged_stretch_is_listed_and_the_rest_is_read(cache, tmp_path, what):
    file = tar(tmp_path / "t.tar", [(f"{i}.png", png(i)) for i in range(6)])
    raw = bytearray(Path(file).read_bytes())
    with tarfile.open(file) as opened:
        second = opened.getmembers()[2].offset
    raw[second + (148 if what == "header" else 0)] ^= 0x55
    Path(file).write_bytes(raw)
    for streaming in (False, True):
        images = load("webdataset", shards=file, streaming=streaming)
        assert len(images) == 5
        ((name, reason),) = images.skipped
        assert f"byte {second}" in name and "damaged" in reason


@CALM
@given(data=st.data())
def test_a_tar_with_any_bytes_exchanged_is_read_listed_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t")
    file = tar(folder / "t.tar", [("0.png", png(0)), ("0.json", b'{"label": 1}'), ("1.png", png(1)), ("2.png", b"x")])
    raw = bytearray(Path(file).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    Path(file).write_bytes(raw)
    try:
        found = list(tars.samples(file, len(raw), ["a"]))
    except UserError as error:
        assert str(error).startswith("images.shards=") and "\n" not in str(error)
    else:
        for own in found:
            assert (own.item.problem is None) == bool(own.place[1]) and own.member == visible(own.member)
            json.dumps([own.member, own.item.caption, own.item.classes], ensure_ascii=False).encode()


# ---- Parquet ----


def test_a_cell_that_names_a_file_outside_the_set_is_listed_and_never_read(cache, tmp_path):
    pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "in.png").write_bytes(png(1))
    (tmp_path / "private.png").write_bytes(png(2))
    os.mkfifo(folder / "pipe.png")
    places = [str(folder / "in.png"), str(tmp_path / "private.png"), str(folder / "../private.png"), "/dev/zero"]
    places.append(str(folder / "pipe.png"))
    cells = [{"bytes": png(0), "path": "/etc/passwd"}, *({"bytes": None, "path": place} for place in places)]
    pq.write_table(pa.table({"image": cells, "label": [-1, 0, 1, 0, 1, 7]}), folder / "train.parquet")
    images = load("huggingface", dataset=str(folder), label="label")
    assert len(images) == 2
    reasons = dict(images.skipped)
    assert sum("outside the set" in reason for reason in reasons.values()) == 3, reasons
    assert "not a regular file" in reasons.values()


# ---- names ----


def test_names_in_either_unicode_form_meet(tmp_path):
    nfd, nfc = "cafe\u0301", "caf\u00e9"
    (tmp_path / nfd).mkdir()
    (tmp_path / "tea").mkdir()
    (tmp_path / nfd / f"{nfd}.png").write_bytes(png(0))
    (tmp_path / "tea" / "b.png").write_bytes(png(1))
    assert load("folder", root=tmp_path).truth()[0] == (nfc, "tea")
    (tmp_path / "t.csv").write_text(f"\ufefffile,caption\n{nfc},an {nfd}\u200b\nb,tea\n")
    images = load("csv", table=str(tmp_path / "t.csv"))
    assert len(images) == 2 and f"an {nfc}" in images.captions
