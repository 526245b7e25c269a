"""A set of units on its way through the stages, and the kinds of bases that a run can have."""

from dataclasses import dataclass
from pathlib import Path

from saelab.artifacts import Artifact


@dataclass(frozen=True)
class Kind:
    """What is known about the bases of one kind."""

    group: str  # what they are called together, in sentences
    control: bool = False  # are they there only to be beaten?
    seeds: str | None = None  # the setting that lists their seeds; None: one basis
    of: str | None = None  # of groups (FALCON, ICML 2023): the kind whose units they are made of
    frozen: str | None = None  # of SAEs that learn less than they could: what keeps its random start
    of_tokens: bool = True  # are its units read from tokens? Else no map, no effect, no comparison with those that are


KINDS = {
    "neuron": Kind("neurons"),
    "sae": Kind("SAE features", seeds="seeds"),
    "heads": Kind("attention heads"),
    "neuron_groups": Kind("groups of neurons", of="neuron"),
    "sae_groups": Kind("groups of SAE features", of="sae"),
    "pca": Kind("principal components", control=True),
    "random_rotation": Kind("random directions", control=True, seeds="rotation_seeds"),
    # SAEs that learned nothing, or only their encoder (Sanity checks for SAEs, arXiv 2602.14111), of the first seed.
    "untrained": Kind("untrained SAE features", control=True, frozen="all"),
    "frozen_decoder": Kind("SAE features, frozen decoder", control=True, frozen="decoder"),
    "soft_frozen": Kind("SAE features, soft-frozen decoder", control=True, frozen="soft_decoder"),
    "planted": Kind("planted units", control=True, of_tokens=False),
}
RANDOM_GROUP = "SAE on a random host"


@dataclass(frozen=True)
class Basis:
    """One set of units with the artifacts made of it so far."""

    name: str  # as shown: neuron, sae seed 1, ...
    group: str  # bases that differ only by their seed share it
    kind: str  # a key of KINDS
    seed: int | None  # None where nothing was drawn
    layer: str  # dotted name in the host
    units: Artifact
    weights: str  # digest of the host's weights
    control: bool = False  # is it there only to be beaten?
    sae: Artifact | None = None
    exemplars: Artifact | None = None
    proposals: Path | None = None
    labels: Artifact | None = None
    evaluation: Artifact | None = None
    quality: Artifact | None = None  # of its SAE
    effects: Path | None = None  # the folder of effects.jsonl, which grows

    @property
    def sae_path(self) -> Path | None:
        """The folder of its SAE, if it has one."""
        return None if self.sae is None else self.sae.path

    @property
    def of_tokens(self) -> bool:
        """Are its units read from the layer's tokens?"""
        return KINDS[self.kind].of_tokens

    @property
    def acts(self) -> bool:
        """Can its units be taken out of the host: does the host compute them, and do they write of their own?"""
        return self.of_tokens and not KINDS[self.kind].of

    @property
    def artifacts(self) -> list[Artifact]:
        """Its artifacts so far."""
        found = (self.units, self.sae, self.exemplars, self.labels, self.evaluation, self.quality)
        return [artifact for artifact in found if artifact is not None]
