"""Where each unit's held-out number lies among those of random directions of its layer."""

import numpy as np

from saelab.compare.inputs import above_chance
from saelab.compare.random_directions import among
from saelab.report.reading import ReadBasis, Run


def of_bases(run: Run) -> list[list[float | None]]:
    """Per basis and unit `random_percentile`: the share of random directions that do worse.

    By the metric that decides the layer's comparison, above chance. None without a comparison or random directions,
    and for random directions themselves.
    """
    decides = {comparison["setup"]["layer"]: comparison["primary"] for comparison in run.comparisons}
    drawn: dict[str, list[np.ndarray]] = {}
    for basis in run.bases:
        if basis.kind == "random_rotation" and decides.get(basis.layer):
            drawn.setdefault(basis.layer, []).append(_values(basis, decides[basis.layer]))
    made = []
    for basis in run.bases:
        shares: list[float | None] = [None] * len(basis.labels)
        if basis.layer in drawn and basis.kind != "random_rotation":
            found = among(_values(basis, decides[basis.layer]), np.concatenate(drawn[basis.layer]))
            shares = [None if share != share else round(share, 4) for share in found.tolist()]
        made.append(shares)
    return made


def _values(basis: ReadBasis, metric: str) -> np.ndarray:
    entries = above_chance([row["named"] for row in basis.evaluation], metric)
    values = [None if entry["label"] is None else entry.get(metric) for entry in entries]
    return np.array([np.nan if value is None else value for value in values], dtype=float)
