"""What if a unit were silent here, or stronger? A picture's outputs as they are, and with one unit changed."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saelab import units
from saelab.effects.ablate import Active
from saelab.effects.explain import ONE, OnePicture, explain, look, top_outputs
from saelab.effects.heads import Head, host_head
from saelab.errors import UserError
from saelab.report.live.search import Search
from saelab.report.live.store import shown
from saelab.report.reading import ReadBasis, Run

SHOWN = 5  # outputs that are shown, as things are and after the change
UNITS = 8  # units of each basis
STRONGEST = 4.0  # times what the unit has on the picture, or would usually have
USUAL = 0.95  # quantile of a unit's activations on the images that fire it


class WhatIf:
    """Answers on one picture at a time; the models are the search's, and wait their turn with it."""

    def __init__(self, search: Search) -> None:
        self.search, self.run, self.models = search, search.run, search.models

    @cached_property
    def head(self) -> Head:
        """The host's own classifier. Raises UserError where its outputs have no names."""
        host = self.search.host()
        width = host.logits(torch.zeros(1, 3, *host.transform.size)).shape[-1]
        return host_head(host.model, int(width))

    def outputs(self, picture: Image.Image) -> dict[str, Any]:
        """What the host says: `{"output", "outputs": [[name, share]], "bases": [{"basis", "units": [...]}]}`.

        `units`: those that carry the first output most, `{"unit", "label", "effect"}`. Raises UserError where the
        host's outputs have no names.
        """
        with self.search.turn, torch.inference_mode():
            found: dict[str, Any] = {"bases": []}
            bases = [b for b in self.run.bases if b.fired_by_pictures]
            seen = self._look(picture, [b.layer for b in bases])
            for basis in bases:
                project = units.Projection.load(basis.units, basis.sae)
                if project.groups is not None:
                    continue  # groups write nothing of their own
                answers = seen[basis.layer]
                logits = answers.before[0]
                found |= {"outputs": top_outputs(logits, self.head.outputs.names, SHOWN)}
                writes = project.writes(answers.own.shape[-1])
                made = explain(answers, project, writes, int(logits.argmax()), UNITS)
                rows = [
                    {"unit": s.unit, "label": basis.labels[s.unit]["label"], "effect": s.effect} for s in made.shares
                ]
                found["bases"].append({"basis": basis.name, "units": rows})
            if "outputs" not in found:
                raise UserError("run", self.run.path, "has no units that write to the host", "add bases=[neuron]")
            return found | {"output": found["outputs"][0][0]}

    def changed(self, picture: Image.Image, given: Mapping[str, str]) -> dict[str, Any]:
        """The outputs with one unit at `strength` times what it has: `{"outputs": [[name, before, after]], "silent"}`.

        `given`: `basis`, `unit`, `strength` (0 takes it out). A unit that is silent on the picture is added at every
        token instead, `strength` times what it usually has where it fires. Raises UserError for another basis or unit
        than the run's, and a strength outside 0 to STRONGEST.
        """
        basis, unit, strength = self._asked(given)
        return self.change(picture, basis, unit, strength)

    def change(self, picture: Image.Image, basis: ReadBasis, unit: int, strength: float) -> dict[str, Any]:
        """`changed` for what was decoded and looked up already."""
        with self.search.turn, torch.inference_mode():
            check_host(basis)
            answers = self._look(picture, [basis.layer])[basis.layer]
            project = units.Projection.load(basis.units, basis.sae)
            active = Active.of(project, answers.own)
            write = project.writes(active.tokens.shape[-1])[unit]
            silent = not bool((active.acts[..., unit] > 0).any())
            if silent:
                edited = active.with_more(strength * self._usual(basis, unit), write)
            else:
                edited = active.tokens + (strength - 1) * active.part(unit, write)
            logits = answers.logits(ONE, torch.stack([active.tokens, edited]))[:, 0]
        return {"outputs": self._both(*logits.double().softmax(-1)), "silent": silent}

    def _look(self, picture: Image.Image, layers: Sequence[str]) -> dict[str, OnePicture]:
        host = self.search.host()
        return look(host, layers, self.models.policy, host.transform(picture)[None], self.head)

    def _both(self, before: Tensor, after: Tensor) -> list[list[Any]]:
        """The outputs that come first before or after, with both shares, the highest before first."""
        first = [torch.argsort(x, descending=True, stable=True)[:SHOWN].tolist() for x in (before, after)]
        places = sorted({*first[0], *first[1]}, key=lambda i: -float(before[i]))
        return [[self.head.outputs.names[i], float(before[i]), float(after[i])] for i in places]

    def _usual(self, basis: ReadBasis, unit: int) -> float:
        """What the unit has on images of the run that fire it; 0 where none does."""
        column = basis.acts[:, [unit]].toarray().ravel()
        fired = column[column > 0]
        return float(np.quantile(fired, USUAL)) if len(fired) else 0.0

    def _asked(self, given: Mapping[str, str]) -> tuple[ReadBasis, int, float]:
        basis, text = find_basis(self.run, given.get("basis")), given.get("unit", "")
        unit = check_unit(basis, int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text)
        try:
            strength = float(given.get("strength", ""))
        except ValueError:
            strength = math.nan
        if not 0 <= strength <= STRONGEST:
            raise UserError("strength", shown(given.get("strength")), f"is not 0 to {STRONGEST:g}", "move the slider")
        return basis, unit, strength


def find_basis(run: Run, name: object) -> ReadBasis:
    """The basis of this name. Raises UserError, with the names that there are."""
    basis = next((b for b in run.bases if b.name == name), None)
    if basis is None:
        names = ", ".join(b.name for b in run.bases)
        raise UserError("basis", shown(name), "is not in this run", f"use {names}")
    return basis


def check_host(basis: ReadBasis) -> None:
    """Raise UserError for units of the host with random weights, which no picture passes here."""
    if basis.random_host:
        raise UserError("basis", basis.name, "is of the host with random weights", "name one of the run's own host")


def check_unit(basis: ReadBasis, unit: object) -> int:
    """The number of a unit of the basis. Raises UserError for anything else."""
    if type(unit) is not int or not 0 <= unit < len(basis.labels):
        remedy = f"use 0 to {len(basis.labels) - 1}"
        raise UserError("unit", shown(unit), f"is not a unit of {basis.name}", remedy)
    return unit
