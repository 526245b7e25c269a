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
from saelab.errors import UserError
from saelab.label import pipeline, propose
from saelab.label.assign import SCORERS
from saelab.label.exemplars import check as check_mining
from saelab.label.exemplars import exemplars
from saelab.label.proposal import Estimate
from saelab.label.series import group_images
from saelab.label.vocabulary import Vocabulary
from saelab.label.vocabulary import build as build_vocabulary
from saelab.run import record
from saelab.run.bases import Bases
from saelab.run.basis import Basis
from saelab.run.stages.comparison import compare_bases, join_effects, pooling_of
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
from saelab.run.stages.proposals import estimate, load_proposer, propose_labels

log = logging.getLogger("saelab")

MATCHED = 2048  # latents up to which every run matches its seeds one to one (0.6 s two seeds; 4096 take 3 s)


class Stages(Bases):
    """The stages of one config. People use `saelab.Pipeline`, which is made of this; so are the commands."""

    # ---- labels ------------------------------------------------------------------------------------------------

    @cached_property
    def mined(self) -> list[Basis]:
        """Bases with their exemplars."""
        self.check()
        bases, embeddings, mining = self.bases, self.embeddings, self.config.label.mining
        with self.timings.of("mining"):
            return [
                replace(b, exemplars=exemplars(b.units, self.images, embeddings, self.root, mining, self._vectors(b)))
                for b in bases
            ]

    @cached_property
    def proposer(self) -> propose.Proposer | None:
        """Who proposes, if anybody does."""
        return load_proposer(self.config.proposer, self.images, self.embeddings, self.root)

    def estimates(self) -> list[tuple[Basis, int, Estimate]]:
        """Per basis: how many units would be asked about and what it takes. Nothing is sent."""
        if self.proposer is None:
            return []
        return [(b, *estimate(b, self.proposer, self.config.proposer, self.images)) for b in self.mined]

    @cached_property
    def proposed(self) -> list[Basis]:
        """Bases with the candidates that the proposer named, if there is one."""
        mined, proposer = self.mined, self.proposer
        if proposer is None:
            return mined
        if self.config.proposer.dry_run:
            raise UserError("proposer.dry_run", True, "asks nothing, so nothing follows from it", "set it to false")
        made, spent = [], list[propose.Proposal]()
        with self.timings.of("proposals"):
            for basis in mined:
                asked = self.config.proposer
                place, rows, text = propose_labels(
                    basis, proposer, asked, self.images, self.store(basis), self.root, spent
                )
                spent += rows
                self.notes.append(text)
                if proposer.name != "tagger":
                    log.info("%s", text)
                made.append(replace(basis, proposals=place))
        return made

    @cached_property
    def named(self) -> Vocabulary:
        """The labels of the vocabulary's sources, before anything is proposed."""
        own = self.config.label
        return self.given.vocabulary or build_vocabulary(own.vocabulary, self.images, own.keep_underscores)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """One vocabulary for all bases: the sources' labels, and every candidate of every basis."""
        pooled = self.named
        for basis in self.proposed:
            rows = propose.read(basis.proposals) if basis.proposals is not None else []
            if rows:
                labels = (label for row in rows for label in row.labels)
                pooled = pooled.plus(labels, rows[0].proposer, self.config.label.keep_underscores)
        return pooled

    @cached_property
    def label_settings(self) -> pipeline.LabelSettings:
        """How labels are assigned."""
        return self.config.label_settings(len(self.images.ids("mine")))

    @cached_property
    def labelled(self) -> list[Basis]:
        """Bases with their labels."""
        proposed, words, embeddings = self.proposed, self.vocabulary, self.embeddings
        with self.timings.of("labels"):
            return [self._label(basis, words, embeddings) for basis in proposed]

    # ---- how good they are -------------------------------------------------------------------------------------

    @cached_property
    def judges(self) -> evaluate.Judges:
        """What labels are measured against."""
        labels, own = self.vocabulary.labels, self.label_settings
        return make_judges(
            labels, self.images, self.embeddings.images, self.encoder, own, self.config.truth, self.root, self.device
        )

    @cached_property
    def evaluated(self) -> list[Basis]:
        """Bases with the numbers of their labels on the test split."""
        evaluate.Splits(self.images.ids("mine"), self.images.ids("test")).checked()  # before the long work
        labelled = self.labelled
        if not any(self.images.captions):
            self.notes.append("The pictures have no captions, so caption_r and caption_clarity are missing.")
        with self.timings.of("evaluation"):
            return [replace(basis, evaluation=self._evaluate(basis)) for basis in labelled]

    @cached_property
    def measured(self) -> list[Basis]:
        """Bases with what their units do, where the run asks for it."""
        if self.config.effects is None:
            return self.evaluated
        own = read_effects(self.config.effects)
        if own.labels_of != self.config.compare.scorer:
            what = f"the comparison is of the labels of {self.config.compare.scorer}"
            raise UserError("effects.labels_of", own.labels_of, what, f"use {self.config.compare.scorer} for both")
        return [replace(basis, effects=self.measure_effects(basis, own)) for basis in self.evaluated]

    @cached_property
    def comparisons(self) -> dict[str, Artifact]:
        """One comparison for each layer, corrected together."""
        if self.count_per_layer() < 2:  # known before the long work
            remedy = "for example bases=[neuron,sae]"
            raise UserError("bases", list(self.config.bases), "a comparison needs at least two", remedy)
        measured = self.measured
        with self.timings.of("comparison"):
            setups = {layer: self._setup(layer) for layer in self.caches}
            test = self.images.ids("test")
            tested = compare.TestImages(self.judges, test, group_images(self.images)[test])
            found = compare_bases(measured, setups, self.config.compare, self.root, tested, self._views)
            if self.config.effects is None:
                return found
            own = read_effects(self.config.effects)
            rows = {(b.layer, b.name): chosen_rows(b, own) for b in measured}
            how = own.facts
            return join_effects(measured, found, setups, self.config.compare, self.root, tested, rows, how)

    def _views(self, bases: Sequence[Basis], sides: Mapping[str, compare.Basis]) -> compare.Views:
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
        if self.weights == "arrays":
            what = "there is no host whose outputs could change"
            raise UserError("arrays", self.config.arrays.name, what, "give images and a host instead")
        with self.timings.of("effects"):
            return measure_basis(basis, self._seen(basis), own, self.root)

    def measure_groups(self, basis: Basis, own: EffectsSettings) -> dict[str, Any]:
        """What all units of one label do together, beside the sum of what each does: a summary over labels."""
        folder = self.measure_effects(basis, own)
        with self.timings.of("effects"):
            return measure_label_groups(basis, self._seen(basis), own, folder)

    def explain_picture(self, picture: str | Path, own: ExplainSettings, bases: Sequence[Basis] | None = None) -> Path:
        """Why the host says what it says of a picture: the folder of a page and explanation.json.

        Raises UserError where there is no host to ask, for a file that is no picture, and for settings that can't be.
        """
        if self.weights == "arrays":
            what = "there is no host that could look at a picture"
            raise UserError("arrays", self.config.arrays.name, what, "give images and a host instead")
        open_picture(Path(picture).expanduser())  # before the long work
        own_bases = [b for b in (self.labelled if bases is None else bases) if b.weights == self.weights]
        if not own_bases:
            raise UserError("bases", [b.name for b in bases or ()], "are all of the random host", "name another basis")
        how = EffectsSettings(head=own.head)
        seeing = Seeing(self.host, self.config.policy, lambda b: make_head(self._seen(b), how), self.images.square)
        return explain_picture(picture, own_bases, seeing, own, self.root)

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

    # ---- what can be known to be wrong before the long work ----------------------------------------------------

    def check(self) -> None:
        """Raise UserError for what no run could use: layers, SAEs, scorers, vocabulary, mining, variants."""
        if "sae" in self.config.bases:
            self.check_saes()
        self.check_layers()
        if self.config.proposer.name == "tagger" and self._tagless:
            remedy = "use encoder=conse, or proposer=none, openai or transformers"
            raise UserError("proposer", "tagger", "reads the class probabilities that only ConSE gives", remedy)
        pipeline.check(self.label_settings)
        _ = self.named
        check_mining(self.images, self.config.label.mining)

    # ---- parts -------------------------------------------------------------------------------------------------

    @property
    def _tagless(self) -> bool:
        """Does the encoder give no class probabilities, which the tagger reads?"""
        kind = self.config.encoder.name.partition(":")[0]
        return self.given.encoder is not None or kind in ("open_clip", "transformers")

    def _vectors(self, basis: Basis) -> torch.Tensor | None:
        """The layer's mean tokens, in which the mining rule `host` looks for contrasts."""
        wanted = self.config.label.mining.rule == "host"
        return torch.from_numpy(self.store(basis).pooled("mean")) if wanted else None

    def _label_vectors(self) -> tuple[tuple[str, ...], torch.Tensor]:
        """The vocabulary in the encoder's space."""
        own, labels = self.label_settings, self.vocabulary.labels
        vectors = encoders.label_embeddings(labels, self.encoder, self.root, own.templates, own.renormalize)
        return labels, vectors

    def _seen(self, basis: Basis) -> Seen:
        """A basis' host with what it saw."""
        host = self.host if basis.weights == self.weights else self.random_host
        return Seen(host, self.store(basis), self.images, self._label_vectors, self._sentence_vectors)

    def _sentence_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Sentences as a text encoder reads them, kept by recipe: a host's outputs are called the same each time."""
        return encoders.label_embeddings(list(texts), encoders.SentenceEncoder(device=self.device), self.root)

    def _label(self, basis: Basis, words: Vocabulary, embeddings: encoders.ImageEmbeddings) -> Basis:
        assert basis.exemplars is not None
        own = self.label_settings
        tokens = self.tokens(basis) if any(SCORERS[name].needs in ("maps", "decoder") for name in own.scorers) else None
        mined = pipeline.MinedBasis(basis.units, basis.exemplars, basis.proposals, tokens, self._vectors(basis))
        made = pipeline.labels(mined, self.images, pipeline.Space(self.encoder, embeddings), words, own, self.root)
        return replace(basis, labels=made)

    def _evaluate(self, basis: Basis) -> Artifact:
        own = self.config
        return evaluate_basis(
            basis,
            self.judges,
            self.encoder,
            self.images,
            self.tokens(basis),
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
            pooling=pooling_of(next(b for b in self.bases if b.layer == layer)),
            signed=own.signed,
            k=own.label.mining.k,
            encoder=self.encoder.name,
            judge=self.encoder.name,
            labels=digest(list(self.vocabulary.labels))[:16],
        )
