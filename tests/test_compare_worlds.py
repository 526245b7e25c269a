"""The worlds of `saelab.compare.validity`, a light share of them: false alarms, errors, and that they can fail."""

import dataclasses

import numpy as np
import pytest
import torch

from saelab.compare import difference, validity
from saelab.compare.worlds import KINDS, QUALITY, basis, compared, draw

BY_NAME = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize("name", ["copies, one seed", "seeds share 40 features", "series of 5 images"])
def test_where_nothing_differs_little_is_called_and_errors_are_those_of_the_worlds(name):
    """Of 40 worlds a 5 % test calls seven or more in one of three hundred runs."""
    found = [compared(BY_NAME[name], seed) for seed in range(40)]
    assert sum(x.p < 0.05 for x in found) <= 6
    error, spread = np.sqrt(np.mean([sum(x.variance.values()) for x in found])), np.std([x.difference for x in found])
    assert 0.75 < error / spread < 1.5
    assert abs(np.mean([x.difference for x in found])) < 3 * spread / np.sqrt(40)


@pytest.mark.parametrize(
    ("name", "part", "forget"),
    [("copies, one seed", "units_a", "labels"), ("series of 5 images", "images", "groups")],
)
def test_the_worlds_refute_an_error_that_forgets_what_is_shared(name, part, forget):
    kind, ratios = BY_NAME[name], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        world = draw(kind, kind.images, rng)
        sides = [basis(world, kind, recipe, QUALITY, rng) for recipe in (kind.features, kind.neurons)]
        groups = torch.from_numpy(world.groups)
        right = difference(*sides, groups)
        if forget == "labels":
            sides = [dataclasses.replace(s, labels=[[None] * len(own) for own in s.labels]) for s in sides]
        wrong = difference(
            *sides, groups if forget == "labels" else None, chance="none" if forget == "labels" else "reference"
        )
        ratios.append(wrong.variance[part] / right.variance[part])
    assert np.mean(ratios) < 0.5


def test_narrow_topics_are_neither_rewarded_nor_punished():
    found = [compared(BY_NAME["neurons on 2 of 6 topics"], seed, images=1000).difference for seed in range(12)]
    assert abs(np.mean(found)) < 0.015  # 0.01, and the luck of twelve worlds


def test_a_line_of_the_table_says_what_it_checks():
    line = validity.Line("copies", 0.04, 0.95, 0.2, 0.03, 0.002, 1.0)
    assert line.passed and validity.show(line) == "| copies | 0.04 | 0.95 | 0.20 | 0.030 | +0.002 | 1.00 |"
    for broken in ({"false": 0.1}, {"covered": 0.85}, {"bias": -0.02}, {"error": 1.5}):
        assert not dataclasses.replace(line, **broken).passed
