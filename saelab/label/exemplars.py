"""Exemplars of every unit of one basis: the images that fire it most, and their look-alikes that do not.

Mined on the `mine` split only. Image ids in files and objects are those of the whole image set, -1 where there is none.
"""

import math
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.artifacts import Artifact, ensure, open_artifact, read_json, write_json
from saelab.encoders import ImageEmbeddings
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.label import mine
from saelab.settings import check as check_settings
from saelab.settings import nearest
from saelab.units import UnitActivations

CODE = 3  # version of this stage; part of every recipe
RANGES = {"k": (1, math.inf), "rare_below": (0, math.inf), "dense_from": (0, math.inf), "seed": (0, math.inf)}
RANGES |= {"exact_below": (1, math.inf), "quantile": (0, 1), "host_similarity": (-1, 1), "host_limit": (1, math.inf)}
FIRST = ("k", "rule", "reuse", "rare_below", "dense_from")  # settings that every recipe names


@dataclass(frozen=True)
class MiningSettings(mine.ContrastRule):
    """How positives and contrasts are chosen (arXiv 2604.22477, section on mining; method of FALCON for `host`).

    The rule for contrasts, with its own settings, and what concerns positives.
    """

    k: int = 30  # positives a unit
    rare_below: int = 10  # a unit that fires on fewer mine images is marked `rare`
    dense_from: float = 0.8  # a unit that fires on this share of mine images or more is marked `dense`

    @property
    def contrast(self) -> mine.ContrastRule:
        """The rule for contrasts alone."""
        return mine.ContrastRule(**{f.name: getattr(self, f.name) for f in fields(mine.ContrastRule)})

    def recipe(self) -> dict[str, Any]:
        """As recipes name it: settings that came later only where they are not at their default."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {f.name: named[f.name] for f in fields(self) if f.name in FIRST or named[f.name] != f.default}


@dataclass(frozen=True)
class Exemplars:
    """What one basis was labelled from."""

    positives: Int[Tensor, "units k"]  # images that fire the unit, strongest first; -1 where there are none left
    activations: Float[Tensor, "units k"]  # the unit's activation on each positive; 0 where there are none left
    contrasts: Int[Tensor, "units k"]  # the look-alike paired with each positive, -1 where none qualifies
    similarity: Float[Tensor, "units k"]  # cosine of the pair in the scoring encoder's space
    status: tuple[str, ...]  # per unit
    fires_on: Int[Tensor, "units"]  # mine images that it fires on (`mine.firing_threshold`)

    @classmethod
    def load(cls, folder: Path | str) -> "Exemplars":
        """Read an `exemplars` or `labels` artifact."""
        from safetensors.torch import load_file

        path = open_artifact(folder).path
        return cls(
            **load_file(str(path / "exemplars.safetensors")), status=tuple(read_json(path / "status.json")["status"])
        )

    def save(self, folder: Path) -> None:
        """Write `exemplars.safetensors` and `status.json` (with the counts per status)."""
        from safetensors.torch import save_file

        names = ("positives", "activations", "contrasts", "similarity", "fires_on")
        save_file({n: getattr(self, n).contiguous() for n in names}, str(folder / "exemplars.safetensors"))
        write_json(folder / "status.json", {"counts": dict(Counter(self.status)), "status": list(self.status)})


def check(images: ImageSet, settings: MiningSettings) -> None:
    """Raise UserError for values that can't be meant, and where the `mine` split has too few images for k positives."""
    check_settings(settings, "label.mining.", RANGES)
    if settings.rule not in mine.RULES:
        near = nearest(settings.rule, mine.RULES).strip()
        raise UserError("label.mining.rule", settings.rule, f"expected one of {', '.join(mine.RULES)}", near)
    count = len(images.ids("mine"))
    if count <= settings.k:
        remedy = f"give more images, or set label.mining.k below {count}"
        raise UserError("label.mining.k", settings.k, f"the mine split has only {count} images", remedy)


def find(
    units: UnitActivations,
    images: ImageSet,
    image_emb: Tensor,
    settings: MiningSettings,
    host_emb: Float[Tensor, "images d_in"] | None = None,
) -> Exemplars:
    """Mine every unit of a basis. Raises UserError where the `mine` split has fewer images than k.

    `host_emb`: the host's own image vectors, in which the rule `host` looks for contrasts.
    """
    check(images, settings)
    ids = images.ids("mine")
    acts, emb = units.rows(ids), image_emb[torch.as_tensor(ids)]
    status = mine.statuses(acts, rare_below=settings.rare_below, dense_from=settings.dense_from)
    pairs = mine.mine_pairs(
        acts,
        emb,
        settings.k,
        settings.contrast,
        torch.as_tensor(images.groups[ids]),
        None if host_emb is None else host_emb[torch.as_tensor(ids)],
    )
    lonely = (pairs.contrast_ids < 0).all(1)
    status = ["no_contrast" if s in ("ok", "rare") and none else s for s, none in zip(status, lonely.tolist())]
    table = torch.cat([torch.as_tensor(ids), torch.tensor([-1])])  # -1 looks up the last entry: -1 again
    positives, contrasts = table[pairs.positive_ids], table[pairs.contrast_ids]
    return Exemplars(positives, pairs.positive_values, contrasts, pairs.similarity, tuple(status), mine.fires_on(acts))


def exemplars(
    units: Artifact,
    images: ImageSet,
    embeddings: ImageEmbeddings,
    root: Path | str,
    settings: MiningSettings,
    host_emb: Float[Tensor, "images d_in"] | None = None,
) -> Artifact:
    """The exemplars of a `units` artifact as an artifact of their own. `host_emb` as in `find`."""
    recipe: dict[str, Any] = {"stage": "exemplars", "code": CODE, "units": units.digest, "images": images.fingerprint}
    recipe |= {"embeddings": embeddings.artifact.digest, "mining": settings.recipe()}
    if settings.in_cells(len(images.ids("mine"))):
        recipe["search"] = "cells"  # smaller sets keep the recipe, and the contrasts, that they had before there were

    def build(folder: Path) -> None:
        find(UnitActivations.load(units.path), images, embeddings.images, settings, host_emb).save(folder)

    return ensure(root, "exemplars", units.recipe["basis"], recipe, build)
