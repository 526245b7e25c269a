"""Every source gives the same kind of set: folders, tables, label images, torchvision, Hugging Face, webdataset."""

import inspect
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from saelab.errors import UserError
from saelab.images import SOURCES, hubs, load

CONFIGS = Path(__file__).resolve().parent.parent / "conf" / "images"


def picture(seed: int, side: int = 24) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(8):
        place = tmp_path / "p" / "train" / ("birds/owls" if i % 2 else "fish")
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i}.png")
    return tmp_path / "p"


def test_every_config_says_what_its_source_takes():
    configs = {file.stem: yaml.safe_load(file.read_text()) for file in CONFIGS.glob("*.yaml")}
    assert set(configs) == set(SOURCES)
    for name, config in configs.items():
        common = {"source": name, "seed": 0, "fractions": [0.6, 0.1, 0.3], "limit": None}
        assert {k: config.pop(k) for k in common} == common
        for parameter in inspect.signature(SOURCES[name]).parameters.values():
            default = None if parameter.default is parameter.empty else parameter.default
            given = config.pop(parameter.name)
            if isinstance(default, tuple):
                given = tuple(given)
            assert given == default or (not given and not default), parameter.name
        assert not config, f"{name} does not take {config}"


def test_classes_are_the_folders_that_not_all_share_and_captions_lie_beside(folder):
    (folder / "train" / "fish" / "0.txt").write_text("\n  A red fish. \nUn poisson rouge.\n", encoding="utf-8")
    images = load("folder", root=folder)
    assert images.files[0] == "train/birds/owls/1.png" and images.classes[0] == ("birds", "owls")
    fish = images.files.index("train/fish/0.png")
    assert images.classes[fish] == ("fish",) and images.captions[fish] == "A red fish."
    assert images.captions[0] is None and images.name == "p"


def test_limit_draws_by_seed(folder):
    few = load("folder", root=folder, limit=3)
    assert len(few) == 3 and few.files == load("folder", root=folder, limit=3).files
    assert len({load("folder", root=folder, limit=3, seed=s).files for s in range(5)}) > 1
    assert len(load("folder", root=folder, limit=99)) == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "foldr"}, "one of packaged, folder, csv, .*did you mean folder"),
        ({"source": "folder"}, "images.root=None: source folder needs it"),
        ({"source": "folder", "root": "/no/such/place"}, "no such folder"),
        ({"source": "folder", "root": "/", "rot": 1}, "images.rot=1: source folder has no such setting"),
        ({"source": "csv", "table": "/no/such.csv"}, "no such file"),
        ({"source": "torchvision", "dataset": "CIFAR11"}, "no such torchvision dataset"),
        ({"source": "webdataset", "shards": "/no/such/*.tar"}, "no such file"),
    ],
)
def test_mistakes_name_the_setting_and_the_way_out(options, says):
    with pytest.raises(UserError, match=says):
        load(**options)


def test_csv_of_captions_classes_and_concepts(folder, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "file,caption,classes,striped,size\n"
        'train/fish/0.png,"one, two",fish;red,1,big\n'
        "1.png,,owl,0,small\n"
        "2,two,,yes,big|wide\n"
        "99.png,nobody,,0,\n"
        "train/fish/0.png,again,,0,\n"
        ",,remark,,\n",
        encoding="utf-8",
    )
    images = load("csv", table=table, root=folder, concepts=["striped", "size"])
    assert images.files == ("train/birds/owls/1.png", "train/fish/0.png", "train/fish/2.png")
    assert images.captions == (None, "one, two", "two")
    assert images.classes == (
        ("owl", "size: small"),
        ("fish", "red", "striped", "size: big"),
        ("striped", "size: big", "size: wide"),
    )
    assert dict(images.skipped) == {
        "99.png": "named in table.csv, not on disk",
        "train/fish/0.png": "named twice in the table",
    }
    with pytest.raises(UserError, match=r"images.concepts=colour: no such column .* it has file, caption, classes"):
        load("csv", table=table, root=folder, concepts=["colour"])


def test_jsonl_beside_its_pictures(folder):
    rows = [{"file": "train/fish/0.png", "classes": ["a;b", "c"]}, {"file": "train/fish/2.png", "caption": "two"}]
    (folder / "table.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    images = load("csv", table=folder / "table.jsonl")
    assert images.classes == (("a;b", "c"), ()) and images.captions == (None, "two")
    (folder / "table.jsonl").write_text("{not json}\n")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        load("csv", table=folder / "table.jsonl")


def test_a_table_ruled_with_bars_as_ph2_is(folder, tmp_path):
    table = tmp_path / "bars.txt"
    table.write_text(
        "||   Name || Diagnosis ||  Veil |    Colours ||\n"
        "||      0 ||           ||     A |       1  4 ||\n"
        "||      2 ||         1 ||     P |          4 ||\n"
        "\nColours: 1 white 4 brown\n"
    )
    options = {
        "file": "Name",
        "separator": r"\s*\|+\s*",
        "between": r"\s+",
        "concepts": ["Diagnosis", "Veil", "Colours"],
    }
    images = load("csv", table=table, root=folder, **options)
    assert images.files == ("train/fish/0.png", "train/fish/2.png") and images.skipped == ()
    assert images.classes == (("Veil: A", "Colours: 1", "Colours: 4"), ("Diagnosis", "Veil: P", "Colours: 4"))


def test_ph2_counts_as_its_authors_do(shared):
    columns = ["Clinical Diagnosis", "Streaks", "Colors"]
    options = {"file": "Name", "separator": r"\s*\|+\s*", "between": r"\s+", "concepts": columns}
    images = load("csv", table=shared / "images" / "ph2" / "PH2_dataset.txt", **options)
    names, table = images.truth()
    counts = dict(zip(names, table.sum(0).tolist(), strict=True))
    assert len(images) == 200 and not images.skipped
    assert [counts[f"Clinical Diagnosis: {d}"] for d in (0, 1, 2)] == [80, 80, 40]
    assert counts["Streaks: P"] + counts["Streaks: A"] == 200


def test_label_images_give_classes_and_pixels(tmp_path):
    labels = np.zeros((6, 4), dtype=np.uint8)
    labels[:2] = 2
    for name in ("a/x", "b/x", "y"):
        target = tmp_path / "images" / f"{name}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture(len(name)).resize((4, 6)).save(target)
        if name != "y":
            mask = tmp_path / "masks" / f"{name}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels if name == "a/x" else np.full((6, 4), 3, np.uint8)).save(mask)
    images = load("folder", root=tmp_path, masks="masks", mask_names=["sky", "sea", "sand"])
    assert images.files == ("images/a/x.jpg", "images/b/x.jpg", "images/y.jpg")
    assert images.classes == (("a", "sky", "sand"), ("b", "3"), ())  # a value without a name keeps its number
    assert np.array_equal(images.mask(0), labels) and (images.mask(1) == 3).all()
    with pytest.raises(UserError, match="no label image"):
        images.mask(2)
    before = images.fingerprint
    labels[5, 3] = 2
    Image.fromarray(labels).save(tmp_path / "masks" / "a" / "x.png")
    assert load("folder", root=tmp_path, masks="masks", mask_names=["sky", "sea", "sand"]).fingerprint != before


def test_colour_coded_label_images_are_refused_with_the_reason(tmp_path):
    (tmp_path / "m").mkdir()
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    picture(0).save(tmp_path / "m" / "a.png")
    images = load("folder", root=tmp_path, masks="m")
    assert images.files == ("b.png",) and "one class number a pixel" in images.skipped[0][1]


def test_camvid_pixels_and_presence_agree(shared):
    names = [
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "cyclist",
        "void",
    ]
    images = load("folder", root=shared / "images" / "camvid", masks="masks", mask_names=names, limit=30)
    known, table = images.truth()
    for i in range(0, len(images), 7):
        assert images.mask(i).shape == images.load(i).size[::-1]
        assert {known[j] for j in np.flatnonzero(table[i])} == {names[v] for v in np.unique(images.mask(i))}


# --- sets that are copied into the user's cache


def shard(path: Path, samples: list[dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, parts in enumerate(samples):
            for kind, data in parts.items():
                member = tarfile.TarInfo(f"{number:03d}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_webdataset_samples_of_several_shards(cache, tmp_path):
    shard(tmp_path / "a-0.tar", [{"png": png(picture(0)), "txt": b"zero", "cls": b"1"}, {"json": b'{"label": "x"}'}])
    about = json.dumps({"caption": "later", "classes": ["red", 0]}).encode()
    shard(tmp_path / "a-1.tar", [{"png": png(picture(1)), "json": about}, {"seg.png": png(picture(2)), "txt": b""}])
    images = load("webdataset", shards=str(tmp_path / "a-*.tar"), names=["cat", "dog"])
    assert images.captions == ("zero", "later", None)
    assert images.classes == (("dog",), ("red", "cat"), ())
    assert images.load(1).tobytes() == picture(1).tobytes()
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("cache"))
    again = load("webdataset", shards=str(tmp_path / "moved" / "a-*.tar"), names=["cat", "dog"])
    assert again.root != images.root and again.fingerprint == images.fingerprint
    assert len(load("webdataset", shards=str(tmp_path / "a-*.tar"), take=2)) == 2
    (tmp_path / "c.tar").write_bytes((tmp_path / "a-0.tar").read_bytes()[:700])
    with pytest.raises(UserError, match="not a whole tar file"):
        load("webdataset", shards=str(tmp_path / "c.tar"))


def test_a_copy_that_was_broken_off_goes_on_where_it_stopped(cache):
    asked = []

    def items(start: int, until: int = 9):
        asked.append(start)
        for i in range(start, 9):
            if i == until:
                raise KeyboardInterrupt
            yield hubs.Item(png(picture(i)), ".png", f"number {i}", ())

    with pytest.raises(KeyboardInterrupt):
        hubs.copy_items("set", {"of": "this test"}, lambda start: items(start, 5), "", None)
    (table,) = (cache / "pictures").glob("set-*.partial/pictures.jsonl")
    table.write_text(table.read_text()[:-9])  # and the last line was cut off
    listing = hubs.copy_items("set", {"of": "this test"}, items, "", None)
    assert asked == [0, 4]
    assert [e.caption for e in listing.entries] == [f"number {i}" for i in range(9)]
    for i, entry in enumerate(listing.entries):
        assert (listing.root / entry.file).read_bytes() == png(picture(i))


def test_torchvision_sets_by_name(cache):
    options = {"dataset": "FakeData", "arguments": {"size": 6, "image_size": [3, 20, 30], "num_classes": 4}}
    images = load("torchvision", **options)
    from torchvision.datasets import FakeData

    original = FakeData(size=6, image_size=(3, 20, 30), num_classes=4)
    assert len(images) == 6 and images.sizes[0] == (30, 20)
    for i in range(6):
        assert images.load(i).tobytes() == original[i][0].tobytes()
        assert images.classes[i] == (str(int(original[i][1])),)


def test_hugging_face_sets_from_disk_and_streamed(cache, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = {"image": [picture(i) for i in range(5)], "text": [f"t{i}" for i in range(5)], "label": [0, 1, 0, 1, 1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "saved")
    images = load("huggingface", dataset=str(tmp_path / "saved"), caption="text", label="label")
    assert images.captions == ("t0", "t1", "t2", "t3", "t4") and images.classes[3] == ("dog",)
    assert images.load(4).tobytes() == picture(4).tobytes()
    data.to_parquet(tmp_path / "files" / "train.parquet")
    options = {"dataset": str(tmp_path / "files"), "streaming": True, "take": 3, "label": "label"}
    streamed = load("huggingface", **options)
    assert len(streamed) == 3 and streamed.classes == (("cat",), ("dog",), ("cat",))
    assert streamed.load(2).tobytes() == picture(2).tobytes()
    with pytest.raises(UserError, match=r"images.caption=words: no such column; .* has image, text, label"):
        load("huggingface", dataset=str(tmp_path / "saved"), caption="words")
