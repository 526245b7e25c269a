"""The artifacts of one config, each made when it is asked for and reused when it is there.

The order is the way of the data: images -> caches -> SAEs -> bases -> exemplars -> proposals -> vocabulary -> labels ->
evaluations -> comparisons; effects from labels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from saelab import compare, encoders, evaluate
from saelab.artifacts import Artifact, digest
from saelab.effects import Head
from saelab.errors import UserError
from saelab.label.series import group_images
from saelab.run import record
from saelab.run.basis import Basis
from saelab.run.controls import RANDOM_HOST, control_config, missing_controls
from saelab.run.labels import Labels
from saelab.run.stages.classes import measure_classes
from saelab.run.stages.comparison import compare_bases, join_effects, pooling_of
from saelab.run.stages.edit import EditSettings, Looking, edit_concepts, read_photos
from saelab.run.stages.effects import (
    EffectsSettings,
    Seen,
    chosen_rows,
    make_head,
    measure_basis,
    measure_label_groups,
    read_effects,
)
from saelab.run.stages.evaluation import evaluate_basis, make_judges
from saelab.run.stages.explain import ExplainSettings, Seeing, explain_picture, open_picture
from saelab.run.stages.images import record_images
from saelab.run.stages.other_views import Labeller, views_of
from saelab.run.stages.planted import measure_planted
from saelab.run.stages.planted import sentence as say_planted
from saelab.run.stages.simulation import measure_simulation
from saelab.run.stages.words import find_words

log = logging.getLogger("saelab")
SHARED = ("images", "host", "random_host", "caches", "random_caches", "encoder", "embeddings")  # by a run's controls
MATCHED = 2048  # latents up to which every run matches its seeds one to one (0.6 s two seeds; 4096 take 3 s)


class Stages(Labels):
    """The stages of one config. People use `saelab.Pipeline`, which is made of this; so are the commands."""

    # ---- how good they are -------------------------------------------------------------------------------------

    @cached_property
    def judges(self) -> evaluate.Judges:
        """What labels are measured against."""
        labels, own = self.vocabulary.labels, self.label_settings
        given = (self.encoder, own, self.config.truth, self.root, self.device, self.config.second_judge)
        return make_judges(labels, self.images, self.embeddings.images, *given)

    @cached_property
    def evaluated(self) -> list[Basis]:
        """Bases with the numbers of their labels on the test split."""
        _ = self._testable  # before the long work
        labelled = self.labelled
        if not any(self.images.captions):
            self.notes.append("The pictures have no captions, so caption_r and caption_clarity are missing.")
        with self.timings.of("evaluation"):
            found = [replace(basis, evaluation=self._evaluate(basis)) for basis in labelled]
        self.notes += [say_planted(self.measure_planted(b)) for b in found if b.kind == "planted"]
        return found

    @cached_property
    def measured(self) -> list[Basis]:
        """Bases with what their units do, where the run asks for it."""
        if self.config.effects is None:
            return self.evaluated
        own = self._effects_compared()
        return [replace(b, effects=self.measure_effects(b, own)) if b.acts else b for b in self.evaluated]

    @cached_property
    def compared_layers(self) -> list[str]:
        """Layers with at least two bases to compare; the others are left out, with a note. Known before the labels."""
        if self.most_per_layer() < 2:
            return []
        self.check()
        there = {layer: [b.name for b in self.bases if b.layer == layer and b.of_tokens] for layer in self.caches}
        found = [layer for layer, names in there.items() if len(names) > 1]
        for layer, names in there.items():
            if found and layer not in found:
                text = f"{layer}: not compared, for it takes two bases and {names[0] if names else 'none'} is there."
                self.notes.append(text)
                log.warning("%s", text)
        return found

    @cached_property
    def comparisons(self) -> dict[str, Artifact]:
        """One comparison for each layer that has two bases, corrected together."""
        given, remedy = list(self.config.bases), "for example bases=[neuron,sae]"
        if self.most_per_layer() < 2:
            raise UserError("bases", given, "a comparison needs at least two", remedy)
        _ = self._testable
        if self.config.effects is not None:
            self._effects_compared()
        if not self.compared_layers:
            raise UserError("bases", given, "a comparison needs at least two, and no layer has the groups", remedy)
        measured = [basis for basis in self.measured if basis.of_tokens and basis.layer in self.compared_layers]
        with self.timings.of("comparison"):
            setups = {layer: self._setup(layer) for layer in self.compared_layers}
            test = self.images.ids("test")
            tested = compare.TestImages(self.judges, test, group_images(self.images)[test])
            found = compare_bases(measured, setups, self.config.compare, self.root, tested, self._views)
            if self.config.effects is None:
                return found
            own = self._effects_compared()
            rows = {(b.layer, b.name): chosen_rows(b, own) for b in measured if b.effects}
            how = own.facts
            return join_effects(measured, found, setups, self.config.compare, self.root, tested, rows, how)

    @cached_property
    def controls(self) -> "Stages":
        """The controls of what units do that the run lacks, labelled with its vocabulary.

        Without the random host where nobody gives the network random weights (`saelab.run.controls`).
        """
        kinds = missing_controls(self.config, self.given)
        if RANDOM_HOST in kinds:
            try:
                _ = self.random_host
            except UserError:
                kinds.remove(RANDOM_HOST)
        made = Stages(control_config(self.config, kinds), replace(self.given, vocabulary=self.vocabulary))
        vars(made).update({name: vars(self)[name] for name in SHARED if name in vars(self)})
        return made

    def _views(self, bases: Sequence[Basis], sides: Mapping[str, compare.ComparedBasis]) -> compare.Views:
        """A layer's bases pooled otherwise and behind another gate, named anew."""
        mining, images = self.config.label.mining, self.images
        labels, vectors = self._label_vectors()
        mined, test = (torch.as_tensor(images.ids(split)) for split in ("mine", "test"))
        seen = (self.embeddings.images, mined, mining.k, mining.contrast, torch.as_tensor(images.groups))
        labeller = Labeller(self.label_settings.final, labels, vectors, *seen)
        return views_of(bases, sides, self.tokens, labeller, test)

    def measure_effects(self, basis: Basis, own: EffectsSettings) -> Path:
        """What the units of a labelled basis do to the host's outputs: the folder of effects.jsonl and effects.json.

        Raises UserError where there is no host to run, and for settings that the run can't use.
        """
        self._need_host("whose outputs could change")
        with self.timings.of("effects"):
            return measure_basis(basis, self._seen(basis), own, self.root)

    def measure_planted(self, basis: Basis) -> list[dict[str, Any]]:
        """Recall and precision of every labeller on a planted basis: a row a labeller and kind of unit."""
        return measure_planted(basis, self.judges, self.images)

    def measure_groups(self, basis: Basis, own: EffectsSettings) -> dict[str, Any]:
        """What all units of one label do together, beside the sum of what each does: a summary over labels."""
        folder = self.measure_effects(basis, own)
        with self.timings.of("effects"):
            return measure_label_groups(basis, self._seen(basis), own, folder)

    def measure_simulation(self, basis: Basis, own: EffectsSettings) -> dict[str, Any]:
        """Ablation scores of every labeller on the chosen units of a basis: a summary over units."""
        self._need_host("whose outputs could change")
        with self.timings.of("effects"):
            return measure_simulation(basis, self._seen(basis), own, self.judges, self.root)

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

        seeing = Seeing(self.host, self.config.policy, head, classes, self.images.square)
        return explain_picture(picture, own_bases, seeing, own, self.root)

    def edit_concepts(self, photos: Path, own: EditSettings, basis: Basis) -> Path:
        """Take out the units named as a concept: accuracy by group, before and after. A folder of page and edit.json.

        `photos`: a folder with photos.csv. Raises UserError where there is no host, for pictures that no edit can be
        judged on, and where no unit is named so.
        """
        self._need_host("that could look at pictures")
        own_host = self.host if basis.weights == self.weights else self.random_host
        seeing = Looking(own_host, self.config.policy, self._sentence_vectors, self.images.square)
        return edit_concepts(photos, read_photos(photos), basis, seeing, own, self.root)

    def outcome(self, comparisons: bool = True) -> record.Outcome:
        """Everything that was made, for the run's record."""
        made = self.comparisons if comparisons else {}
        own = self.config.record()
        own["label"] = own["label"] | {"final": self.label_settings.final}  # which one `auto` stands for
        images = record_images(self.images, self.root)
        bases = self._with_quality(self.measured) if comparisons else self.evaluated
        return record.Outcome(own, images, self.host_name, self.encoder.name, bases, made, self.timings, self.notes)

    def _with_quality(self, bases: list[Basis]) -> list[Basis]:
        """Bases with the quality of their SAEs, as far as it takes no pass through the host."""
        found = {(basis.layer, basis.name): artifact for basis, artifact in self.measure_saes(widest=MATCHED)}
        return [replace(basis, quality=found.get((basis.layer, basis.name))) for basis in bases]

    # ---- parts -------------------------------------------------------------------------------------------------

    @cached_property
    def _testable(self) -> None:
        """Raise UserError for splits and a second judge that nothing could be measured with."""
        evaluate.Splits(self.images.ids("mine"), self.images.ids("test")).check()
        encoders.second_reader(self.config.second_judge, self.device)

    def _effects_compared(self) -> EffectsSettings:
        """The settings of effects that are to be compared. Raises UserError where labels are another scorer's."""
        own, scorer = read_effects(self.config.effects or {}), self.config.compare.scorer
        if own.labels_of != scorer:
            what = f"the comparison is of the labels of {scorer}"
            raise UserError("effects.labels_of", own.labels_of, what, f"use {scorer} for both")
        return own

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

    def _evaluate(self, basis: Basis) -> Artifact:
        own = self.config
        return evaluate_basis(
            basis,
            self.judges,
            self.encoder,
            self.images,
            self.tokens(basis) if basis.of_tokens else None,
            own.truth,
            own.label.mining.k,
            self.root,
        )

    def _setup(self, layer: str) -> compare.Setup:
        own = self.config
        return compare.Setup(
            host=self.host_name,
            layer=layer,
            images=self.images.fingerprint,
            splits=digest(self.images.splits.tolist())[:16],
            pooling=pooling_of(next(b for b in self.bases if b.layer == layer and b.of_tokens)),
            signed=own.signed,
            k=own.label.mining.k,
            encoder=self.encoder.name,
            judge=self.encoder.name,
            labels=digest(list(self.vocabulary.labels))[:16],
        )
