"""The offline proposer: ImageNet classes that a classifier sees in a unit's positives but not in their contrasts.

A classifier of a thousand fixed classes is no vision-language model: it can only name what it was trained on, and it
is called `tagger` wherever its candidates appear.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import UserError
from saelab.label.proposal import Case, Estimate, Proposal, check_synthesised


class Tagger:
    """Proposes up to `candidates` classes that are more present in a unit's positives than in its reference images.

    An image's presence vector is its class probabilities with all but the `top` largest set to 0. A class's score is
    its mean presence over the positives minus its mean presence over the reference: the paired contrasts in the modes
    `contrast` and `shuffled_contrast`, and all images (the base rate) in the mode `positives` and for a unit without
    contrasts. Classes are proposed in the order of their score if the score is positive and at least `support`
    positives show them; where no class is, the proposal's status is "none".

    probabilities: [images, classes], rows sum to 1 (logits: softmax them first), row number = image id.
    names: one name a class; of comma-separated synonyms the first is proposed.
    base: ids of the images that give the base rate (default: all; give the `mine` split to keep held-out images out).
    synthesised: `beside` counts pictures made to raise the unit among its positives, `alone` looks at nothing else;
    `look(file)` gives the class probabilities of one.
    """

    name = "tagger"
    instant = True  # it asks nobody

    def __init__(
        self,
        probabilities: Float[Tensor, "images classes"],
        names: Sequence[str],
        base: Sequence[int] | Tensor | None = None,
        candidates: int = 3,
        top: int = 5,
        support: int = 2,
        shown: int | None = None,
        synthesised: str = "none",
        look: Callable[[Path], Float[Tensor, "classes"]] | None = None,
    ) -> None:
        """Nine parameters: what is known of images and classes, and settings with defaults."""
        if probabilities.ndim != 2 or probabilities.shape[1] != len(names):
            raise UserError("tagger.names", len(names), f"must name the {probabilities.shape[-1]} classes")
        if not torch.isfinite(probabilities).all() or (probabilities.sum(1) - 1).abs().max() > 1e-2:
            raise UserError("tagger.probabilities", "rows", "must be probabilities that sum to 1", "softmax the logits")
        self.names = [name.split(",")[0].strip() for name in names]
        self.candidates, self.support, self.shown = candidates, support, shown
        probabilities = probabilities.detach().cpu().float()
        self.synthesised, self.look, self.top = check_synthesised(synthesised), look, min(top, len(names))
        self.presence = _presence(probabilities, self.top)
        self.base_rate = (self.presence if base is None else self.presence[torch.as_tensor(base)]).mean(0)
        self.recipe = {
            "name": self.name,
            "probabilities": hashlib.sha256(self.presence.numpy().tobytes()).hexdigest(),
            "base_rate": hashlib.sha256(self.base_rate.numpy().tobytes()).hexdigest(),
            "names": hashlib.sha256("\n".join(self.names).encode()).hexdigest(),
            "candidates": candidates,
            "top": top,
            "support": support,
            "shown": shown,
        }
        if synthesised != "none":
            self.recipe["synthesised"] = synthesised

    def propose(self, cases: Iterable[Case], folder: Path) -> Iterator[Proposal]:
        """A proposal for each case, at once and in their order; nothing is written to `folder`."""
        for case in cases:
            classes = self.classes(case)
            labels = tuple(dict.fromkeys(self.names[c] for c in classes))
            status = "answered" if labels else "none"
            yield Proposal(case.unit, labels, status, self.name, case.mode, case.positives, case.contrasts)

    def estimate(self, case: Case) -> Estimate:
        """Nothing: no request, no token, no money."""
        return Estimate()

    def classes(self, case: Case) -> list[int]:
        """The proposed classes of a case, best first; ties to the lower class number."""
        positives = self._positives(case)
        if not len(positives):
            return []
        reference = [image for image in case.contrasts if image >= 0]
        score = positives.mean(0) - (self.presence[reference].mean(0) if reference else self.base_rate)
        score[(positives > 0).sum(0) < min(self.support, len(positives))] = 0
        order = torch.argsort(score, descending=True, stable=True)[: self.candidates]
        return [c for c in order.tolist() if score[c] > 0]

    def _positives(self, case: Case) -> Float[Tensor, "pictures classes"]:
        photos = self.presence[list(case.positives)]
        if self.synthesised == "none" or self.look is None:
            return photos
        made = [_presence(self.look(path).float().cpu()[None], self.top) for path in case.made]
        return torch.cat([*([] if self.synthesised == "alone" else [photos]), photos[:0], *made])


def _presence(probabilities: Float[Tensor, "images classes"], top: int) -> Float[Tensor, "images classes"]:
    """All but the `top` largest set to 0."""
    largest = probabilities.topk(top, dim=1)
    return torch.zeros_like(probabilities).scatter_(1, largest.indices, largest.values)
