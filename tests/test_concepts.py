"""Marked concepts reach INVERT and NetDissect: planted patches of colour, in pictures that the host crops."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from saelab import cache, images, units
from saelab.errors import UserError
from saelab.hosts import Host, Transform
from saelab.label import concepts, exemplars, pipeline
from saelab.label.vocabulary import pool
from saelab.units import Projection, UnitActivations
from saelab.units.grouping import Grouping

WORDS = pool([(label, ("planted",)) for label in ("zebra", "Reds", "blue")])
MINING = exemplars.MiningSettings(k=4, rare_below=2)


class Colours(nn.Module):
    """Channel c is the mean of colour c over 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 4, stride=4, bias=False), nn.Linear(3, 2)
        self.conv.weight.data = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).amax((2, 3)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """60 pictures, 32 x 48, of which the host sees the middle; two in three have a red patch, two in three a blue."""
    folder = tmp_path_factory.mktemp("concepts")
    (folder / "pictures").mkdir()
    (folder / "masks").mkdir()
    random = np.random.default_rng(0)
    for i in range(60):
        picture, mask = np.zeros((32, 48, 3), np.uint8), np.zeros((32, 48), np.uint8)
        picture[..., 1] = random.integers(0, 256, (32, 48))
        for value, channel in ((1, 0), (2, 2)):
            if (i + value) % 3:
                top, left = random.integers(0, 4) * 4, 16 * (value - 1) + 8 + random.integers(0, 3) * 4
                picture[top : top + 12, left : left + 8] = 0
                picture[top : top + 12, left : left + 8, channel] = random.integers(160, 256)
                mask[top : top + 12, left : left + 8] = value
        Image.fromarray(picture).save(folder / "pictures" / f"{i:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i:02}.png")
    pictures = images.load("folder", root=str(folder), masks="masks", mask_names=["ground", "red", "blue"])
    transform = Transform(32, (32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    store = cache.write(pictures, Host(Colours(), transform, "colours"), ["conv"], folder / "runs", workers=0)["conv"]
    acts = UnitActivations.load(units.neuron(store, folder / "runs").path)
    return pictures, store, acts


def rows_of(world, scorers, tokens=True, words=WORDS, lost=None):
    pictures, store, acts = world
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(len(pictures), 8, generator=generator), dim=1)
    found = exemplars.find(acts, pictures, vectors, MINING)
    settings = pipeline.LabelSettings(scorers, scorers[0], nulls=0, meanings=False)
    label_emb = normalize(torch.randn(len(words), 8, generator=generator), dim=1)
    given = concepts.Tokens(store, Projection()) if tokens else None
    seen = pipeline.evidence(acts, found, pictures, vectors, label_emb, MINING)
    seen, left = pipeline.complete(seen, settings, words, pictures, given, None)
    if lost is not None:
        lost.update(left)
    kept = replace(settings, scorers=tuple(name for name in scorers if name not in left))
    return pipeline.assign_all(seen, found, words, kept, "neuron")


def test_colours_are_named_by_both_and_what_nobody_marked_gets_no_score(world):
    rows = rows_of(world, ("invert", "netdissect"))
    for unit, label in ((0, "Reds"), (2, "blue")):
        for scorer in ("invert", "netdissect"):
            entry = rows[unit]["scores"][scorer]
            assert entry["label"] == label and entry["score"] > entry["runners_up"][0][1]
            assert "zebra" not in [name for name, _ in entry["runners_up"]]
        assert rows[unit]["scores"]["invert"]["score"] == 1


def test_label_images_are_cropped_as_the_host_crops_the_picture(world):
    pictures, store, _ = world
    ids = pictures.ids("mine")
    found = concepts.pixels(WORDS.labels, pictures, ids, store)
    assert found.shape == (len(ids), 3, 32, 32) and not found[:, 0].any()
    for row, i in enumerate(ids.tolist()):
        seen = np.asarray(pictures.load(i))[:, 8:40]
        red, blue = (seen[..., c] > 0 for c in (0, 2))
        assert (found[row, 1].numpy() == red).all() and (found[row, 2].numpy() == blue).all()


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("crop", [(16, 16), (24, 12)])
def test_numbers_of_sixteen_bits_are_classes_of_their_own(tmp_path, channels, crop):
    """259 is no 3, 300 no 44: full ADE20K has thousands of numbers. Outside of the picture there is no class."""
    numbers = np.random.default_rng(0).choice([3, 44, 254, 255, 256, 259, 300, 511, 65535], size=(6, 32, 32))
    (tmp_path / "masks").mkdir()
    for i, own in enumerate(numbers):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(own.astype(np.uint16)).save(tmp_path / "masks" / f"{i}.png")
    names = [f"number {n} of them" for n in range(600)]
    pictures = images.load("folder", root=str(tmp_path), masks="masks", mask_names=names)
    spec = Transform(16, crop, mean=(0.5, 0.5, 0.5), channels=channels).spec
    store = SimpleNamespace(recipe={"host": {"transform": spec}})
    wanted = [3, 44, 254, 255, 256, 259, 300, 511]
    found = concepts.pixels([names[n] for n in wanted], pictures, np.arange(6), store)
    small = np.stack([np.asarray(Image.fromarray(m.astype(np.int32)).resize((16, 16), 0)) for m in numbers])
    expected = np.full((6, *crop), -1)
    top, left = max(0, (crop[0] - 16) // 2), (16 - crop[1]) // 2
    expected[:, top : top + 16] = small[:, :, left : left + crop[1]]
    assert (found.numpy() == (expected[:, None] == np.array(wanted)[:, None, None])).all()
    assert found.any(dim=(0, 2, 3)).all()


def test_maps_are_the_tokens_in_their_places(world):
    pictures, store, acts = world
    ids = pictures.ids("mine")
    found = concepts.maps(concepts.Tokens(store, Projection()), ids)
    assert found.shape == (len(ids), 3, 8, 8)
    torch.testing.assert_close(found.amax((2, 3)), acts.rows(ids))
    seen = np.asarray(pictures.load(int(ids[0])))[:, 8:40].astype(np.float32) / 255
    brute = torch.from_numpy(seen).reshape(8, 4, 8, 4, 3).mean((1, 3)).permute(2, 0, 1)
    torch.testing.assert_close(found[0], brute, rtol=1e-3, atol=1e-3)


def test_iou_on_held_out_pictures_has_the_thresholds_of_mine(world):
    pictures, store, _ = world
    mine, test = pictures.ids("mine"), pictures.ids("test")
    tokens = concepts.Tokens(store, Projection())
    found = concepts.held_out_iou(["Reds", None, "blue"], tokens, pictures, mine, test)
    assert found[1].isnan()
    fitted, seen = concepts.maps(tokens, mine), concepts.maps(tokens, test)
    for unit, label in ((0, 1), (2, 2)):
        ordered = fitted[:, unit].flatten().sort(descending=True).values
        bar = ordered[int(0.005 * len(ordered))]
        on = torch.nn.functional.interpolate(seen[:, [unit]], size=(32, 32), mode="bilinear")[:, 0] > bar
        marked = concepts.pixels(WORDS.labels, pictures, test, store)[:, label]
        assert float(found[unit]) == pytest.approx(float((on & marked).sum() / (on | marked).sum()), abs=1e-6)
    assert float(found[[0, 2]].max()) > 0


def test_classes_are_those_of_the_images_asked_for(world):
    pictures, _, _ = world
    ids = pictures.ids("test")
    found = concepts.classes(WORDS.labels, pictures, ids)
    expected = [[False, "red" in pictures.classes[i], "blue" in pictures.classes[i]] for i in ids]
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("scorers", "tokens", "labels", "word"),
    [
        (("invert",), True, ("zebra", "lion"), "class"),
        (("netdissect",), False, ("red", "blue"), "tokens"),
    ],
)
def test_what_is_missing_is_told(world, scorers, tokens, labels, word):
    words = pool([(label, ("planted",)) for label in labels])
    with pytest.raises(UserError, match=word):
        rows_of(world, scorers, tokens, words)


def test_a_scorer_that_cannot_be_had_is_left_out_with_its_reason(world, caplog):
    """Others go on; a number for it is nowhere to be found, and where it was to be final it is an error."""
    words = pool([(label, ("planted",)) for label in ("zebra", "lion")])
    lost: dict[str, str] = {}
    rows = rows_of(world, ("pearson", "invert", "netdissect", "decoder_direction", "www"), False, words, lost)
    assert list(lost) == ["invert", "netdissect", "decoder_direction", "www"]
    assert all("\n" not in reason for reason in lost.values())
    assert "no decoder" in lost["decoder_direction"] and "decoder_direction" in caplog.text
    assert {tuple(row["scores"]) for row in rows} == {("pearson",)}
    with pytest.raises(UserError, match="no decoder"):
        rows_of(world, ("decoder_direction", "pearson"), True)


def test_invert_gives_its_formula_beside_the_best_label(world):
    rows = rows_of(world, ("invert", "netdissect"))
    red = rows[0]["scores"]
    assert red["invert"]["formula"] == "Reds" and red["invert"]["formula_auc"] == 1
    assert 0 < red["invert"]["formula_share"] < 1
    assert "formula" not in red["netdissect"]


def test_decoder_rows_only_where_the_sae_reads_the_encoders_own_vectors(world, tmp_path):
    """Vectors of the encoder as a layer: features get labels by direction. A turned space is refused."""
    from saelab.label.evidence import decoder_rows
    from saelab.sae.model import SAE, Meta

    pictures, _, _ = world
    generator = torch.Generator().manual_seed(3)
    vectors = normalize(torch.randn(len(pictures), 8, generator=generator), dim=1)
    store = cache.adopt(vectors.numpy() * 3, tmp_path, pictures, name="vectors")
    decoder = normalize(torch.randn(5, 8, generator=generator), dim=1)
    sae = SAE(decoder.clone(), torch.zeros(5), decoder, torch.zeros(8), Meta("topk", 2))
    tokens, ids = concepts.Tokens(store, Projection(sae=sae)), pictures.ids("mine")
    torch.testing.assert_close(decoder_rows(tokens, vectors[ids], ids), decoder)
    elsewhere = normalize(torch.randn(len(ids), 8, generator=generator), dim=1)
    resized = vectors[ids] + 0.1 * elsewhere  # as another library's resizing moves them: cosines of .993 and more
    torch.testing.assert_close(decoder_rows(tokens, resized, ids), decoder)
    for other in (vectors[ids].flip(1), vectors[ids] + 0.5 * elsewhere):
        with pytest.raises(UserError, match="vectors does not hold the encoder's image vectors"):
            decoder_rows(tokens, other, ids)
    with pytest.raises(UserError, match="not one vector of 7 numbers an image"):
        decoder_rows(tokens, vectors[ids][:, :7], ids)
    pairs = Grouping.fit([(0, 1), (2, 4)], torch.rand(6, 5, generator=generator))
    for project, what in ((Projection(sae=sae, groups=pairs), "groups have no"), (Projection(groups=pairs), "have no")):
        with pytest.raises(UserError, match=f"decoder_direction: .*{what} decoder"):  # of 5 rows none is a pair's
            decoder_rows(concepts.Tokens(store, project), vectors[ids], ids)


def test_pictures_without_label_images_are_told(world, tmp_path):
    from small_images import coloured

    plain = coloured(tmp_path, 6)
    with pytest.raises(UserError, match="label images"):
        concepts.pixels(WORDS.labels, plain, plain.ids("mine"), world[1])
