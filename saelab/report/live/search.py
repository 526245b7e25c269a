"""Search over the units of a run: words, or a picture or a place in one, to the units of every basis."""

import base64
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from saelab import units
from saelab.errors import UserError
from saelab.hosts import Host
from saelab.label import made_up, pipeline, search
from saelab.label.exemplars import Exemplars, MiningSettings
from saelab.names import imagenet_names
from saelab.report import maps
from saelab.report.reading import ReadBasis, Run

log = logging.getLogger("saelab")

Place = tuple[float, float]  # (x, y) from the top left, as shares of a picture's centre square


@dataclass(frozen=True)
class Models:
    """What search needs beside the run's files. The callables are asked at the first search, and load once."""

    embed: Callable[[Sequence[str]], Tensor]  # texts to [texts, d_text], as the run's labels were embedded
    embeddings: Callable[[], Tensor]  # [images, d_text] of the run's images
    host: Callable[[], Host]
    mining: MiningSettings
    scorer: str  # one of label.search.ALONE
    policy: str  # which tokens of the host
    pool: str  # tokens -> one number an image


class Search:
    """Units of every basis by words or picture. One search at a time: models are not made for threads."""

    def __init__(self, run: Run, models: Models) -> None:
        self.run, self.models, self.turn = run, models, threading.RLock()
        self._acts = lru_cache(maxsize=None)(units.UnitActivations.load)
        self._mined = lru_cache(maxsize=None)(self._rows)

    def warm(self) -> None:
        """Load what first searches would load; a search that comes meanwhile waits for one step at most."""
        blank = Image.new("RGB", (64, 64))
        steps: list[Callable[[], object]] = [lambda: self.models.embed(["a"]), lambda: self.null]
        steps += [lambda: self.by_text("a", 1), self.host, lambda: self.by_picture(blank, 1)]
        for step in steps:
            try:
                with self.turn, torch.inference_mode():
                    step()
            except UserError as error:
                log.warning("search: %s", error)  # a search raises it again

    def host(self) -> Host:
        """The run's host, fit for gradients: what is loaded in inference mode never is."""
        with torch.inference_mode(False):
            return self.models.host()

    @cached_property
    def null(self) -> made_up.MadeUp:
        """How near words that mean nothing come to the run's mined images."""
        mined = torch.as_tensor(self.run.images.ids("mine"))
        return made_up.MadeUp.drawn(self.models.embed, imagenet_names(), self.models.embeddings()[mined])

    def by_text(self, text: str, top: int) -> dict[str, Any]:
        """`{"chance", "nothing", "found": [{"basis", "hits": [{"unit", "score"}]}]}`, best first.

        Scores are `models.scorer`'s. `chance`: that words which mean nothing come as near to the run's images
        (`label.made_up`); `nothing` where they do so too often for the text to name something in them.
        """
        with self.turn, torch.inference_mode():
            vector = self.models.embed([text])
            chance = self.null.chance(vector[0])
            found = [{"basis": basis.name, "hits": self._ranked(basis, vector, top)} for basis in self.run.bases]
            return {"chance": chance, "nothing": chance > made_up.BY_CHANCE, "found": found}

    def by_picture(self, picture: Image.Image, top: int, place: Place | None = None) -> list[dict[str, Any]]:
        """Per basis `{"basis", "grid", "box", "cell", "hits": [...]}`, of the picture or of one `place` in it.

        A hit is `{"unit", "score", "activation", "below", "share", "cells"}`, ranked by `label.search.image_to_units`:
        `score`, `below` and `share` are its. `cells`: base64 of uint8 [height, width], 255 at the unit's highest
        activation on mined images; None without a grid. `cell`: (row, column) of the token at the place; None without
        a place or grid, or where the host does not see the place: then nothing is found.
        """
        with self.turn, torch.inference_mode():
            host = self.host()
            layers = list(dict.fromkeys(basis.layer for basis in self.run.bases))
            tokens = host.tokens(host.transform(picture)[None], layers, self.models.policy)
            box = maps.box(picture.size, self.run.images.square, host.transform_spec)
            found = []
            for basis in (b for b in self.run.bases if b.fired_by_pictures):
                grid = host.choice(basis.layer, self.models.policy).grid
                cell = None if place is None or grid is None else cell_at(place, grid, box)
                seen = tokens[basis.layer][0].float().cpu()
                hits = [] if place is not None and cell is None else self._fired(basis, seen, grid, cell, top)
                found.append({"basis": basis.name, "grid": grid, "box": box, "cell": cell, "hits": hits})
            return found

    def _ranked(self, basis: ReadBasis, vector: Tensor, top: int) -> list[dict[str, Any]]:
        tensors = {name: torch.from_numpy(array) for name, array in basis.exemplars.items()}
        exemplars = Exemplars(**tensors, status=tuple(row["status"] for row in basis.labels))
        acts, images = self._acts(basis.units), self.models.embeddings()
        evidence = pipeline.evidence(acts, exemplars, self.run.images, images, vector, self.models.mining)
        hits = search.text_to_units(vector[0], evidence, self.models.scorer, top)
        return [{"unit": u, "score": s} for u, s in zip(hits.units.tolist(), hits.scores.tolist(), strict=True)]

    def _fired(
        self, basis: ReadBasis, tokens: Tensor, grid: tuple[int, int] | None, cell: tuple[int, int] | None, top: int
    ) -> list[dict[str, Any]]:
        project = units.Projection.load(basis.units, basis.sae)
        each = project(tokens)
        if cell is None or grid is None:
            fired = units.pool_units(project, tokens[None], self.models.pool)[0]
        else:
            fired = each[len(each) - grid[0] * grid[1] + cell[0] * grid[1] + cell[1]]
        hits = search.image_to_units(fired, self._mined(basis.units), top)
        found = zip(hits.units.tolist(), hits.scores.tolist(), hits.below.tolist(), hits.shares.tolist(), strict=True)
        rows = []
        for u, score, below, share in found:
            row = {"unit": u, "score": score, "activation": float(fired[u]), "below": below, "share": share}
            rows.append(row | {"cells": _cells(each[:, u], float(fired[u]) / share, grid)})
        return rows

    def _rows(self, folder: Path) -> Float[Tensor, "images units"]:
        return self._acts(folder).rows(self.run.images.ids("mine"))


def cell_at(place: Place, grid: tuple[int, int], box: Sequence[float]) -> tuple[int, int] | None:
    """(row, column) of the token that lies at a place; None outside what the host sees.

    `box`: (width, height) of what it sees, centred, as shares of the picture's centre square (`report.maps.box`).
    """
    x, y = ((at - 0.5) / share + 0.5 for at, share in zip(place, box, strict=True))
    if not (0 <= x < 1 and 0 <= y < 1):
        return None
    return int(y * grid[0]), int(x * grid[1])


def _cells(tokens: Tensor, peak: float, grid: tuple[int, int] | None) -> str | None:
    if grid is None:
        return None
    shares = (tokens[-grid[0] * grid[1] :] / peak).clamp(0, 1).numpy()
    return base64.b64encode(np.round(255 * shares).astype(np.uint8).tobytes()).decode()
