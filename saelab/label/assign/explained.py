"""What a scorer's authors give a unit beyond its best label: several labels, with weights, or a formula of labels."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saelab.arrays import takes_arrays
from saelab.label.assign import linear, several
from saelab.label.assign.evidence import Evidence
from saelab.label.assign.formulas import invert_formulas


@takes_arrays
def explained(
    name: str, scores: Float[Tensor, "units labels"], evidence: Evidence, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Per unit what stands beside its best label, ready for JSON; {} for scorers that give one label only.

    `falcon`, `www`: `labels`, the labels with their scores (FALCON's positive ones; WWW's above 95 % of the best).
    `linear_explanations`: `labels` with weights, `bias`, and `test_r`, the correlation on the fifth of the images that
    chose nothing. `invert`: `formula`, of up to three concepts, with its `formula_auc` and `formula_share` of images.
    """
    if name in ("falcon", "www"):
        kept = several.falcon_labels(scores) if name == "falcon" else several.www_labels(scores)
        return [{"labels": [[labels[i], float(row[i])] for i in own]} for row, own in zip(scores, kept, strict=True)]
    if name == "linear_explanations":
        concepts = linear.concept_activations(evidence.sims)
        found = linear.linear_explanations(evidence.acts, concepts, scores)  # the scores are the coefficients
        return [
            {"labels": [[labels[i], w] for i, w in zip(e.labels, e.weights, strict=True)]}
            | {"bias": e.bias, "test_r": e.test_r}
            for e in found
        ]
    if name == "invert":
        return _formulas(evidence, labels)
    return [{} for _ in range(len(scores))]


def _formulas(evidence: Evidence, labels: Sequence[str]) -> list[dict[str, Any]]:
    concepts = evidence.need("concepts").bool()
    there = concepts.any(dim=0).nonzero()[:, 0]  # what holds nowhere would only fill the beam
    names = [labels[i] for i in there.tolist()]
    return [
        {}
        if formula is None
        else {"formula": formula.text(names), "formula_auc": formula.auc, "formula_share": formula.share}
        for formula in invert_formulas(evidence.acts, concepts[:, there])
    ]
