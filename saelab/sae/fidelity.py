"""What the numbers of quality.py can't tell: does the host still work, do latents know classes, do seeds agree."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from saelab.errors import UserError
from saelab.sae.model import SAE


class Splices(Protocol):
    """What is needed of a host (saelab.hosts.Host has it)."""

    def logits_with(self, batch: Tensor, layer: str, replace: Any, policy: str = "all") -> Tensor:
        """Logits with the layer's tokens [images, tokens, d_in] replaced."""
        ...


@torch.no_grad()
def loss_recovered(
    host: Splices,
    sae: SAE,
    layer: str,
    batches: Iterable[tuple[Float[Tensor, "images 3 height width"], Int[Tensor, "images"] | None]],
    policy: str = "all",
) -> dict[str, float | None]:
    """The host's answers with the layer as it is, with the SAE's reconstruction, and with b_dec in its place.

    `batches` of pictures, already transformed, with their classes or None: then the host's own first choice is the
    truth. Returns means over images: cross-entropies `ce`, `ce_sae`, `ce_mean` (nats); `ce_recovered` =
    (ce_mean - ce_sae) / (ce_mean - ce), null where the two are equal; `kl` of the reconstruction's distribution from
    the host's own (nats); `top1` and `top1_sae` (share right); `agreement` (share with the same first choice).
    """
    sums, images = dict.fromkeys(("ce", "ce_sae", "ce_mean", "kl", "top1", "top1_sae", "agreement"), 0.0), 0

    def rebuilt(tokens: Tensor) -> Tensor:
        return sae(tokens.flatten(0, 1)).view_as(tokens).to(tokens)

    def mean(tokens: Tensor) -> Tensor:
        return sae.b_dec.to(tokens).expand_as(tokens)

    for pictures, classes in batches:
        own = host.logits_with(pictures, layer, lambda tokens: tokens, policy).cpu().double()
        with_sae = host.logits_with(pictures, layer, rebuilt, policy).cpu().double()
        with_mean = host.logits_with(pictures, layer, mean, policy).cpu().double()
        truth = own.argmax(1) if classes is None else classes.cpu()
        for name, logits in (("ce", own), ("ce_sae", with_sae), ("ce_mean", with_mean)):
            sums[name] += float(cross_entropy(logits, truth, reduction="sum"))
        sums["kl"] += float(kl_div(with_sae.log_softmax(1), own.log_softmax(1), reduction="sum", log_target=True))
        sums["top1"] += int((own.argmax(1) == truth).sum())
        sums["top1_sae"] += int((with_sae.argmax(1) == truth).sum())
        sums["agreement"] += int((own.argmax(1) == with_sae.argmax(1)).sum())
        images += len(pictures)
    if not images:
        raise UserError("images", 0, "at least one batch of pictures")
    found: dict[str, float | None] = {name: total / images for name, total in sums.items()}
    gap = sums["ce_mean"] - sums["ce"]
    found["ce_recovered"] = (sums["ce_mean"] - sums["ce_sae"]) / gap if gap else None
    return found


def probe_accuracy(
    acts: Float[np.ndarray, "images latents"], labels: Bool[np.ndarray, "images classes"]
) -> tuple[Float[np.ndarray, "classes"], Int[np.ndarray, "classes"]]:
    """For each class, the best balanced accuracy of any single latent thresholded anywhere, and which latent.

    Thresholds lie between the values that occur; a class of all images or of none gives NaN and -1. Optimistic by the
    choice among many latents: measure the chosen ones on other images, or beside shuffled labels.
    """
    order = np.argsort(-acts, axis=0, kind="stable")
    ranked = np.take_along_axis(acts, order, axis=0)
    ends = np.vstack([ranked[1:] < ranked[:-1], np.ones((1, acts.shape[1]), bool)])  # the threshold can lie below it
    best = np.full(labels.shape[1], np.nan)
    which = np.full(labels.shape[1], -1)
    for i, truth in enumerate(labels.T):
        positive, negative = int(truth.sum()), int((~truth).sum())
        if not positive or not negative:
            continue
        hits = np.cumsum(truth[order], axis=0)
        seen = np.arange(1, len(truth) + 1)[:, None]
        balanced = np.where(ends, (hits / positive + 1 - (seen - hits) / negative) / 2, 0)
        by_latent = balanced.max(0)
        which[i] = int(by_latent.argmax())
        best[i] = by_latent[which[i]]
    return best, which


def seed_stability(first: SAE, second: SAE) -> dict[str, float]:
    """How far two SAEs have the same decoder rows: one-to-one matches of the largest total cosine (Hungarian).

    Returns the mean cosine of the matched rows and the share of them at 0.7 or more (Paulo & Belrose 2025 take 0.7).
    Of two widths, the smaller's rows are matched.
    """
    if first.d_in != second.d_in:
        raise UserError("sae", second.d_in, f"two SAEs of the same layer (d_in {first.d_in})")
    cosines = (normalize(first.W_dec, dim=1) @ normalize(second.W_dec, dim=1).T.to(first.device)).cpu().numpy()
    matched = cosines[linear_sum_assignment(cosines, maximize=True)]
    return {"mean_cosine": float(matched.mean()), "shared": float((matched >= 0.7).mean())}
