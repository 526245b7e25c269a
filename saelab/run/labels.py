"""The labels of a run: exemplars, candidates, one vocabulary for all bases, and the label of every unit."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from saelab import encoders
from saelab.errors import UserError
from saelab.label import pipeline, propose
from saelab.label.assign import SCORERS
from saelab.label.exemplars import check as check_mining
from saelab.label.exemplars import exemplars
from saelab.label.proposal import Estimate
from saelab.label.vocabulary import Vocabulary
from saelab.run.bases import Bases
from saelab.run.basis import Basis
from saelab.run.stages.proposals import estimate, load_proposer, propose_labels
from saelab.run.stages.synthesis import SynthesisRequest, chosen_pictures, synthesise_basis
from saelab.run.stages.synthesis_pictures import Viewers
from saelab.run.stages.unit_bench import UnitBench

log = logging.getLogger("saelab")


class Labels(Bases):
    """Everything that exists before labels are measured. `saelab.run.making.Stages` goes on from it."""

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
        return load_proposer(self.config.proposer, self.images, self.encoder, self.embeddings, self.root)

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
        tries = proposer.name == "describe_dissect"  # its candidates' order is what units do on pictures
        with self.timings.of("proposals"):
            for basis in mined:
                asked = self.config.proposer
                aids = (spent, self._make(basis) if basis.acts else None, self._bench(basis) if tries else None)
                if tries and not basis.of_tokens:
                    self.notes.append(f"{basis.name}: {proposer.name} was not asked, since no picture fires its units")
                    made.append(basis)
                    continue
                place, rows, text = propose_labels(
                    basis, proposer, asked, self.images, self.store(basis), self.root, *aids
                )
                spent += rows
                self.notes.append(text)
                if proposer.name != "tagger":
                    log.info("%s", text)
                made.append(replace(basis, proposals=place))
        return made

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

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """[texts, d_text] as labels are embedded: in the same templates. Nothing is kept on disk."""
        own = self.label_settings
        templates = own.templates or self.encoder.templates
        return encoders.embed_templates(self.encoder.embed_sentences, texts, templates, own.renormalize)

    @cached_property
    def labelled(self) -> list[Basis]:
        """Bases with their labels."""
        proposed, words, embeddings = self.proposed, self.vocabulary, self.embeddings
        with self.timings.of("labels"):
            return [self._label(basis, words, embeddings) for basis in proposed]

    @property
    def acting(self) -> list[Basis]:
        """Labelled bases whose units can be taken out of the host."""
        return [basis for basis in self.labelled if basis.acts]

    # ---- pictures made to raise units ----------------------------------------------------------------------------

    def synthesise_units(self, basis: Basis, own: SynthesisRequest) -> Path:
        """Pictures that raise the units of a basis, with what each is worth: the folder of synthesised.jsonl.

        Raises UserError where there is no host to look at pictures, and for settings that can't be used.
        """
        if self.weights == "arrays":
            what = "there is no host that could look at a picture"
            raise UserError("arrays", self.config.arrays.name, what, "give images and a host instead")
        if not basis.acts:
            raise UserError("bases", basis.name, "has no direction that a picture could follow", "name another")
        if self.config.tokens_per_image is not None:  # a new picture would be pooled over other tokens than the photos
            what = "made pictures keep all their tokens, the cache does not"
            raise UserError("tokens_per_image", self.config.tokens_per_image, what, "set it to null")
        host = self.host if basis.weights == self.weights else self.random_host
        space = self.encoder, self.embeddings.images, self._label_vectors
        with self.timings.of("synthesis"):
            return synthesise_basis(basis, Viewers(host, self.config.policy, self.images, *space), own, self.root)

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

    def _make(self, basis: Basis) -> Callable[[Sequence[int]], propose.MadePictures]:
        """Pictures that raise units of the basis, for proposers: those that got as far as half of the unit's photos."""

        def make(units: Sequence[int]) -> propose.MadePictures:
            folder = self.synthesise_units(basis, SynthesisRequest(units=",".join(map(str, units))))
            files: dict[int, tuple[str, ...]] = {}
            for row in chosen_pictures(folder, units):
                if row["reached"]:
                    files[row["unit"]] = (*files.get(row["unit"], ()), row["file"])
            return propose.MadePictures(folder, files)

        return make

    def _bench(self, basis: Basis) -> UnitBench | None:
        """The basis at work; None where there is no host, or its units are not read from tokens."""
        if self.weights == "arrays" or not basis.of_tokens:
            return None
        host = self.host if basis.weights == self.weights else self.random_host
        return UnitBench(basis, host, self.config.policy, self.images, self.embeddings.images, self.config.truth)

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

    def _label(self, basis: Basis, words: Vocabulary, embeddings: encoders.ImageEmbeddings) -> Basis:
        assert basis.exemplars is not None
        own = self.label_settings
        wanted = basis.of_tokens and any(SCORERS[name].needs in ("maps", "decoder") for name in own.scorers)
        tokens = self.tokens(basis) if wanted else None
        mined = pipeline.MinedBasis(basis.units, basis.exemplars, basis.proposals, tokens, self._vectors(basis))
        made = pipeline.labels(mined, self.images, pipeline.Space(self.encoder, embeddings), words, own, self.root)
        return replace(basis, labels=made)
