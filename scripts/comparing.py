"""The comparison stage: evaluated bases of each layer against each other, as artifacts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from command import plain
from companions import OnRandomHost

from saelab import compare
from saelab.artifacts import Artifact, digest, ensure, read_jsonl
from saelab.units import UnitActivations

if TYPE_CHECKING:
    from bases import Basis
    from stages import Run


def compare_bases(run: "Run", bases: "list[Basis]") -> dict[str, Artifact]:
    """One `comparison` artifact for each layer. p-values are corrected over all layers together."""
    settings = compare.Settings(**plain(run.cfg.compare))
    layers = list(dict.fromkeys(basis.layer for basis in bases))
    evaluations = [basis.evaluation.digest for basis in bases if basis.evaluation is not None]
    results: list[dict[str, Any]] = []

    def result_of(layer: str) -> dict[str, Any]:
        if not results:
            found = [compare.compare([_basis(run, b) for b in bases if b.layer == name], settings) for name in layers]
            results.extend(compare.finish(found))
        return results[layers.index(layer)]

    made = {}
    for layer in layers:
        recipe = {"stage": "comparison", "code": 6, "layer": layer, "evaluations": evaluations, "settings": settings}
        recipe |= {"names": [[b.name, b.group] for b in bases if b.layer == layer]}

        def build(folder: Path, layer: str = layer) -> None:
            compare.write(folder, result_of(layer))

        made[layer] = ensure(run.root, "comparison", layer, recipe, build)
    return made


def _basis(run: "Run", basis: "Basis") -> compare.Basis:
    assert basis.evaluation is not None
    info = UnitActivations.load(basis.units.path).info
    setup = compare.Setup(
        host=run.host.name,
        layer=basis.layer,
        images=run.images.fingerprint,
        splits=digest(run.images.splits.tolist())[:16],
        pooling=info["pool"],
        signed=run.cfg.signed,
        k=run.mining.k,
        encoder=run.encoder.name,
        judge=run.encoder.name,
        labels=digest(list(run.vocabulary.labels))[:16],
    )
    rows = read_jsonl(basis.evaluation.path / "evaluation.jsonl")
    weights = run.random.host.digest if isinstance(basis, OnRandomHost) else run.host.digest
    return compare.Basis(basis.name, basis.group, basis.kind, basis.seed, weights, basis.control, setup, rows)
