"""The comparison stage: evaluated bases of each layer against each other."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saelab import compare
from saelab.acts import Acts, columns
from saelab.artifacts import Artifact, digest, ensure, read_json, read_jsonl
from saelab.compare import causal
from saelab.run.basis import Basis
from saelab.units import UnitActivations

CODE = 11  # version of this stage; part of every recipe
CAUSAL = 2  # version of the family `causal`; part of the recipes of comparisons that have it


def compare_bases(
    bases: Sequence[Basis],
    setups: Mapping[str, compare.Setup],
    settings: compare.Settings,
    root: Path,
    tested: compare.TestImages,
    views: Callable[[Sequence[Basis], Mapping[str, compare.ComparedBasis]], compare.Views],
) -> dict[str, Artifact]:
    """One `comparison` artifact for each layer; p-values are corrected over all layers together.

    `setups`: by layer, what all its bases share. `tested`: the test images, their groups and what judges labels.
    `views`: a layer's bases, and the same by name as they are compared, looked at another way.
    """
    layers = list(dict.fromkeys(basis.layer for basis in bases))
    evaluations = [basis.evaluation.digest for basis in bases if basis.evaluation is not None]
    results: list[dict[str, Any]] = []

    def result_of(layer: str) -> dict[str, Any]:
        if not results:
            found = []
            for name in layers:
                own = [b for b in bases if b.layer == name]
                sides = {b.name: _side(b, setups[name], tested) for b in own}
                seen = views(own, sides) if settings.scorer == "final" else compare.Views()
                found.append(compare.compare(list(sides.values()), settings, tested, seen))
            results.extend(compare.finish(found))
        return results[layers.index(layer)]

    made = {}
    for layer in layers:
        recipe = {"stage": "comparison", "code": CODE, "layer": layer, "evaluations": evaluations, "settings": settings}
        recipe |= {"groups": digest([str(group) for group in (() if tested.groups is None else tested.groups)])}
        recipe |= {"names": [[b.name, b.group] for b in bases if b.layer == layer]}
        recipe |= {} if tested.judges.second is None else {"second": tested.judges.second.name}

        def build(folder: Path, layer: str = layer) -> None:
            compare.write(folder, result_of(layer))

        made[layer] = ensure(root, "comparison", layer, recipe, build)
    return made


def join_effects(
    bases: Sequence[Basis],
    compared: Mapping[str, Artifact],
    setups: Mapping[str, compare.Setup],
    settings: compare.Settings,
    root: Path,
    tested: compare.TestImages,
    effects: Mapping[tuple[str, str], Sequence[dict[str, Any]]],
    how: Mapping[str, Any],
) -> dict[str, Artifact]:
    """Comparisons with the family `causal`: artifacts of their own beside those without, which stay as they are.

    `effects`: layer and name of a basis -> the rows that count. `how`: the settings that they were measured with.
    Eight parameters: those of `compare_bases`, what it made, and what is added.
    """
    results: list[dict[str, Any]] = []

    def result_of(layer: str) -> dict[str, Any]:
        if not results:
            results.extend(read_json(artifact.path / "comparison.json") for artifact in compared.values())
            sides = [[_side(b, setups[name], tested) for b in bases if b.layer == name] for name in compared]
            causal.join(results, sides, effects, settings, tested, how)
        return results[list(compared).index(layer)]

    rows = digest([[*key, list(found)] for key, found in sorted(effects.items())])
    made = {}
    for layer in compared:
        recipe = {"stage": "comparison", "code": CODE, "layer": layer, "causal": CAUSAL, "effects": rows, "how": how}
        recipe |= {"comparisons": [artifact.digest for artifact in compared.values()]}

        def build(folder: Path, layer: str = layer) -> None:
            compare.write(folder, result_of(layer))

        made[layer] = ensure(root, "comparison", layer, recipe, build)
    return made


def _side(basis: Basis, setup: compare.Setup, tested: compare.TestImages) -> compare.ComparedBasis:
    assert basis.evaluation is not None
    rows = read_jsonl(basis.evaluation.path / "evaluation.jsonl")

    def acts() -> Acts:
        return columns(UnitActivations.load(basis.units.path).rows(tested.ids))

    own = (basis.name, basis.group, basis.kind, basis.seed, basis.weights, basis.control)
    return compare.ComparedBasis(*own, setup, rows, acts=acts)


def pooling_of(basis: Basis) -> str:
    """How a basis' tokens became one number an image."""
    return str(UnitActivations.load(basis.units.path).info["pool"])
