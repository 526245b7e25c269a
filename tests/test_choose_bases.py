"""`bases=...` means the same to every command: a basis, a kind, a layer, or both names together."""

from types import SimpleNamespace

import pytest

from saelab import UserError
from saelab.cli import effects
from saelab.report import reading

PLACES = [("blocks.1", "neuron"), ("blocks.1", "sae seed 0"), ("blocks.1", "sae seed 1"), ("blocks.2", "neuron")]


def acting():
    """Bases of a run with two layers, as its stages name them."""
    return [SimpleNamespace(name=name, kind=name.split()[0], layer=layer) for layer, name in PLACES]


def read():
    """The same as reports and exports read them: names that are unique in the run."""
    names = [(f"{layer} {name}", name, layer) for layer, name in PLACES]
    return [SimpleNamespace(name=n, short=s, kind=s.split()[0], layer=layer) for n, s, layer in names]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, [0, 1, 2, 3]),
        ("neuron", [0, 3]),
        (["sae"], [1, 2]),
        (["sae seed 1"], [2]),
        (["blocks.1"], [0, 1, 2]),
        (["blocks.2 neuron", "sae seed 0"], [1, 3]),
    ],
)
@pytest.mark.parametrize(("choose", "bases"), [(effects.choose, acting()), (reading.choose, read())])
def test_names_kinds_and_layers(wanted, found, choose, bases):
    assert choose(wanted, bases) == [bases[i] for i in found]


@pytest.mark.parametrize(("choose", "bases"), [(effects.choose, acting()), (reading.choose, read())])
def test_what_the_run_lacks_is_named_beside_what_it_has(choose, bases):
    with pytest.raises(UserError, match="bases=neurons: is not in this run; did you mean neuron"):
        choose(["neurons"], bases)
    with pytest.raises(UserError, match=r"bases=\[\]: at least one is needed; it has "):
        choose([], bases)
