"""Decoding, skipping, fingerprints, splits, near-duplicates, the loader: what would quietly spoil every later stage."""

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from saelab.errors import UserError
from saelab.images import ImageSet, decode, duplicates, load, scan, splits


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(seed: int, side: int = 128) -> Image.Image:
    """A smooth random colour picture, as unlike another seed's as two photos are."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for i in range(20):
        place = root / ("cats" if i % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        photo(i).save(place / f"{i:02d}.png")
    return root


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float()


# --- decoding


def test_every_mode_becomes_the_rgb_that_people_see():
    red = Image.new("RGB", (4, 2), (200, 30, 20))
    assert decode.decode(encoded(red)).getpixel((0, 0)) == (200, 30, 20)
    assert decode.decode(encoded(Image.new("L", (3, 3), 77))).getpixel((1, 1)) == (77, 77, 77)
    assert decode.decode(encoded(Image.new("1", (3, 3), 1))).getpixel((1, 1)) == (255, 255, 255)
    assert decode.decode(encoded(Image.new("CMYK", (3, 3), (0, 255, 255, 0)), "TIFF")).getpixel((1, 1)) == (255, 0, 0)
    deep = Image.fromarray(np.full((3, 3), 257 * 100, dtype=np.uint16))
    assert decode.decode(encoded(deep)).getpixel((1, 1)) == (100, 100, 100)
    half = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    half.putpixel((1, 1), (0, 0, 0, 128))
    shown = decode.decode(encoded(half))
    assert shown.getpixel((0, 0)) == (255, 255, 255) and shown.getpixel((1, 1)) == (127, 127, 127)
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.putpixel((1, 0), 1)
    seen = decode.decode(encoded(palette, transparency=0))
    assert seen.getpixel((0, 0)) == (255, 255, 255) and seen.getpixel((1, 0)) == (10, 200, 30)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (5, 5), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode.decode(data).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation_is_applied_and_the_upright_size_reported(kind):
    picture = Image.new("RGB", (600, 400), "black")
    picture.paste("white", (0, 0, 600, 200))  # white above; orientation 6 shows it on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    for side in (2048, 100):
        shown, size = decode.glance(encoded(picture, kind, exif=exif), side)
        assert size == (400, 600)
        width, height = shown.size
        assert height > width
        assert shown.getpixel((width - 5, height // 2))[0] > 240 and shown.getpixel((5, height // 2))[0] < 15


def test_one_pixel_and_a_hundred_megapixels(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    Image.new("L", (10000, 10000), 90).save(tmp_path / "huge.jpg")
    images = load("folder", root=tmp_path)
    assert images.files == ("huge.jpg", "one.png") and images.sizes == ((10000, 10000), (1, 1))
    assert max(images.load(0).size) <= 2048 and images.load(0).getpixel((5, 5)) == (90, 90, 90)
    assert images.load(1).size == (1, 1)


def bomb() -> bytes:
    """A PNG whose header promises 20000 x 20000 pixels."""
    data = encoded(Image.new("L", (1, 1)))
    header = b"IHDR" + struct.pack(">II", 20000, 20000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_bad_files_are_listed_with_their_reason_and_the_others_kept(folder):
    whole = encoded(photo(99), "JPEG")
    bad = {"empty.png": b"", "cut.jpg": whole[: len(whole) // 2], "text.jpg": b"hello", "bomb.png": bomb()}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "Bär im Schnee, 熊.JPG").write_bytes(whole)
    (folder / ".hidden.png").write_bytes(whole)
    (folder / "notes.md").write_text("no picture")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "cats" / "round").symlink_to(folder, target_is_directory=True)
    odd = os.fsencode(folder) + b"/\xff\xfe.png"
    try:
        Path(os.fsdecode(odd)).write_bytes(whole)
        expected = {*bad, "gone.png", "circle.png", "\\udcff\\udcfe.png"}
    except OSError:  # file systems that know only UTF-8
        expected = {*bad, "gone.png", "circle.png"}
    images = load("folder", root=folder)
    reasons = dict(images.skipped)
    assert set(reasons) == expected and all(reasons.values())
    assert "zero bytes" in reasons["empty.png"] and "megapixels" in reasons["bomb.png"]
    assert len(images) == 21 and "Bär im Schnee, 熊.JPG" in images.files
    assert images.load(images.files.index("Bär im Schnee, 熊.JPG")).size == (128, 128)


def test_no_usable_picture_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no usable picture"):
        load("folder", root=tmp_path)
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"broken\.png: zero bytes"):
        load("folder", root=tmp_path)


def test_square_centres_on_white():
    square = decode.pad_square(Image.new("RGB", (4, 10), "black"))
    columns = np.asarray(square)[:, :, 0]
    assert columns.shape == (10, 10)
    assert (columns[:, 3:7] == 0).all() and (columns[:, :3] == 255).all() and (columns[:, 7:] == 255).all()


# --- fingerprint, saving


def test_fingerprint_is_of_contents_names_and_truth_not_of_place_or_time(folder, tmp_path):
    first = load("folder", root=folder).fingerprint
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copyfile))
    for file in copy.rglob("*.png"):
        os.utime(file, (1, 1))
    (copy / "readme.md").write_text("not a picture")
    assert load("folder", root=copy).fingerprint == first
    changes = []

    def changed(what: str) -> None:
        now = load("folder", root=copy).fingerprint
        assert now != first and now not in changes, what
        changes.append(now)

    (copy / "cats" / "01.txt").write_text("a cat\n")
    changed("caption")
    (copy / "cats" / "01.txt").unlink()
    (copy / "cats").rename(copy / "lions")
    changed("class")
    (copy / "lions").rename(copy / "cats")
    with (copy / "dogs" / "00.png").open("ab") as file:
        file.write(b"\0")
    changed("one byte")
    assert load("folder", root=folder, seed=1).fingerprint != first  # another split: other means, other caches


def test_saved_and_loaded_again(folder, tmp_path):
    (folder / "cats" / "01.txt").write_text("a cat\n")
    images = load("folder", root=folder)
    images.save(tmp_path)
    again = ImageSet.load(tmp_path)
    for name in ("name", "files", "captions", "classes", "fingerprint", "skipped", "credit", "sizes", "masks"):
        assert getattr(again, name) == getattr(images, name), name
    assert (again.splits == images.splits).all() and (again.groups == images.groups).all()
    assert again.load(3).tobytes() == images.load(3).tobytes()
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="can't be read any more"):
        again.load(3)


def test_a_large_set_is_decoded_once_and_again_where_bytes_changed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scan, "WORTH", 10)
    first = load("folder", root=folder)
    decoded = []

    def counted(source: bytes, side: int) -> tuple[Image.Image, tuple[int, int]]:
        decoded.append(source)
        return glance(source, side)

    glance = decode.glance
    monkeypatch.setattr(decode, "glance", counted)
    again = load("folder", root=folder)
    assert not decoded and again.fingerprint == first.fingerprint and again.sizes == first.sizes
    assert (again.groups == first.groups).all()
    shutil.copy(folder / "cats" / "01.png", folder / "cats" / "03.png")  # a known picture in a new place
    photo(77, 90).save(folder / "cats" / "05.png")
    (folder / "cats" / "07.png").write_bytes(b"broken")
    changed = load("folder", root=folder)
    assert len(decoded) == 2 and len(changed) == 19 and changed.skipped[0][0] == "cats/07.png"
    assert changed.sizes[changed.files.index("cats/05.png")] == (90, 90)
    assert changed.groups[changed.files.index("cats/03.png")] == changed.files.index("cats/01.png")
    (memory,) = (tmp_path / "cache" / "looks").iterdir()
    memory.write_bytes(memory.read_bytes()[:100])
    assert load("folder", root=folder).fingerprint == changed.fingerprint


def test_truth_is_a_table_of_images_and_sorted_names(folder):
    images = load("folder", root=folder)
    names, table = images.truth()
    assert names == ("cats", "dogs") and table.dtype == bool
    assert all(table[i].tolist() == [f.startswith("cats"), f.startswith("dogs")] for i, f in enumerate(images.files))


def test_too_few_images_is_said_in_one_line(folder):
    images = load("folder", root=folder)
    images.require(12, "mine")
    with pytest.raises(UserError, match="12 in the mine split of pictures: at least 16 are needed for 16 positives"):
        images.require(16, "mine", "16 positives")


# --- splits


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=60), seed=st.integers(0, 9), classes=st.integers(1, 5))
def test_groups_never_straddle_and_shares_hold(sizes, seed, classes):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    keys = [f"{i:04d}" for i in range(len(groups))]
    found = splits.assign(groups, [str(g % classes) for g in groups], keys, seed)
    assert all(len(set(found[groups == g])) == 1 for g in set(groups.tolist()))
    for split, share in zip(splits.SPLITS, splits.FRACTIONS, strict=True):
        assert abs((found == split).sum() - share * len(groups)) <= 2 * max(sizes)


def test_splits_depend_on_contents_and_seed_not_on_order():
    n = 200
    keys = [f"{(i * 7919) % 1000:04d}" for i in range(n)]
    strata = [str(i % 4) for i in range(n)]
    found = splits.assign(np.arange(n), strata, keys, seed=3)
    order = np.random.default_rng(0).permutation(n)
    moved = splits.assign(np.arange(n), [strata[i] for i in order], [keys[i] for i in order], seed=3)
    assert (moved == found[order]).all()
    assert (splits.assign(np.arange(n), strata, keys, seed=4) != found).sum() > n / 4
    assert [int((found[0::4] == s).sum()) for s in splits.SPLITS] == [30, 5, 15]  # each stratum alike


def test_every_image_lands_in_test_by_its_share():
    n, seeds = 30, 400
    keys = [str(i) for i in range(n)]
    counts = sum((splits.assign(np.arange(n), [""] * n, keys, seed) == "test").astype(int) for seed in range(seeds))
    deviation = np.sqrt(seeds * 0.3 * 0.7)
    assert (np.abs(counts - 0.3 * seeds) < 4.5 * deviation).all()


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.6, 0.1, 0.2), (1.2, -0.1, -0.1), (0, 0.5, 0.5)])
def test_wrong_fractions_are_refused(folder, fractions):
    with pytest.raises(UserError, match="fractions"):
        load("folder", root=folder, fractions=fractions)


# --- near-duplicates


def variants(image: Image.Image) -> dict[str, bytes]:
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    return {
        "same bytes": encoded(image),
        "re-encoded": encoded(image, "JPEG", quality=50),
        "mirrored": encoded(ImageOps.mirror(image), "WEBP", quality=80),
        "half": encoded(half),
        "half and mirrored": encoded(ImageOps.mirror(half), "JPEG", quality=80),
        "double": encoded(image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC), "JPEG"),
    }


def test_variants_share_a_group_and_a_split_and_other_pictures_do_not(tmp_path):
    for seed in range(12):
        for name, data in variants(photo(seed)).items():
            (tmp_path / f"{seed:02d} {name}.png").write_bytes(data)
    images = load("folder", root=tmp_path)
    groups = {}
    for file, group in zip(images.files, images.groups.tolist(), strict=True):
        groups.setdefault(file[:2], set()).add(group)
    assert all(len(g) == 1 for g in groups.values())
    assert len(set.union(*groups.values())) == 12
    assert all(len(set(images.splits[images.groups == g])) == 1 for g in set(images.groups.tolist()))
    assert all(images.groups[g] == g for g in set(images.groups.tolist()))  # named after the first image


def test_even_pictures_of_different_colours_are_different(tmp_path):
    for colour in ("red", "green", "blue", "white", "black"):
        Image.new("RGB", (50, 50), colour).save(tmp_path / f"{colour}.png")
    assert len(set(load("folder", root=tmp_path).groups.tolist())) == 5


def test_grouping_equals_its_brute_force_twin():
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (6, 16, 16, 3))
    looks, hashes = [], []
    for i in range(60):
        small = np.clip(centres[i % 6] + rng.integers(-14, 15, (16, 16, 3)), 0, 255).astype(np.uint8)
        bits = [int(x) for x in rng.integers(0, 2**16, 2)]
        looks.append(duplicates.Appearance(bits[0], bits[1], small))
        hashes.append(str(i % 59))
    near = np.eye(60, dtype=bool)
    for i in range(60):
        for j in range(60):
            a, b = looks[i], looks[j]
            for bits, own in ((a.bits ^ b.bits, a.small), (a.bits ^ b.mirrored, a.small[:, ::-1])):
                rms = np.sqrt(((b.small.astype(float) - own) ** 2).mean())
                if i < j and bits.bit_count() <= 5 and rms <= 12:
                    near[i, j] = near[j, i] = True
            near[i, j] |= hashes[i] == hashes[j]
    for _ in range(6):
        near = near @ near
    assert (duplicates.group(hashes, looks, 5, 12.0) == near.argmax(1)).all()
    assert 6 < len(set(near.argmax(1).tolist())) < 60


def test_real_photos_merge_with_their_variants_only(shared, tmp_path):
    photos = sorted((shared / "images" / "imagenet-samples").glob("*.jpg"))[::8]
    for path in photos:
        shutil.copy(path, tmp_path / path.name)
    for path in photos[:20]:
        for name, data in variants(decode.decode(path)).items():
            (tmp_path / f"{path.stem}~{name}.png").write_bytes(data)
    images = load("folder", root=tmp_path)
    names = np.array([f.split("~")[0].removesuffix(".jpg") for f in images.files])
    same_name, same_group = names[:, None] == names, images.groups[:, None] == images.groups
    assert (same_name == same_group).all()


# --- loading ahead


def test_batches_keep_order_and_values_for_any_number_of_workers(folder):
    images = load("folder", root=folder)
    ids = np.random.default_rng(0).permutation(len(images))
    for workers in (0, 2):
        seen, pixels = zip(*images.batches(to_tensor, 6, workers, ids), strict=True)
        assert [len(s) for s in seen] == [6, 6, 6, 2] and (np.concatenate(seen) == ids).all()
        assert torch.equal(torch.cat(pixels), torch.stack([to_tensor(images.load(int(i))) for i in ids]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_vanished_is_named(folder, workers):
    images = load("folder", root=folder)
    (folder / "dogs" / "08.png").unlink()
    with pytest.raises(UserError, match=r"08\.png: can't be read any more"):
        list(images.batches(to_tensor, 4, workers))


def dies(image: Image.Image) -> torch.Tensor:
    os._exit(3)


def test_a_worker_that_dies_is_one_clear_line(folder):
    with pytest.raises(UserError, match="workers=2: a decoding process died"):
        list(load("folder", root=folder).batches(dies, 4, 2))


def test_pictures_of_several_sizes_are_refused(folder):
    Image.new("RGB", (9, 5)).save(folder / "other.png")
    with pytest.raises(UserError, match="pictures of one size"):
        list(load("folder", root=folder).batches(lambda x: torch.zeros(3, x.height, x.width), 64))
