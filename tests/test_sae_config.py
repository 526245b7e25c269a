"""Values that `SAEConfig` and `TrainConfig` can't mean: each is one line, whatever its type."""

import dataclasses
import math
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import UserError
from saelab.sae import SAEConfig, TrainConfig, fit

GIVEN: dict[type, dict[str, Any]] = {SAEConfig: {"d_in": 8, "latents": 32, "k": 4}, TrainConfig: {}}
FIELDS = [(kind, field.name) for kind in GIVEN for field in dataclasses.fields(kind)]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(width=32),
    st.text(max_size=4),
    st.lists(st.floats(0, 1), max_size=3),
    st.builds(np.int64, st.integers(-3, 40)),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(np.bool_, st.booleans()),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just(object()),
)


@settings(max_examples=1000)
@given(st.sampled_from(FIELDS), ANYTHING)
def test_a_value_of_any_type_is_taken_as_what_it_means_or_refused_in_a_line(place: tuple[type, str], value: Any):
    kind, name = place
    try:
        made = kind(**GIVEN[kind] | {name: value})
    except UserError as error:
        assert "\n" not in str(error)
        return
    hint, taken = get_type_hints(kind)[name], getattr(made, name)
    assert allowed(taken, str(hint)), f"{name}={value!r} is taken as {taken!r}"
    assert not (isinstance(taken, float) and not math.isfinite(taken))


def allowed(value: Any, hint: str) -> bool:
    """By the words of the hint, so that this does not repeat the checker."""
    words = {bool: "bool", int: "int", float: "float", str: "str", tuple: "tuple", type(None): "None"}
    return type(value) in words and (words[type(value)] in hint or (type(value) is int and "float" in hint))


@pytest.mark.parametrize(
    ("kind", "given", "line"),
    [
        (SAEConfig, {"k": 2.5}, "k=2.5: expected a whole number"),
        (SAEConfig, {"k": "4"}, "k='4': expected a whole number"),
        (SAEConfig, {"lr": "fast"}, "lr=fast: expected a number or null"),
        (SAEConfig, {"multi_topk": "yes"}, "multi_topk=yes: expected true or false"),
        (TrainConfig, {"steps": 1.5}, "steps=1.5: expected a whole number or null"),
        (TrainConfig, {"decay": 0.5}, "decay=0.5: pairs of numbers"),
        (TrainConfig, {"decay": ((0.5, -1.0),)}, "decay=((0.5, -1.0),): pairs of numbers"),
        (TrainConfig, {"decay": ((0.5, math.nan),)}, "decay=((0.5, nan),): pairs of numbers"),
        (TrainConfig, {"decay": ((math.nan, 0.1),)}, "decay=((nan, 0.1),): pairs of numbers"),
        (TrainConfig, {"decay": ((0.5, math.inf),)}, "decay=((0.5, inf),): pairs of numbers"),
        (SAEConfig, {"prefixes": (math.nan, 1.0)}, "prefixes=(nan, 1.0): rising shares"),
        (SAEConfig, {"prefixes": (0.5, math.inf)}, "prefixes=(0.5, inf): rising shares"),
        (SAEConfig, {"k": 33}, "k=33: at most the number of latents, 32"),
        (SAEConfig, {"k": 33, "rule": "jumprelu"}, "k=33: at most the number of latents, 32"),
    ],
)
def test_a_wrong_type_is_named(kind: type, given: dict[str, Any], line: str):
    with pytest.raises(UserError) as caught:
        kind(**GIVEN[kind] | given)
    assert str(caught.value).startswith(line)


def test_numbers_of_numpy_become_pythons():
    config = SAEConfig(np.int64(8), np.int32(32), k=np.int64(4), lr=np.float32(0.5))
    assert (type(config.d_in), type(config.latents), type(config.k), type(config.lr)) == (int, int, int, float)
    assert config == SAEConfig(8, 32, k=4, lr=0.5)
    assert TrainConfig(graph=np.bool_(True)).graph is True


def test_a_rule_without_k_may_have_fewer_latents_than_k():
    config = SAEConfig(d_in=12, latents=24, rule="relu", lr=1e-3)
    x = np.random.default_rng(0).normal(size=(200, 12))
    assert fit(x, config, TrainConfig(batch_size=32, steps=5), progress=False).sae.meta.k == 0
