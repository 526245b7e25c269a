"""The artifacts of one config, each made when it is asked for and reused when it is there.

The order is the way of the data: images -> caches -> SAEs -> bases -> exemplars -> proposals -> vocabulary -> labels ->
evaluations -> comparisons; effects from labels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from saelab import compare, encoders, evaluate
from saelab.artifacts import Artifact, digest
from saelab.errors import UserError
from saelab.label.series import group_images
from saelab.run import record
from saelab.run.acting import Acting
from saelab.run.basis import Basis
from saelab.run.controls import RANDOM_HOST, control_config, missing_controls
from saelab.run.stages.comparison import compare_bases, join_effects, pooling_of
from saelab.run.stages.effects import (
    EffectsSettings,
    chosen_rows,
)
from saelab.run.stages.effects_auto import AUTO, automatic, unfinished
from saelab.run.stages.evaluation import evaluate_basis, make_judges
from saelab.run.stages.images import record_images
from saelab.run.stages.other_views import Labeller, views_of
from saelab.run.stages.planted import measure_planted
from saelab.run.stages.planted import sentence as say_planted
from saelab.run.stages.simulation import measure_simulation

log = logging.getLogger("saelab")
SHARED = ("images", "host", "random_host", "caches", "random_caches", "encoder", "embeddings")  # by a run's controls
MATCHED = 2048  # latents up to which every run matches its seeds one to one (0.6 s two seeds; 4096 take 3 s)


class Stages(Acting):
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
        own = self.effects_compared
        if own is None:
            return self.evaluated
        found = [replace(b, effects=self.measure_effects(b, own)) if b.acts else b for b in self.evaluated]
        self.notes += unfinished(found)
        return found

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
        _ = self.effects_compared  # before the long work
        if not self.compared_layers:
            raise UserError("bases", given, "a comparison needs at least two, and no layer has the groups", remedy)
        measured = [basis for basis in self.measured if basis.of_tokens and basis.layer in self.compared_layers]
        with self.timings.of("comparison"):
            setups = {layer: self._setup(layer) for layer in self.compared_layers}
            test = self.images.ids("test")
            tested = compare.TestImages(self.judges, test, group_images(self.images)[test])
            found = compare_bases(measured, setups, self.config.compare, self.root, tested, self._views)
            own = self.effects_compared
            if own is None:
                return found
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

    def measure_planted(self, basis: Basis) -> list[dict[str, Any]]:
        """Recall and precision of every labeller on a planted basis: a row a labeller and kind of unit."""
        return measure_planted(basis, self.judges, self.images)

    def measure_simulation(self, basis: Basis, own: EffectsSettings) -> dict[str, Any]:
        """Ablation scores of every labeller on the chosen units of a basis: a summary over units."""
        self._need_host("whose outputs could change")
        with self.timings.of("effects"):
            return measure_simulation(basis, self._seen(basis), own, self.judges, self.root)

    def outcome(self, comparisons: bool = True) -> record.Outcome:
        """Everything that was made, for the run's record."""
        made = self.comparisons if comparisons else {}
        own = self.config.record()
        own["label"] = own["label"] | {"final": self.label_settings.final}  # which one `auto` stands for
        if comparisons and self.config.effects == AUTO:
            own["effects"] = None if self.effects_compared is None else automatic(self.config.compare.keep)
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
