"""The packaged photos: apt without root, Qt archives, the choice of photos by rule, captions and credits."""

import gzip
import hashlib
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from saelab import artifacts
from saelab.errors import UserError
from saelab.images import load
from saelab.images.demo import apt, packaged, qt_archive
from saelab.images.user_cache import user_cache


def archive(files: dict[str, bytes], version: int = 3, compress: bool = True) -> bytes:
    """A Qt resource archive, written after the format's description: breadth first, children in a row."""
    tree: dict = {}
    for name, data in files.items():
        *above, last = name.split("/")
        here = tree
        for part in above:
            here = here.setdefault(part, {})
        here[last] = data
    names, blobs, nodes = b"", b"", []
    queue = [("", tree)]
    placed = 1
    while queue:
        name, content = queue.pop(0)
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(content, dict):
            nodes.append(struct.pack(">IHII", at, 2, len(content), placed))
            placed += len(content)
            queue += list(content.items())
        else:
            raw = struct.pack(">I", len(content)) + zlib.compress(content) if compress else content
            nodes.append(struct.pack(">IHHHI", at, int(compress), 0, 0, len(blobs)))
            blobs += struct.pack(">I", len(raw)) + raw
    stamp = struct.pack(">Q", 0) if version >= 2 else b""
    body = b"".join(node + stamp for node in nodes)
    head = 20 if version < 3 else 24
    offsets = (head, head + len(body), head + len(body) + len(blobs))
    return struct.pack(">4s4I", b"qres", version, *offsets).ljust(head, b"\0") + body + blobs + names


@pytest.mark.parametrize(("version", "compress"), [(1, False), (2, True), (3, True), (3, False)])
def test_archives_are_read_back(tmp_path, version, compress):
    files = {"a/b/one.txt": b"1" * 300, "a/Bär 熊.bin": bytes(range(256)), "top": b""}
    (tmp_path / "x.rcc").write_bytes(archive(files, version, compress))
    assert dict(qt_archive.read(tmp_path / "x.rcc")) == files


def test_what_is_no_archive_or_cut_off_is_said(tmp_path):
    whole = archive({"a/one": b"x" * 1000}, compress=False)
    for data, says in ((b"PK\3\4" + whole[4:], "no Qt resource archive"), (whole[:12], "damaged")):
        (tmp_path / "x.rcc").write_bytes(data)
        with pytest.raises(ValueError, match=says):
            list(qt_archive.read(tmp_path / "x.rcc"))


def photo(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8) | np.uint8([0, 0, 0, 255]))


def drawing() -> Image.Image:
    image = Image.new("RGBA", (80, 60))
    ImageDraw.Draw(image).ellipse((5, 5, 75, 55), fill="red", outline="black")
    return image


def test_stamps_are_chosen_by_rule_with_their_captions(tmp_path):
    stamps = {
        "animals/birds/owl.png": photo(0),
        "animals/birds/owl_mirror.png": photo(1),
        "animals/birds/cartoon/hen.png": photo(2),
        "symbols/a.png": photo(3),
        "animals/drawn.png": drawing(),
        "animals/tiny.png": photo(4, (40, 30)),
        "vehicles/auto/red_car.png": photo(5),
    }
    for name, image in stamps.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    (tmp_path / "animals/birds/owl.txt").write_text("An owl.\nde.utf8=Eine Eule.\n", encoding="utf-8")
    chosen = {e.file: e for e, _ in packaged.stamps(tmp_path)}
    assert list(chosen) == ["tuxpaint/animals/birds/owl.png", "tuxpaint/vehicles/auto/red_car.png"]
    owl, car = chosen.values()
    assert owl.caption == "An owl." and owl.classes == ("animals", "birds") and "GPL-2" in str(owl.credit)
    assert car.caption is None and car.classes == ("vehicles", "cars")


def test_gcompris_photos_carry_titles_classes_and_their_own_credits(tmp_path):
    base = "gcompris/src/activities/explore_monuments/resource"
    board = (
        'tab: [{ "title": qsTr("Taj Mahal"), "text": qsTr("It is {marble}"),'
        f' "image2": "qrc:/{base}/wonders/taj.webp" }}]'
    )
    readme = (
        "Copyright: Somebody\nLicense: CC-BY-SA 4.0\nFiles:\nkey.svg\nwonders/taj.webp\n\n"
        "Copyright: Another\nSource: https://example.org/a b\nLicense: Public Domain\nFiles: india/*.webp\n"
    )
    files = {
        f"{base}/board/board1.qml": board.replace("{marble}", "marble").encode(),
        f"{base}/README": readme.encode(),
        f"{base}/wonders/taj.webp": b"taj",
        f"{base}/india/redFort12.webp": b"fort",
        f"{base}/india/key.svg": b"drawing",
        f"{base}/nobody.webp": b"without a licence",
    }
    (tmp_path / "explore_monuments.rcc").write_bytes(archive(files))
    (tmp_path / "paintings.rcc").write_bytes(archive({f"{base}/wonders/taj.webp": b"x"}))
    found = {entry.file: (entry, data) for entry, data in packaged.gcompris(tmp_path)}
    assert set(found) == {f"gcompris/explore_monuments/{n}" for n in ("india/redFort12.webp", "wonders/taj.webp")}
    taj, data = found["gcompris/explore_monuments/wonders/taj.webp"]
    assert (taj.caption, taj.classes, taj.credit, data) == (
        "Taj Mahal",
        ("monuments",),
        "Somebody, CC-BY-SA 4.0",
        b"taj",
    )
    fort, _ = found["gcompris/explore_monuments/india/redFort12.webp"]
    assert fort.caption == "red fort" and fort.credit == "Another, Public Domain, https://example.org/a b"


# --- fetching, with the real apt and a package archive on this disk


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A Debian archive of one small package, and apt told to know no other."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    place = tmp_path / "archive"
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr" / "share").mkdir(parents=True)
    (tree / "usr" / "share" / "content").write_bytes(np.random.default_rng(0).bytes(300_000))
    control = "Package: saelab-test\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: test\n"
    (tree / "DEBIAN" / "control").write_text(control)
    place.mkdir()
    deb = place / "saelab-test_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, deb], check=True, capture_output=True)
    described = f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\n"
    described += f"SHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n"
    (place / "Packages").write_text(described)
    (place / "Packages.gz").write_bytes(gzip.compress(described.encode()))
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{place} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "-";\nAPT::Sandbox::User "root";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return place


def test_packages_are_fetched_verified_and_unpacked(repository, tmp_path):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    deb = repository / "saelab-test_1_all.deb"
    (downloads / deb.name).write_bytes(b"not the package" + deb.read_bytes()[15:9000])  # broken off, and wrong
    (file,) = apt.fetch(["saelab-test"], downloads)
    assert file.read_bytes() == deb.read_bytes()
    apt.unpack(file, tmp_path / "out")
    assert (tmp_path / "out/usr/share/content").read_bytes() == (tmp_path / "tree/usr/share/content").read_bytes()
    deb.unlink()
    assert apt.fetch(["saelab-test"], downloads) == [file]  # what is there and whole is not fetched again


def test_what_apt_does_not_know_or_cannot_reach_is_said(repository, tmp_path):
    with pytest.raises(apt.FetchFailed, match="Unable to locate package no-such-thing"):
        apt.fetch(["no-such-thing"], tmp_path)
    (repository / "saelab-test_1_all.deb").unlink()
    with pytest.raises(apt.FetchFailed):
        apt.fetch(["saelab-test"], tmp_path)


def test_without_apt_the_alternatives_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"no apt-get on this machine.*images=folder images\.root=PATH.*images=imagenette"
    ):
        load()


def test_the_real_packaged_photos():
    recipe = {"packages": packaged.PACKAGES, "selection": packaged.SELECTION}
    if not artifacts.folder(user_cache(), "pictures", "packaged", recipe).exists():
        pytest.skip("the packaged photos have not been fetched on this machine (the quickstart does)")
    images = load()
    assert len(images) > 500 and not images.skipped
    assert set(images.credits) == set(images.files) and None not in images.captions
    tiger = images.files.index("tuxpaint/animals/mammals/cats/tiger.png")
    assert images.captions[tiger] == "A tiger." and images.classes[tiger] == ("animals", "mammals", "cats")
    picture = images.load(tiger)
    assert picture.width == picture.height and picture.getpixel((0, 0)) == (255, 255, 255)
    gates = [i for i, file in enumerate(images.files) if file.endswith("/brandenburgGate.webp")]
    assert len(gates) == 2 and len(set(images.groups[gates])) == 1  # one photo, twice in GCompris
