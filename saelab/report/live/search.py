"""Search over the units of a run: words, or a picture, to the units of every basis."""

import base64
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saelab import units
from saelab.encoders import Encoder
from saelab.hosts import Host
from saelab.label import pipeline, search
from saelab.label.exemplars import Exemplars, MiningSettings
from saelab.report import maps
from saelab.report.reading import ReadBasis, Run


@dataclass(frozen=True)
class Models:
    """What search needs beside the run's files. The callables are asked at the first search, and load once."""

    encoder: Callable[[], Encoder]
    embeddings: Callable[[], Tensor]  # [images, d_text] of the run's images
    host: Callable[[], Host]
    mining: MiningSettings
    scorer: str  # one of label.search.ALONE
    policy: str  # which tokens of the host
    pool: str  # tokens -> one number an image


class Search:
    """Units of every basis by words or picture. One search at a time: models are not made for threads."""

    def __init__(self, run: Run, models: Models) -> None:
        self.run, self.models, self.turn = run, models, threading.Lock()
        self._acts = lru_cache(maxsize=None)(units.UnitActivations.load)

    def by_text(self, text: str, top: int) -> list[dict[str, Any]]:
        """Per basis `{"basis", "hits": [{"unit", "score"}]}`, best first; scores are `models.scorer`'s."""
        with self.turn, torch.inference_mode():
            vector = self.models.encoder().embed_sentences([text])
            return [{"basis": basis.name, "hits": self._ranked(basis, vector, top)} for basis in self.run.bases]

    def by_picture(self, picture: Image.Image, top: int) -> list[dict[str, Any]]:
        """Per basis `{"basis", "grid", "box", "hits": [{"unit", "score", "activation", "share", "cells"}]}`.

        `score`: share of mine images that fire the unit less. `share`: the activation as a share of the unit's highest
        on any image of the run. `cells`: base64 of uint8 [height, width], 255 at that highest; None without a grid.
        """
        with self.turn, torch.inference_mode():
            host = self.models.host()
            layers = list(dict.fromkeys(basis.layer for basis in self.run.bases))
            tokens = host.tokens(host.transform(picture)[None], layers, self.models.policy)
            box = maps.box(picture.size, self.run.images.square, host.transform_spec)
            found = []
            for basis in self.run.bases:
                grid = host.choice(basis.layer, self.models.policy).grid
                hits = self._fired(basis, tokens[basis.layer][0].float().cpu(), grid, top)
                found.append({"basis": basis.name, "grid": grid, "box": box, "hits": hits})
            return found

    def _ranked(self, basis: ReadBasis, vector: Tensor, top: int) -> list[dict[str, Any]]:
        tensors = {name: torch.from_numpy(array) for name, array in basis.exemplars.items()}
        exemplars = Exemplars(**tensors, status=tuple(row["status"] for row in basis.labels))
        acts, images = self._acts(basis.units), self.models.embeddings()
        evidence = pipeline.evidence(acts, exemplars, self.run.images, images, vector, self.models.mining)
        hits = search.text_to_units(vector[0], evidence, self.models.scorer, top)
        return [{"unit": u, "score": s} for u, s in zip(hits.units.tolist(), hits.scores.tolist(), strict=True)]

    def _fired(self, basis: ReadBasis, tokens: Tensor, grid: tuple[int, int] | None, top: int) -> list[dict[str, Any]]:
        project = units.Projection.load(basis.units, basis.sae)
        each = project(tokens)
        fired = units.pool_units(project, tokens[None], self.models.pool)[0]
        mined = self._acts(basis.units).rows(self.run.images.ids("mine"))
        hits = search.image_to_units(fired, mined, top)
        highest = basis.acts.max(0).toarray().ravel()
        rows = []
        for u, score in zip(hits.units.tolist(), hits.scores.tolist(), strict=True):
            peak = max(float(highest[u]), 1e-12)
            row = {"unit": u, "score": score, "activation": float(fired[u]), "share": float(fired[u]) / peak}
            rows.append(row | {"cells": _cells(each[:, u], peak, grid)})
        return rows


def _cells(tokens: Tensor, peak: float, grid: tuple[int, int] | None) -> str | None:
    if grid is None:
        return None
    shares = (tokens[-grid[0] * grid[1] :] / peak).clamp(0, 1).numpy()
    return base64.b64encode(np.round(255 * shares).astype(np.uint8).tobytes()).decode()
