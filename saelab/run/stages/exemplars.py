"""Exemplars of a finished run for other people's tools."""

from pathlib import Path

import torch

from saelab.errors import UserError
from saelab.files import folder_names
from saelab.label import milan, selection
from saelab.report import reading
from saelab.units import UnitActivations


def export_milan(run: reading.Run, basis: reading.ReadBasis, units: str, k: int, out: Path) -> tuple[Path, int]:
    """Write a basis' exemplars as MILAN's tools read them into `<out>/<basis>/`; the folder and how many units.

    units: which, as proposer.units says it. k: pictures of a unit, of the `mine` split. Raises UserError for a k that
    is no number of pictures, and as `milan.write_exemplars` does.
    """
    if k < 1:
        raise UserError("k", k, "expected at least 1 picture of a unit", "MILAN takes 15")
    acts, mine = UnitActivations.load(basis.units), run.images.ids("mine")
    strength = torch.from_numpy(basis.exemplars["activations"]).mean(1).tolist()
    status = [row["status"] for row in basis.labels]
    chosen, _ = selection.choose(units, acts.units, status=status, strength=strength)
    found = milan.strongest(acts.rows(mine), mine, sorted(chosen), k)
    names = folder_names(each.name for each in run.bases)
    folder = out / names[[each.name for each in run.bases].index(basis.name)]
    return milan.write_exemplars(folder, found, run.images, reading.open_maps(run.path, basis)), len(found)
