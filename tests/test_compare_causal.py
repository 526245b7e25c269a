"""The family `causal` of a comparison: statistics, corrections, words, and that nothing changes without effects."""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from test_compare import basis, rows

from saelab.compare import Settings, TestImages, compare
from saelab.compare.causal import METRICS, PRIMARY, _Ground, _parts, join
from saelab.compare.shared import combine
from saelab.effects import add_corrected

IMAGES, UNITS, EACH, WORLDS = 120, 80, 12, 100
QUICK = Settings(resamples=20)
LAYER = "layer4"


def test_images(groups=None) -> TestImages:
    return TestImages(None, np.arange(IMAGES) + 1000, groups)  # judges are of other families


test_images.__test__ = False


def effects(seed: int, level: float = 0.0, image_noise=None, labels: int = 40, units: int = UNITS) -> list[dict]:
    """Rows of a basis whose units share labels and images: both move the numbers of all that share them."""
    rng = np.random.default_rng(seed)
    of_label = rng.normal(0, 0.1, labels)
    shared = np.zeros(IMAGES) if image_noise is None else image_noise
    found = []
    for unit in range(units):
        label = int(rng.integers(labels))
        images = np.sort(rng.choice(IMAGES, EACH, replace=False))
        each = level + of_label[label] + rng.normal(0, 0.1) + shared[images] + rng.normal(0, 0.3, EACH)
        without = ((each.sum() - each) / (EACH - 1)).tolist()
        row = {"unit": unit, "label": f"label {label}", "why": None, "pictures": (images + 1000).tolist()}
        row |= {"causal_p": float(rng.random()), "without": dict.fromkeys(METRICS, without)}
        found.append(row | dict.fromkeys(METRICS, float(each.mean())))
    return add_corrected(found)


@pytest.fixture(scope="module")
def compared():
    """Two bases and a control, compared by descriptions alone; with the bases."""
    sides = [basis("neurons", n=UNITS), dataclasses.replace(basis("features", n=UNITS), kind="sae", seed=0)]
    sides.append(dataclasses.replace(basis("random directions", n=UNITS), kind="random_rotation", control=True))
    return compare(sides, QUICK), sides


def joined(compared, found: dict, images=None, settings=QUICK) -> dict:
    result = copy.deepcopy(compared[0])
    join([result], [compared[1]], {(LAYER, name): some for name, some in found.items()}, settings, images)
    return result


def main_row(result: dict, counting: str = "named") -> dict:
    pair = next(p for p in result["causal"]["pairs"] if p["role"] == "main")
    return next(r for r in pair["results"] if (r["metric"], r["counting"]) == (PRIMARY, counting))


def test_alarms_are_rare_and_a_real_lead_is_seen(compared):
    part_of, parts = _parts(test_images(), QUICK)
    sides = {basis.name: basis for basis in compared[1]}
    alarms = seen = 0
    for world in range(WORLDS):
        noise = np.random.default_rng(10_000 + world).normal(0, 0.3, IMAGES)
        level = 0.0 if world % 2 else 0.12
        found = {"neurons": effects(2 * world, 0.0, noise), "features": effects(2 * world + 1, level, noise)}
        ground = _Ground(sides, found, part_of, parts)
        one = combine(*(ground.measure([name], PRIMARY, "named") for name in ("features", "neurons")), parts)
        seen += level > 0 and one.low > 0
        alarms += level == 0 and one.p < 0.05
        assert one.variance["images"] > 0
    half = WORLDS / 2
    assert alarms <= half * 0.05 + 2 * np.sqrt(half * 0.05 * 0.95) and seen >= 0.8 * half


@pytest.mark.parametrize(("behind", "ahead", "above"), [(-0.7, -0.2, False), (-0.4, 0.0, False), (-0.1, 0.3, True)])
def test_of_two_sides_that_the_network_does_not_use_neither_is_said_to_be_used(compared, behind, ahead, above):
    result = joined(compared, {"neurons": effects(1, behind), "features": effects(2, ahead)}, test_images())
    told = "Neither features nor neurons are shown to be used for what their labels say; features come closer."
    assert next(a for a in result["answers"] if a["family"] == "causal")["above"] == above
    assert ("The network uses features more than neurons" in result["headline"]) == above
    assert (told in result["headline"]) != above


def test_no_units_of_one_label_pass_for_many(compared):
    """Copies of a unit under its own label add nothing: the interval stays as wide."""
    one = effects(5, 0.1, labels=30, units=40)
    twice = one + [row | {"unit": row["unit"] + 40} for row in one]
    other = effects(6, 0.0)
    alone = main_row(joined(compared, {"neurons": one, "features": other}))
    doubled = main_row(joined(compared, {"neurons": twice, "features": other}))
    side = "units_b" if doubled["mean_b"] == pytest.approx(alone["mean_b"]) and len(one) < doubled["n_b"] else "units_a"
    assert doubled["variance"][side] == pytest.approx(alone["variance"][side], rel=1e-9)


@tries(max_examples=6)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_leaving_a_part_out_adds_up_what_its_images_change(seed, groups):
    """One group an image: exactly the number without it. Several: the changes summed; images that don't fire: none."""
    own = effects(seed, units=4)
    for given_groups in (None, np.random.default_rng(seed).integers(0, groups, IMAGES)):
        part_of, parts = _parts(test_images(given_groups), dataclasses.replace(QUICK, parts=IMAGES))
        side = dataclasses.replace(basis("neurons", n=4))
        left = (
            _Ground({"neurons": side}, {"neurons": own}, part_of, parts).measure(["neurons"], PRIMARY, "named").left_out
        )
        for unit, row in enumerate(own):
            changes = np.array(row["without"][PRIMARY]) - row[PRIMARY]
            for part in range(len(parts)):
                mine = [part_of[image] == part for image in row["pictures"]]
                assert left[part, unit] == pytest.approx(row[PRIMARY] + changes[mine].sum(), abs=1e-12)


def test_countings(compared):
    """A unit without a number counts 0 in `all` and not at all in `named`; one that abstains is out of `labelled`."""
    found = {"neurons": effects(1, 0.5), "features": effects(2, 0.5)}
    for row in found["features"][:20]:
        row |= {"why": "no_target", "without": None} | dict.fromkeys((*METRICS, "causal_p"))
    result, sides = compared
    unsure = [row | {"abstained": True, "final": row["final"] | {"label": None}} for row in sides[0].rows[:10]]
    sides = [dataclasses.replace(sides[0], rows=[*unsure, *sides[0].rows[10:]], _known={}), *sides[1:]]
    joined_result = joined((result, sides), found)
    named, all_, labelled = (main_row(joined_result, c) for c in ("named", "all", "labelled"))
    sizes = [sorted((row["n_a"], row["n_b"])) for row in (named, all_, labelled)]
    assert sizes == [[60, 80], [80, 80], [60, 70]]
    side = "b" if named["n_a"] == 60 else "a"
    other = "a" if side == "b" else "b"
    assert all_[f"mean_{other}"] == pytest.approx(named[f"mean_{other}"] * 60 / 80)
    described = {b["name"]: b for b in joined_result["causal"]["bases"]}
    assert described["features"]["why"] == {"too_few": 0, "unlabelled": 0, "no_target": 20}
    assert sum(described["neurons"]["four_field"].values()) == pytest.approx(1)
    assert described["random directions"]["chosen"] == 0


def test_units_that_are_not_compared_do_not_count(compared):
    result, sides = compared
    dead = [row | {"status": "dead"} for row in rows(UNITS, 0.2)[:30]]
    sides = [dataclasses.replace(sides[0], rows=[*dead, *sides[0].rows[30:]], _known={}), *sides[1:]]
    found = joined((result, sides), {"neurons": effects(1), "features": effects(2)})
    assert {b["name"]: b["chosen"] for b in found["causal"]["bases"]}["neurons"] == UNITS - 30


def test_both_axes_are_in_the_words(compared):
    found = {"neurons": effects(1), "features": effects(2, 0.4), "random directions": effects(3)}
    result = joined(compared, found, test_images())
    assert "The network uses features more than neurons for what their labels say." in result["headline"]
    assert "says both when its unit fires and what it does" in result["headline"]
    assert result["conclusion"].startswith(result["headline"]) and "What units do" in result["conclusion"]
    assert result["conclusion"].index("What units do") < result["conclusion"].index("What this can't show")
    assert sum("What units do is known for" in line for line in result["cautions"]) == 1
    family = [answer for answer in result["answers"] if answer["family"] == "causal"]
    assert len(family) == len(result["causal"]["pairs"]) == 3 and all(a["matching"] == "all" for a in family)
    again = copy.deepcopy(result)
    join([again], [compared[1]], {(LAYER, name): some for name, some in found.items()}, QUICK, test_images())
    assert again == result


def test_units_that_were_not_looked_at_are_told_from_those_that_could_not_be_measured(compared):
    drawn = {"neurons": effects(1)[:30], "features": effects(2)}
    drawn["features"][0]["why"] = "too_few"
    told = [line for line in joined(compared, drawn)["cautions"] if line.startswith("What units do")]
    assert told[0].startswith(
        f"What units do is known for 30 of {UNITS} neurons and {UNITS - 1} of {UNITS} features; the others were not "
        "looked at, or have no output of the host that means the label, or fire on too few test images."
    )
    whole = joined(compared, {"neurons": effects(1), "features": effects(2)})["cautions"]
    assert any(f"known for {UNITS} of {UNITS} neurons and {UNITS} of {UNITS} features. Units" in line for line in whole)


def test_too_few_units_are_refused_in_words(compared):
    result = joined(compared, {"neurons": effects(1), "features": effects(2, units=10)})
    pair = next(p for p in result["causal"]["pairs"] if p["role"] == "main")
    assert pair["refused"] == "only 10 units on one side have a measured effect; at least 20 are needed"
    assert "can't be compared: only 10 units" in result["headline"]


def test_p_values_are_corrected_over_layers_and_not_over_controls(compared):
    """Three layers with the same small lead: Holm over the three main pairs; the controls are a family of their own."""
    found = {"neurons": effects(11), "features": effects(12, 0.055), "random directions": effects(13)}
    results, layers = [], ["layer2", "layer3", "layer4"]
    for layer in layers:
        one = copy.deepcopy(compared[0])
        one["setup"]["layer"] = layer
        results.append(one)
    rows_of = {(layer, name): some for layer in layers for name, some in found.items()}
    join(results, [compared[1]] * 3, rows_of, QUICK)
    main = [main_row(result) for result in results]
    assert main[0]["p_holm"] == pytest.approx(min(1, 3 * main[0]["p"])) and 0 < main[0]["p"] < 1
    shown = [r for p in results[0]["causal"]["pairs"] for r in p["results"] if r["metric"] == "causal"]
    assert shown and all(r["p_holm"] is None and r["verdict"] == "none" for r in shown)


def test_without_effects_nothing_is_said(compared):
    assert "causal" not in compared[0] and "network uses" not in compared[0]["conclusion"]
