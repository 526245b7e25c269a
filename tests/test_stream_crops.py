"""Streams of crops: each picture in each epoch by a pure function, cut and resized by hand for comparison."""

import math
import os
from types import SimpleNamespace

import cache_world
import numpy as np
import pytest
import torch
from cache_world import LAYERS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as vision

from saelab import cache
from saelab.artifacts import read_json
from saelab.cache.decks import HELD, count_superblocks
from saelab.errors import UserError
from saelab.hosts import Host, Transform
from saelab.hosts.callable_transform import CallableTransform
from saelab.images import crops
from saelab.sae import SAEConfig, TrainConfig, fit, fit_layers
from saelab.sae.quality import quality

BATCH, SEED = 64, 3
CONFIG = SAEConfig(5, 12, k=2, lr=3e-3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """41 pictures of 20 x 20, a host that sees them at 15 x 15, their whole pictures' tokens in float32."""
    folder = tmp_path_factory.mktemp("crops")
    images, host = cache_world.pictures(folder / "pictures", 41), cache_world.host()
    whole = cache.write(images, host, LAYERS, folder / "stored", dtype="float32", batch_size=4)
    return SimpleNamespace(images=images, host=host, whole=whole, mine=len(images.ids("mine")))


def unstored(world, root, workers=0):
    given = {"dtype": "float32", "batch_size": 4, "workers": workers}
    return cache.recompute(world.images, world.host, LAYERS, root, **given)


def streams(world, root, pictures=9, crop="random", seed=SEED, **more):
    return cache.stream(unstored(world, root, **more), BATCH, seed, pictures, crop)


def same(a, b):
    return all(torch.equal(a.sae.tensors()[name], b.sae.tensors()[name]) for name in a.sae.tensors())


def by_hand(world, layer, rows, epoch, seed=SEED):
    """Tokens of crops by torchvision's functions and a plain pass of the host, for rows of the layer's cache."""
    made = {}
    for image in np.unique(rows // 49).tolist():
        photo = world.images.load(image)
        left, top, right, bottom, mirrored = crops.draw(*photo.size, seed, epoch, image)
        photo = vision.crop(photo, top, left, bottom - top, right - left)
        photo = vision.hflip(photo) if mirrored else photo
        photo = vision.resize(photo, [15, 15], vision.InterpolationMode.BICUBIC)
        x = vision.normalize(vision.to_tensor(photo), world.host.transform.mean, world.host.transform.std)
        with torch.no_grad():
            out = world.host.model.conv(x[None])
        out = out if layer == "conv" else out.relu()
        made[image] = out[0].flatten(1).T
    return torch.stack([made[row // 49][row % 49] for row in rows.tolist()])


@pytest.mark.parametrize("pictures", [9, 1000])
def test_tokens_are_those_of_crops_cut_by_hand(world, tmp_path, pictures):
    made = streams(world, tmp_path, pictures)
    for layer in LAYERS:
        steps = made[layer].steps_per_epoch
        for step in (0, 5, steps + 2, 3 * steps - 1):
            rows, x = made[layer].rows_of(step), made[layer].batch(step)
            found = by_hand(world, layer, rows, step // steps)
            assert torch.allclose(x, found, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(x, by_hand(world, layer, rows, step // steps + 1), atol=0.1)


def test_a_batch_is_a_pure_function_whoever_asks_and_whenever(world, tmp_path):
    made, again = streams(world, tmp_path), streams(world, tmp_path, workers=2)
    first = {step: made["conv"].batch(step) for step in (0, 7, 30, 2)}
    ahead = dict(enumerate(again["conv"].prefetch(0, 31)))
    for step, x in first.items():
        assert torch.equal(x, ahead[step]) and torch.equal(x, made["conv"].batch(step))
        halves = [again["conv"].batch(step, rank, 2) for rank in range(2)]
        assert torch.equal(torch.cat(halves), x), "processes agree"
    other = streams(world, tmp_path, seed=SEED + 1)["conv"]
    assert not np.array_equal(other.rows_of(0), made["conv"].rows_of(0))


def test_each_epoch_passes_the_host_though_memory_holds_all_pictures(world, tmp_path, monkeypatch):
    passed, method = [], type(world.host).tokens

    def tokens(self, batch, layers, policy="all"):
        passed.append(tuple(layers))
        return method(self, batch, layers, policy)

    monkeypatch.setattr(type(world.host), "tokens", tokens)
    made = streams(world, tmp_path, 1000)
    assert made["conv"].blocks.count == HELD and made["conv"].decks.most_held <= 49 * world.mine
    fit_layers(made, {layer: [CONFIG] for layer in LAYERS}, TrainConfig(epochs=4), progress=False)
    assert set(passed) == {tuple(LAYERS)}, "all layers see one crop in one pass"
    batches = -(-np.diff(made["conv"].blocks.edges) // 4)  # of 4 pictures, by superblock
    once_for_moments, first_deck = batches.sum(), batches[:7].sum()  # the latter for the quality
    assert len(passed) == once_for_moments + 4 * batches.sum() + first_deck


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_bit(world, tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.sae.summary.draw", lambda *_: None)
    train = TrainConfig(steps=60, log_every=1, checkpoint_every=5)

    def run(root, logger=None):
        configs, folders = {layer: [CONFIG] for layer in LAYERS}, {layer: [root / layer] for layer in LAYERS}
        return fit_layers(streams(world, root, 7), configs, train, folders, logger=logger, progress=False)

    def kill(layer, which, step, numbers):
        if step == 38 and layer == LAYERS[1]:
            raise Killed

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill)
    again = run(tmp_path / "killed")
    for layer in LAYERS:
        assert same(whole[layer][0], again[layer][0])
        lines = [(tmp_path / root / layer / "metrics.jsonl").read_bytes() for root in ("whole", "killed")]
        assert lines[0] == lines[1]


def test_moments_are_of_crops_quality_and_stores_of_whole_pictures(world, tmp_path):
    made = streams(world, tmp_path)["conv"]
    ids = np.concatenate([made.blocks.ids_of(number) for number in range(made.blocks.sampled)])
    x = by_hand(world, "conv", (ids[:, None] * 49 + np.arange(49)).ravel(), 0).double().numpy()
    mean, variance = made.moments()
    assert np.allclose(mean, x.mean(0), rtol=1e-4) and np.isclose(variance, x.var(0).sum(), rtol=1e-4)
    assert made.moments_of == {"moments": f"of crops of the first {len(ids)} pictures"}
    plain = streams(world, tmp_path, crop=None)["conv"]
    assert not np.allclose(plain.moments()[0], mean, rtol=1e-3), "one's moments are not taken for the other's"
    fitted = fit(made, CONFIG, TrainConfig(epochs=2), progress=False)
    shown = np.concatenate([made.blocks.ids_of(number) for number in made.decks.drawn_from(0)])
    rows = (np.sort(shown)[:, None] * 49 + np.arange(49)).ravel()
    expected = quality(fitted.sae, world.whole["conv"].tokens[rows])
    assert fitted.quality["fvu"] == pytest.approx(expected["fvu"], rel=1e-5)
    assert fitted.quality["density"] == expected["density"] and fitted.quality["l0"] == expected["l0"]
    assert np.array_equal(made.store.tokens[:], world.whole["conv"].tokens), "units, exemplars, labels read this"
    step = made.steps_per_epoch
    crop = made.batch(step)
    made.store.tokens[made.rows_of(step)]
    assert torch.equal(made.batch(step), crop), "nor does what a store keeps reach the stream"


def test_without_crops_all_is_as_it_was(world, tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.sae.summary.draw", lambda *_: None)
    plain, made = cache.stream(unstored(world, tmp_path), BATCH, SEED, 9), streams(world, tmp_path, crop=None)
    for step in (0, 40):
        assert torch.equal(plain["conv"].batch(step), made["conv"].batch(step))
        stored = world.whole["conv"].tokens[made["conv"].rows_of(step)]
        assert np.array_equal(np.sort(made["conv"].batch(step), 0), np.sort(stored, 0))
    assert set(made["conv"].facts) == {"superblocks", "superblock_pictures", "mixed"}
    fit(made["conv"], CONFIG, TrainConfig(steps=3), tmp_path / "sae", progress=False)
    assert "crop" not in read_json(tmp_path / "sae" / "training.json")["data"]


def test_a_folder_of_other_crops_is_refused_by_name(world, tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.sae.summary.draw", lambda *_: None)
    train, where = TrainConfig(steps=3), tmp_path / "sae"
    fit(streams(world, tmp_path)["conv"], CONFIG, train, where, progress=False)
    said = "random: 8% to 100% of the area, aspect 3:4 to 4:3, 50% mirrored"
    assert read_json(where / "training.json")["data"]["crop"] == said
    assert fit(streams(world, tmp_path)["conv"], CONFIG, train, where, progress=False).folder == where
    with pytest.raises(UserError, match=rf"data\.crop was {said}, is not there"):
        plain = streams(world, tmp_path, crop=None)["conv"]
        monkeypatch.setattr(plain, "moments", streams(world, tmp_path)["conv"].moments)
        monkeypatch.setattr(type(plain), "moments_of", streams(world, tmp_path)["conv"].moments_of)
        fit(plain, CONFIG, train, where, progress=False)
    with pytest.raises(UserError, match=r"another recipe: .*data\."):
        fit(streams(world, tmp_path, crop=None)["conv"], CONFIG, train, where, progress=False)


def test_what_can_not_be_cropped_is_refused_in_a_line(world, tmp_path):
    few = cache_world.pictures(tmp_path / "pictures", 9)
    stores = cache.recompute(few, world.host, LAYERS, tmp_path)
    assert len(few.ids("mine")) < HELD
    own = Host(world.host.model, CallableTransform(vision.to_tensor), "own")
    for make, message in (
        (lambda: streams(world, tmp_path, crop="centre"), r"stream\.crop=centre: unknown; known: random"),
        (lambda: cache.stream(world.whole, crop="random"), r"stores=conv: is stored: .*give what cache\.recompute"),
        (lambda: cache.stream(stores, crop="random"), r"at least 8 are needed for a stream of crops"),
        (
            lambda: cache.stream(cache.recompute(world.images, own, LAYERS, tmp_path), crop="random"),
            r"transform=a callable: resizes and cuts in its own way",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_picture_that_changes_between_epochs_is_named(world, tmp_path):
    images = cache_world.pictures(tmp_path / "pictures", 41)
    stores = cache.recompute(images, world.host, LAYERS, tmp_path, dtype="float32", batch_size=4)
    made, file = cache.stream(stores, BATCH, SEED, 9, "random")["conv"], images.path(int(images.ids("mine")[0]))
    fit(made, CONFIG, TrainConfig(epochs=1), progress=False)
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match=rf"images=.*{file.name}: has changed since this run first read it"):
        fit(made, CONFIG, TrainConfig(epochs=1), progress=False)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(-5, 2**40), st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_crop_lies_within_its_picture_in_the_stated_bounds(width, height, seed, epoch, picture):
    found = crops.draw(width, height, seed, epoch, picture)
    assert 0 <= found.left < found.right <= width and 0 <= found.top < found.bottom <= height
    assert found == crops.draw(width, height, seed, epoch, picture)
    w, h = found.right - found.left, found.bottom - found.top
    assert (w - 0.5) / (h + 0.5) <= 4 / 3 and (w + 0.5) / (h - 0.5) >= 3 / 4, "but for whole pixels"
    if 3 / 4 <= width / height <= 4 / 3:
        assert (w + 0.5) * (h + 0.5) >= 0.08 * width * height
    image = Image.new("RGB", (width, height)) if width * height < 10_000 else None
    assert image is None or found.cut(image).size == (w, h)


@pytest.mark.parametrize(("width", "height"), [(224, 224), (500, 375), (300, 1200)])
def test_crops_are_distributed_as_torchvisions(width, height):
    """Areas, aspects and places of 3000 epochs of one picture against as many of RandomResizedCrop's own draws."""
    ours = np.array([crops.draw(width, height, 1, epoch, 5) for epoch in range(3000)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank, given = torch.empty(3, height, width), ([0.08, 1.0], [3 / 4, 4 / 3])
        theirs = np.array([RandomResizedCrop.get_params(blank, *given) for _ in range(3000)])
    top, left, h, w = theirs.T
    own_w, own_h = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
    for a, b in ((own_w * own_h, w * h), (own_w / own_h, w / h), (ours[:, 0], left), (ours[:, 1], top)):
        assert ks_2samp(a, b).pvalue > 1e-3
    assert abs(ours[:, 4].mean() - 0.5) < 4 * math.sqrt(0.25 / 3000), "half are mirrored"
    assert abs(np.corrcoef(ours[:-1, 0], ours[1:, 0])[0, 1]) < 0.08, "an epoch says nothing of the next"


def test_areas_are_as_stated_where_every_draw_fits():
    """Of a square picture, areas up to 3/4 fit whatever the aspect: these are uniform from .08 on."""
    found = [crops.draw(1000, 1000, seed, 0, picture) for seed in range(40) for picture in range(100)]
    areas = np.array([(c.right - c.left) * (c.bottom - c.top) / 1e6 for c in found])
    small = np.sort(areas[areas < 0.75])
    uniform = (small - 0.08) / (0.75 - 0.08)
    assert areas.min() > 0.079 and areas.max() <= 1
    assert np.abs(uniform - (np.arange(len(small)) + 0.5) / len(small)).max() < 1.95 / math.sqrt(len(small))


@pytest.mark.parametrize("ratio", [(1, 9), (9, 1), (1, 1)])
def test_the_last_resort_is_torchvisions(monkeypatch, ratio):
    """Where no draw fits: the crop in the middle."""
    monkeypatch.setattr(crops, "AREA", (5.0, 6.0))
    width, height = 100 * ratio[0], 100 * ratio[1]
    found = crops.draw(width, height, 0, 0, 0)
    top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), [5.0, 6.0], [3 / 4, 4 / 3])
    assert found[:4] == (left, top, left + w, top + h)


def test_pictures_epochs_and_seeds_have_crops_of_their_own():
    drawn = {crops.draw(2000, 2000, s, e, p) for s in range(5) for e in range(20) for p in range(20)}
    assert len(drawn) > 1990
    small = [crops.draw(6, 6, 0, epoch, 0) for epoch in range(600)]
    assert {(c.left, c.top) for c in small if c.right - c.left == c.bottom - c.top == 4} == {
        (left, top) for left in range(3) for top in range(3)
    }, "every place is reached"


def test_a_cropped_picture_is_resized_to_the_hosts_size_without_another_cut():
    """RandomResizedCrop's way: an odd crop is stretched; size, filter, colours and their order are the host's."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    own = Transform(64, (48, 40), "bilinear", mean=(0.1, 0.2, 0.3), std=(1, 2, 3), scale=0.5, channels="BGR")
    cut = crops.draw(120, 90, 0, 0, 0).cut(photo)
    expected = vision.pil_to_tensor(vision.resize(cut, [48, 40], vision.InterpolationMode.BILINEAR)).float().flip(0)
    expected = (expected * 0.5 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([1, 2, 3])[:, None, None]
    assert torch.equal(own.stretch()(cut), expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(HELD, 500), st.integers(4, 300))
def test_crops_are_cut_into_superblocks_of_at_least_eight(images, pictures):
    plain, anew = count_superblocks(images, pictures), count_superblocks(images, pictures, anew=True)
    assert anew == (plain if plain > 1 else HELD) and HELD <= anew <= images
