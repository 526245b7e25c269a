"""What a run's units do: their effects on the host's outputs, explained pictures, edited concepts."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from saelab import encoders
from saelab.artifacts import Artifact
from saelab.effects import Head
from saelab.errors import UserError
from saelab.report.called import Called, in_few_words
from saelab.run.basis import KINDS, Basis
from saelab.run.labels import Labels
from saelab.run.stages.classes import measure_classes
from saelab.run.stages.edit import EditSettings, Looking, edit_concepts, read_photos
from saelab.run.stages.effects import (
    EffectsSettings,
    Seen,
    make_head,
    measure_basis,
    measure_label_groups,
    read_effects,
)
from saelab.run.stages.effects_auto import AUTO, automatic, find_obstacle
from saelab.run.stages.explain import ExplainSettings, Seeing, explain_picture, open_picture
from saelab.run.stages.words import find_words

log = logging.getLogger("saelab")


class Acting(Labels):
    """Everything that runs the host with units taken out or added. `saelab.run.making.Stages` goes on from it."""

    @cached_property
    def effects_compared(self) -> EffectsSettings | None:
        """What of the units' effects the comparison holds. None: nothing was asked for, or `auto` found an obstacle.

        Raises UserError where labels are another scorer's than those that are compared.
        """
        asked, scorer = self.config.effects, self.config.compare.scorer
        if asked is None:
            return None
        if asked == AUTO:
            own = read_effects(automatic(self.config.compare.keep))
            obstacle = self._find_obstacle(own)
            if obstacle is not None:
                self.notes.append(f"What units do is not compared: {obstacle}.")
                log.warning("%s", self.notes[-1])
                return None
            return own
        assert isinstance(asked, dict)
        own = read_effects(asked)
        if own.labels_of != scorer:
            what = f"the comparison is of the labels of {scorer}"
            raise UserError("effects.labels_of", own.labels_of, what, f"use {scorer} for both")
        return own

    def _find_obstacle(self, own: EffectsSettings) -> str | None:
        """Why nobody measures the effects of this run's units, or not soon; None: nothing is in the way."""
        if self.weights == "arrays":
            return "there is no host whose outputs could change"
        if any(KINDS[kind].of for kind in self.config.bases):
            return "groups write nothing of their own"
        if own.labels_of != self.config.compare.scorer:
            return f"the comparison is of the labels of {self.config.compare.scorer}"
        firsts = {basis.layer: basis for basis in reversed(self.bases) if basis.acts}
        found = (find_obstacle(self._seen(basis), own) for basis in firsts.values())
        return next((why for why in found if why is not None), None)

    def measure_effects(self, basis: Basis, own: EffectsSettings) -> Path:
        """What the units of a labelled basis do to the host's outputs: the folder of effects.jsonl and effects.json.

        Raises UserError where there is no host to run, and for settings that the run can't use.
        """
        self._need_host("whose outputs could change")
        with self.timings.of("effects"):
            return measure_basis(basis, self._seen(basis), own, self.root)

    def measure_groups(self, basis: Basis, own: EffectsSettings) -> dict[str, Any]:
        """What all units of one label do together, beside the sum of what each does: a summary over labels."""
        folder = self.measure_effects(basis, own)
        with self.timings.of("effects"):
            return measure_label_groups(basis, self._seen(basis), own, folder)

    def find_words(self, basis: Basis, own: EffectsSettings) -> Artifact:
        """The outputs that each unit raises and lowers by what it writes alone, where a linear read-out follows.

        Raises UserError where more than that follows the layer, and where there is no host.
        """
        self._need_host("whose outputs could change")
        with self.timings.of("effects"):
            return find_words(basis, self._seen(basis), own, self.root)

    def measure_classes(self, basis: Basis, head: str = "host") -> Artifact:
        """How much every unit of a basis raises every class, on pictures for mining: its `class_units` artifact.

        `head`: as of `EffectsSettings`. Raises UserError where there is no host, or none with named outputs.
        """
        self._need_host("whose classes could be asked for")
        seen = self._seen(basis)
        with self.timings.of("effects"):
            return measure_classes(basis, seen, lambda: make_head(seen, EffectsSettings(head=head)), head, self.root)

    def explain_picture(self, picture: str | Path, own: ExplainSettings, bases: Sequence[Basis] | None = None) -> Path:
        """Why the host says what it says of a picture: the folder of a page and explanation.json.

        Raises UserError where there is no host to ask, for a file that is no picture, and for settings that can't be.
        """
        self._need_host("that could look at a picture")
        open_picture(Path(picture).expanduser())  # before the long work
        own_bases = [b for b in (self.acting if bases is None else bases) if b.weights == self.weights]
        if not own_bases:
            what = "are all of the random host, or groups"
            raise UserError("bases", [b.name for b in bases or ()], what, "name another basis")
        how = EffectsSettings(head=own.head)

        def head(basis: Basis) -> Head:
            return make_head(self._seen(basis), how)

        def classes(basis: Basis) -> Path:
            return self.measure_classes(basis, own.head).path

        seeing = Seeing(self.host, self.config.policy, head, classes, self.call, self.images.square)
        return explain_picture(picture, own_bases, seeing, own, self.root)

    def edit_concepts(self, photos: Path, own: EditSettings, basis: Basis) -> Path:
        """Take out the units named as a concept: accuracy by group, before and after. A folder of page and edit.json.

        `photos`: a folder with photos.csv. Raises UserError where there is no host, for pictures that no edit can be
        judged on, and where no unit is named so.
        """
        self._need_host("that could look at pictures")
        own_host = self.host if basis.weights == self.weights else self.random_host
        seeing = Looking(own_host, self.config.policy, self._sentence_vectors, self.call, self.images.square)
        return edit_concepts(photos, read_photos(photos), basis, seeing, own, self.root)

    def call(self, basis: Basis) -> str:
        """What a basis is called where people read, beside its layer."""
        every = [Called(b.name, b.kind, b.layer, b.seed, b.control) for b in self.bases]
        names = dict(zip(((b.layer, b.name) for b in self.bases), in_few_words(every), strict=True))
        return names[basis.layer, basis.name]

    def _need_host(self, what: str) -> None:
        """Raise UserError where there are arrays and no host `what`."""
        if self.weights == "arrays":
            remedy = "give images and a host instead"
            raise UserError("arrays", self.config.arrays.name, f"there is no host {what}", remedy)

    def _seen(self, basis: Basis) -> Seen:
        """A basis' host with what it saw."""
        host = self.host if basis.weights == self.weights else self.random_host
        return Seen(host, self.store(basis), self.images, self._label_vectors, self._sentence_vectors)

    def _sentence_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Sentences as a text encoder reads them, kept by recipe: a host's outputs are called the same each time."""
        return encoders.label_embeddings(list(texts), encoders.SentenceEncoder(device=self.device), self.root)
