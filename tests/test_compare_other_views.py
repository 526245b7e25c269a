"""The same units pooled otherwise or behind another gate: planted worlds of which the answer is known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saelab.compare import Cut, Views, compare, cut_to_rate
from saelab.compare.other_views import rate_explains
from saelab.compare.whole_way import IMAGES, SETTINGS, WORDS, evaluated, planted
from saelab.compare.whole_way import test_images as images_of
from saelab.label.mine import ContrastRule
from saelab.run.stages import other_views
from saelab.units import Projection, pool_tokens

MINE, TEST = torch.arange(IMAGES // 2), torch.arange(IMAGES // 2, IMAGES)
UNITS = 60


def labeller(world, scorer="pearson") -> other_views.Labeller:
    groups = torch.arange(IMAGES)
    return other_views.Labeller(scorer, WORDS, world.labels, world.judge, MINE, 10, ContrastRule(), groups)


def tokens_of(world, peak: float, ground: float, generator: torch.Generator) -> torch.Tensor:
    """Four tokens an image, [images, 4, units]. A unit's concept adds `peak` to the first token and `ground` to all.

    Where the concept peaks, the other tokens share a noise that drowns it in the mean; where it lies on all tokens, the
    first has a spike of noise that drowns it in the maximum.
    """
    there = world.member[:, torch.randint(len(WORDS), (UNITS,), generator=generator)].float()
    noise = torch.rand(IMAGES, UNITS, generator=generator)
    found = ground * there[:, None].repeat(1, 4, 1)
    found[:, 0] += peak * there + (3 * noise if ground else 0)
    found[:, 1:] += 1.5 * noise[:, None] if peak else 0
    return found


def run_of(world, pools: dict[str, tuple[float, float]], pool: str):
    """A run's bases, as compared and as stages know them, on planted tokens."""
    generator = torch.Generator().manual_seed(3)
    sides, bases, grids, acts = {}, [], {}, {}
    for name, (peak, ground) in pools.items():
        kind = "neuron" if name == "neurons" else "sae"
        grids[name] = tokens_of(world, peak, ground, generator)
        acts[name] = pool_tokens(grids[name], pool)
        sides[name] = evaluated(name, kind, None if kind == "neuron" else 0, acts[name], world)
        bases.append(SimpleNamespace(name=name, kind=kind, control=False, units=SimpleNamespace(path=name)))

    def tokens(basis):
        grid = grids[basis.name]
        offsets = np.arange(0, 4 * IMAGES + 1, 4)
        cache = SimpleNamespace(offsets=offsets, tokens=grid.reshape(-1, UNITS).numpy(), layer="planted")
        cache.n_tokens, cache.n_images = 4 * IMAGES, IMAGES
        return SimpleNamespace(cache=cache, project=Projection())

    return bases, sides, tokens, acts


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_verdict_that_hangs_on_the_pooling_says_so(pool, monkeypatch):
    world, other = planted(5), {"max": "mean", "mean": "max"}[pool]
    bases, sides, tokens, acts = run_of(world, {"features": (2.0, 0.0), "neurons": (0.0, 0.6)}, pool)
    loaded = {name: SimpleNamespace(acts=x, units=UNITS, info={"pool": pool}) for name, x in acts.items()}
    monkeypatch.setattr(other_views, "UnitActivations", SimpleNamespace(load=loaded.__getitem__))
    views = other_views.views_of(bases, sides, tokens, labeller(world), TEST)
    assert views.pooling == other and [basis.name for basis in views.pooled] == ["features", "neurons"]
    result = compare(list(sides.values()), SETTINGS, images_of(world), views)
    (row,) = result["poolings"]
    better = {"max": "a", "mean": "b"}  # features peak, neurons lie on all tokens
    whole = next(p for p in result["pairs"] if p["matching"] == "all")["results"]
    assert next(r for r in whole if r["role"] == "primary" and r["counting"] == "named")["verdict"] == better[pool]
    assert row["verdict"] == better[other] and (row["a"], row["b"]) == ("features", "neurons")
    ahead = "neurons" if pool == "max" else "features"
    assert f"That depends on the choice: {ahead} are ahead" in result["headline"]
    assert f"pooled by {other}" in result["headline"]


def test_a_verdict_that_stays_under_the_other_pooling_says_nothing_of_it(monkeypatch):
    world = planted(5)
    bases, sides, tokens, acts = run_of(world, {"features": (2.0, 0.0), "neurons": (0.0, 0.0)}, "max")
    loaded = {name: SimpleNamespace(acts=x, units=UNITS, info={"pool": "max"}) for name, x in acts.items()}
    monkeypatch.setattr(other_views, "UnitActivations", SimpleNamespace(load=loaded.__getitem__))
    sides["neurons"] = evaluated("neurons", "neuron", None, torch.rand(IMAGES, UNITS), world)
    views = other_views.views_of(bases, sides, tokens, labeller(world), TEST)
    views = replace(views, pooled=[views.pooled[0], replace(sides["neurons"], _known={})])
    result = compare(list(sides.values()), SETTINGS, images_of(world), views)
    assert result["poolings"][0]["verdict"] == "a" and "pooled by mean" not in result["headline"]


def test_scorers_that_look_at_more_than_activations_give_no_views():
    assert other_views.views_of([], {}, lambda basis: None, labeller(planted(5), "netdissect"), TEST) == Views()


def gated(quality: float, seed: int = 1) -> dict:
    """Features behind a gate; neurons of a given quality without one, dense."""
    world, generator = planted(5), torch.Generator().manual_seed(seed)

    def raw(q: float) -> torch.Tensor:
        concept = torch.randint(len(WORDS), (UNITS,), generator=generator)
        return 2 * q * world.member[:, concept] + 0.6 * torch.randn(IMAGES, UNITS, generator=generator)

    sparse, dense = raw(0.6), raw(quality)
    features = evaluated("features", "sae", 0, (sparse - 0.9).relu(), world)
    neurons = evaluated("neurons", "neuron", None, (dense + 3).relu(), world)
    rate = float((sparse[MINE] > 0.9).double().mean())
    name = labeller(world).name

    def view(side, acts):
        rows = [row | {"named": row["named"] | {"label": label}} for row, label in zip(side.rows, name(acts))]
        return replace(side, rows=rows, acts=lambda: acts[TEST], _known={})

    views = Views(
        cut=[Cut("features", rate, [view(neurons, cut_to_rate((dense + 3).relu(), MINE, rate))])],
        dense=[view(features, (sparse + 3).relu())],
    )
    return compare([features, neurons], SETTINGS, images_of(world), views)


@pytest.mark.parametrize(("quality", "explains"), [(0.6, "yes"), (0.25, "no")])
def test_twins_tell_whether_the_firing_rate_makes_the_difference(quality, explains):
    result = gated(quality)
    pair = next(p for p in result["pairs"] if p["matching"] == "all")
    row = next(r for r in pair["results"] if r["role"] == "primary" and r["counting"] == "named")
    assert [(twin["group"], twin["twin"], twin["n"]) for twin in result["twins"]] == [
        ("neurons", "cut", UNITS),
        ("features", "dense", UNITS),
    ]
    assert row["verdict"] == "a" and rate_explains(result, pair, row["difference"]) == explains
    said = {"yes": "the firing rate explains half of it or more", "no": "the firing rate does not explain it"}
    assert said[explains] in result["headline"]
    assert "Is it the firing rate? Labels chosen anew, neurons cut to fire on" in result["conclusion"]


def two_saes(qualities: tuple[float, float], gates: tuple[float, float], seed: int = 1) -> dict:
    """Two SAEs behind gates at these thresholds and before them; neurons cut to the rate of each."""
    world, generator = planted(5), torch.Generator().manual_seed(seed)
    name, sides, dense, cuts = labeller(world).name, [], [], []

    def view(side, acts):
        rows = [row | {"named": row["named"] | {"label": label}} for row, label in zip(side.rows, name(acts))]
        return replace(side, rows=rows, acts=lambda: acts[TEST], _known={})

    def raw(q: float) -> torch.Tensor:
        concept = torch.randint(len(WORDS), (UNITS,), generator=generator)
        return 2 * q * world.member[:, concept] + 0.6 * torch.randn(IMAGES, UNITS, generator=generator)

    neurons = raw(0.3)
    sides.append(evaluated("neurons", "neuron", None, (neurons + 3).relu(), world))
    for group, quality, gate in zip(("SAE k=8", "SAE k=32"), qualities, gates):
        before = raw(quality)
        sides.append(evaluated(group, "sae", 0, (before - gate).relu(), world))
        dense.append(view(sides[-1], (before + 3).relu()))
        rate = float((before[MINE] > gate).double().mean())
        cuts.append(Cut(group, rate, [view(sides[0], cut_to_rate((neurons + 3).relu(), MINE, rate))]))
    return compare(sides, SETTINGS, images_of(world), Views(cut=cuts, dense=dense))


@pytest.mark.parametrize(
    ("qualities", "gates", "explains"),
    [
        ((0.85, 0.65), (0.9, 0.9), "no"),  # like gates that each cost more than the gap; other directions
        ((0.9, 0.65), (0.9, 0.8), "no"),
        ((0.6, 0.6), (0.6, -1.0), "yes"),  # like directions, of which one side has hardly a gate
        ((0.9, 0.9), (0.8, -0.8), "yes"),
    ],
)
def test_of_two_saes_both_gates_come_off(qualities, gates, explains):
    result = two_saes(qualities, gates)
    pair = next(p for p in result["pairs"] if p["matching"] == "all" and "neurons" not in (p["a"], p["b"]))
    row = next(r for r in pair["results"] if r["role"] == "primary" and r["counting"] == "named")
    one, other, both = (t for t in result["twins"] if t["twin"] == "dense")
    assert row["verdict"] == "a" and (both["group"], both["against"]) == ("SAE k=8", "SAE k=32")
    assert both["difference"] == pytest.approx(one["difference"] - other["difference"], abs=0.03)
    assert both["mean"] == pytest.approx(row["difference"], abs=0.03)
    assert rate_explains(result, pair, row["difference"]) == explains
    assert "SAE k=8 and SAE k=32, both before their gates, differ by" in result["conclusion"]


def test_neurons_are_cut_to_the_rate_of_the_sae_that_they_are_compared_with():
    sides = [SimpleNamespace(group=g, rows=[{"firing_rate": r}] * n) for g, r, n in (("a", 0.05, 64), ("b", 0.3, 128))]
    assert other_views._median_rates([*sides, sides[0]]) == {"a": 0.05, "b": 0.3}
    result = two_saes((0.6, 0.6), (0.4, 1.2))
    cut = {twin["against"]: twin for twin in result["twins"] if twin["twin"] == "cut"}
    assert cut["SAE k=8"]["rate"] > 2 * cut["SAE k=32"]["rate"] and set(cut) == {"SAE k=8", "SAE k=32"}
    pair = next(p for p in result["pairs"] if (p["a"], p["b"], p["matching"]) == ("SAE k=8", "neurons", "all"))
    for twin in result["twins"]:  # what is measured against the other SAE has no say
        if "SAE k=32" in (twin["group"], twin["against"]):
            twin |= {"low": 99.0, "high": 100.0}
    gap = next(r for r in pair["results"] if r["role"] == "primary" and r["counting"] == "named")["difference"]
    assert rate_explains(result, pair, gap) == rate_explains(two_saes((0.6, 0.6), (0.4, 1.2)), pair, gap)


@pytest.mark.parametrize(
    ("cut", "dense", "said"),
    [
        ((0.01, 0.02), (-0.02, 0.0), "no"),
        ((0.06, 0.09), (-0.09, -0.06), "yes"),
        ((0.06, 0.09), (-0.06, -0.04), "yes"),
        ((0.04, 0.06), (-0.02, 0.0), "unclear"),
        ((0.06, 0.09), (-0.02, 0.0), "unclear"),  # one says yes, the other no
    ],
)
def test_twins_that_contradict_each_other_leave_it_open(cut, dense, said):
    groups = [{"name": "f", "kind": "sae"}, {"name": "n", "kind": "neuron"}]
    twins = [{"group": "n", "against": "f"}, {"group": "f", "against": None}]
    ends = [dict(zip(("low", "high"), x)) for x in (cut, dense)]
    result = {"groups": groups, "twins": [twin | end for twin, end in zip(twins, ends)]}
    assert rate_explains(result, {"a": "f", "b": "n"}, 0.1) == said


def test_without_views_nothing_is_said_of_them():
    world = planted(5)
    _, sides, *_ = run_of(world, {"features": (2.0, 0.0), "neurons": (0.0, 0.6)}, "max")
    result = compare(list(sides.values()), SETTINGS, images_of(world))
    assert result["poolings"] == result["twins"] == [] and "twins" not in result["headline"]


@pytest.mark.parametrize(("kept", "says"), [(1.0, "a"), (0.0, "none")])
def test_a_second_reader_of_captions_judges_the_same_labels(kept, says):
    """One that reads as the first does gives its numbers; one to whom captions mean nothing contradicts it."""
    world, generator = planted(5), torch.Generator().manual_seed(0)
    _, sides, *_ = run_of(world, {"features": (2.0, 0.0), "neurons": (0.0, 0.0)}, "max")
    sides["neurons"] = evaluated("neurons", "neuron", None, torch.rand(IMAGES, UNITS, generator=generator), world)
    images = images_of(world)
    first = images.judges.captions
    noise = torch.nn.functional.normalize(torch.randn(first.images.shape, generator=generator), dim=1)
    other = replace(first, name="another reader", images=kept * first.images + (1 - kept) * noise)
    heard = replace(images, judges=replace(images.judges, second=other))
    result = compare(list(sides.values()), SETTINGS, heard)
    (row,) = result["judges"]
    whole = next(p for p in result["pairs"] if p["matching"] == "all")["results"]
    primary = next(r for r in whole if r["role"] == "primary" and r["counting"] == "named")
    assert primary["verdict"] == "a" and row["verdict"] == says and row["judge"] == "another reader"
    same = [row[name] == pytest.approx(primary[name]) for name in ("mean_a", "mean_b", "difference", "low", "high")]
    assert all(same) if kept else not any(same)
    assert ("no difference is shown judged by another reader" in result["headline"]) == (not kept)
    assert "Captions read by another reader instead: " in result["conclusion"]
    assert compare(list(sides.values()), SETTINGS, images)["judges"] == []
