"""A basis at work, for proposers that try its units on pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from saelab import truth
from saelab.hosts import Host
from saelab.images import ImageSet
from saelab.label.exemplars import Exemplars
from saelab.run.basis import Basis
from saelab.units import Projection, UnitActivations, pool_units

BATCH = 16
SPLIT = "show"  # photos that no unit was mined on and that judge no label in the end


@dataclass(frozen=True)
class UnitBench:
    """`saelab.label.proposal.Bench` of a basis of tokens: the run's host, its show photos, the encoder's vectors."""

    basis: Basis
    host: Host
    policy: str
    images: ImageSet
    embeddings: Float[Tensor, "images d_text"]
    rule: str  # when a label counts as true of a photo

    @property
    def recipe(self) -> dict[str, Any]:
        """What is not in the exemplars' recipe: which photos a label stands for."""
        return {"truth": self.rule, "photos": SPLIT}

    def fire(self, unit: int, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures"]:
        """The unit's pooled activation on pictures that are in no set."""
        project = Projection.load(self.basis.units.path, self.basis.sae_path)
        pool = UnitActivations.load(self.basis.units.path).info["pool"]
        found = []
        for start in range(0, len(pictures), BATCH):
            batch = self.host.load_images(pictures[start : start + BATCH])
            tokens = self.host.tokens(batch, [self.basis.layer], self.policy)[self.basis.layer].float().cpu()
            found.append(pool_units(project, tokens, pool)[:, unit])
        return torch.cat(found)

    def described(self, unit: int, label: str) -> tuple[Float[Tensor, "photos"], Float[Tensor, "photos"]]:
        """Of show photos that people described so: the unit's activation, and mean cosine with its exemplars."""
        assert self.basis.exemplars is not None
        images, mined = self.images, Exemplars.load(self.basis.exemplars.path)
        ids = images.ids(SPLIT)
        stated = truth.from_descriptions(
            [label], [images.captions[i] for i in ids], [images.classes[i] for i in ids], self.rule
        )
        if label not in stated.column:
            return torch.zeros(0), torch.zeros(0)
        photos = torch.as_tensor(ids)[stated.member[:, stated.column[label]]]
        acts = UnitActivations.load(self.basis.units.path).column(unit)[photos]
        own = mined.positives[unit][(mined.positives[unit] >= 0) & (mined.activations[unit] > 0)]
        alike = normalize(self.embeddings[photos], dim=1) @ normalize(self.embeddings[own], dim=1).T
        return acts, alike.mean(1)
