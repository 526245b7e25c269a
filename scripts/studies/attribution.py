"""How well do cheap attributions say what an exact ablation says, at a late layer, an earlier one, and in a ViT?

`python scripts/studies/attribution.py PICTURES [OUT]`: a folder with JPEG files, evenly thinned out.
Explained is, on each picture, the host's first choice (less the mean of all outputs), or for a host without a
classifier the likeness of its answer to the answer that it gives. Prints the table of docs/effects.md; OUT: a JSON file
of the same numbers. Needs the extras quickstart and dino.

Integrated gradients share out what all units do together. The column "own path" has the same integral along one unit's
way alone, from the tokens without it to the tokens: by the fundamental theorem that *is* its ablation, so whatever
keeps IG from agreeing with ablation must be gone there, but for the steps.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from typicality import Resumed, see

from saelab import hosts, tables
from saelab.effects.ablate import Active
from saelab.effects.attribute import Attribution, exact, gradient_x_part, integrated_gradients, of_output
from saelab.sae import SAEConfig, TrainConfig, fit
from saelab.units.bases import Projection

LAYERS = (
    ("efficientnet_lite0", "in:_avg_pooling"),
    ("efficientnet_lite0", "_blocks.15"),
    ("efficientnet_lite0", "_blocks.10"),
    ("dinov2_small_focus", "encoder.layer.9"),
)
PICTURES = 8  # explained
UNITS = 24  # of each picture, those whose part is longest
LATENTS, K = 640, 16  # of the SAEs
TRAINED = 96  # pictures that SAEs are trained on
OWN_STEPS = 4  # of the path of one unit alone
COLUMNS = (
    *("host, layer", "basis", "pairs", "gradient × part r", "slope", "IG(4) r", "IG(16) r", "residual of IG(16)"),
    f"own path({OWN_STEPS}) r",
)


def main(pictures: Path, out: Path | None = None) -> None:
    """Print a row for each layer and basis as soon as it is known, then the table."""
    files = sorted(pictures.glob("*.jpg"))
    files = files[:: max(1, len(files) // TRAINED)][:TRAINED]
    rows = []
    for name, layer in LAYERS:
        host = hosts.load(name, device="cpu")
        answers, _ = see(host, layer, files)
        for basis, project in bases(answers):
            rows.append({"host": name, "layer": layer, "basis": basis} | compare(answers, project))
            print(json.dumps(rows[-1]), file=sys.stderr)
    print(table(rows))
    if out is not None:
        out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def bases(answers: Resumed) -> Iterator[tuple[str, Projection]]:
    """Neurons, random directions about the mean token, and an SAE trained on the same pictures."""
    tokens = answers.all.flatten(0, 1)
    yield "neurons", Projection()
    draw = torch.randn(tokens.shape[1], tokens.shape[1], generator=torch.Generator().manual_seed(0))
    turned = torch.linalg.qr(draw)[0]
    yield "random directions", Projection(directions=turned, shift=tokens.mean(0) @ turned)
    config = SAEConfig(tokens.shape[1], LATENTS, k=K)
    made = fit(tokens.numpy(), config, TrainConfig(batch_size=512, epochs=8), progress=False)
    yield "SAE features", Projection(sae=made.sae)


def compare(answers: Resumed, project: Projection) -> dict[str, Any]:
    """Pearson's r and the slope of each method with exact ablation, over pairs of a picture and an active unit."""
    writes = project.writes(answers.all.shape[-1])
    chosen = np.linspace(0, len(answers.all) - 1, PICTURES).round().astype(int)
    found: dict[str, list[Tensor]] = {name: [] for name in ("exact", "quick", "few", "many", "own")}
    missed, whole = [], []
    for image in tqdm(chosen, leave=False):
        ids, active = np.array([image]), Active.of(project, answers.all[[image]])
        weights = explained(answers, ids)
        lengths = active.lengths * writes.norm(dim=1)
        units = torch.argsort(lengths, descending=True)[: min(UNITS, int((lengths > 0).sum()))].tolist()
        given = (answers, ids, active, writes, weights)
        cheap: dict[str, Attribution] = {"quick": gradient_x_part(*given)}
        cheap |= {"few": integrated_gradients(*given, steps=4), "many": integrated_gradients(*given, steps=16)}
        found["exact"].append(exact(*given, units)[0])
        for method, one in cheap.items():
            found[method].append(one.values[0, units])
        found["own"].append(follow_own_paths(*given, units))
        missed.append(float(cheap["many"].residual.abs()))
        whole.append(float(cheap["many"].whole.abs()))
    every = {method: torch.cat(values).numpy() for method, values in found.items()}
    r = {method: float(np.corrcoef(every[method], every["exact"])[0, 1]) for method in found if method != "exact"}
    slope = r["quick"] * every["exact"].std() / every["quick"].std()
    return {"pairs": len(every["exact"]), **r, "slope": float(slope), "residual": float(np.sum(missed) / np.sum(whole))}


def follow_own_paths(
    answers: Resumed, ids: np.ndarray, active: Active, writes: Tensor, weights: Tensor, units: list[int]
) -> Tensor:
    """Each unit's part of one picture times the mean gradient while it alone grows from nothing (midpoint rule)."""
    parts = torch.cat([active.part(unit, writes[unit]) for unit in units])
    mean = torch.zeros_like(parts)
    for step in range(OWN_STEPS):
        tokens = active.tokens - (1 - (step + 0.5) / OWN_STEPS) * parts
        mean += answers.gradient(np.repeat(ids, len(units)), tokens, weights) / OWN_STEPS
    return (parts.double() * mean.double()).sum((1, 2))


def explained(answers: Resumed, ids: np.ndarray) -> Tensor:
    """Weights of the output that is explained on one picture."""
    answer = answers.logits(ids, answers.all[ids][None])[0, 0].double()
    return of_output(int(answer.argmax()), len(answer)) if len(answer) == 1000 else normalize(answer, dim=0)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, as docs/effects.md has it."""
    cells = [
        [f"{row['host']}, `{row['layer']}`", row["basis"], str(row["pairs"])]
        + [tables.number(row[name], form) for name, form in FORMS]
        for row in rows
    ]
    return tables.draw_markdown(COLUMNS, cells)


FORMS = (("quick", ".4f"), ("slope", ".2f"), ("few", ".4f"), ("many", ".5f"), ("residual", ".4f"), ("own", ".6f"))

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
