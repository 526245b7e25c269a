"""Beyond reconstruction: does the host still work, do latents know classes, do seeds agree; `measure` runs them all."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from saelab.cache.batches import Batches
from saelab.errors import UserError
from saelab.sae.model import SAE
from saelab.sae.quality import chunks, compare_held_out, quality
from saelab.sae.select import widen

AGREE = 0.7  # cosine from which on two decoder rows count as the same feature


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


def probe_held_out(
    acts: Float[np.ndarray, "images latents"],
    labels: Bool[np.ndarray, "images classes"],
    test_acts: Float[np.ndarray, "test latents"],
    test_labels: Bool[np.ndarray, "test classes"],
    seed: int = 0,
) -> dict[str, float | int]:
    """Balanced accuracy on test images of the latent and threshold that are best for each class on the others.

    Returns `accuracy`, its mean over classes; `null`, the same where the labels of the choosing images are shuffled
    (near .5: choice among many latents buys nothing on unseen images); `classes`, how many have images and
    counter-images in both sets. Raises UserError where none has.
    """
    usable = labels.any(0) & ~labels.all(0) & test_labels.any(0) & ~test_labels.all(0)
    if not usable.any():
        raise UserError("labels", 0, "a class with images in both sets that doesn't hold all of them")
    order = np.random.default_rng(seed).permutation(len(labels))
    found = [
        _judge_best(acts, known[:, usable], test_acts, test_labels[:, usable]) for known in (labels, labels[order])
    ]
    return {"accuracy": found[0], "null": found[1], "classes": int(usable.sum())}


def _judge_best(acts: np.ndarray, labels: np.ndarray, test_acts: np.ndarray, test_labels: np.ndarray) -> float:
    _, which = probe_accuracy(acts, labels)
    found = []
    for truth, test_truth, latent in zip(labels.T, test_labels.T, which, strict=True):
        fires = test_acts[:, latent] >= _best_threshold(acts[:, latent], truth)
        found.append((fires[test_truth].mean() + (~fires[~test_truth]).mean()) / 2)
    return float(np.mean(found))


def _best_threshold(values: np.ndarray, truth: np.ndarray) -> float:
    """The value that, as the least that counts as firing, gives the highest balanced accuracy."""
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], np.cumsum(truth[order])
    misses = np.arange(1, len(truth) + 1) - hits
    balanced = hits / truth.sum() - misses / (~truth).sum()
    balanced[:-1][ranked[1:] == ranked[:-1]] = -np.inf  # equal values fire together
    return float(ranked[int(balanced.argmax())])


def seed_stability(
    first: SAE, second: SAE, covariance: Float[Tensor, "d_in d_in"] | None = None, seed: int = 0
) -> dict[str, float]:
    """How far two SAEs have the same decoder rows: one-to-one matches of the largest total cosine (Hungarian).

    Returns the mean cosine of the matched rows, `mean_cosine`, and the share of them at 0.7 or more, `shared` (Paulo &
    Belrose 2025 take 0.7). Of two widths, the smaller's rows are matched. With the data's `covariance` (see
    `covariance_of`), also `null_mean_cosine` and `null_shared`: what two dictionaries of the same sizes get whose rows
    are drawn at random from a normal distribution of that covariance; and `above_null` = shared - null_shared.
    """
    if first.d_in != second.d_in:
        raise UserError("sae", second.d_in, f"two SAEs of the same layer (d_in {first.d_in})")
    mean, shared = _match(first.W_dec.cpu(), second.W_dec.cpu())
    found = {"mean_cosine": mean, "shared": shared}
    if covariance is not None:
        generator = torch.Generator().manual_seed(seed)
        root = _root(covariance.cpu().double())
        drawn = (torch.randn(n, first.d_in, generator=generator).double() for n in (first.latents, second.latents))
        null_mean, null_shared = _match(*((rows @ root).float() for rows in drawn))
        found |= {"null_mean_cosine": null_mean, "null_shared": null_shared, "above_null": shared - null_shared}
    return found


def covariance_of(data: Any) -> Float[Tensor, "d_in d_in"]:
    """Covariance of tokens, float64: a Batches (its rows), an array [tokens, d_in], or an iterable of such."""
    count, total, outer, shift = 0, None, None, None
    for x in chunks(data):
        exact = widen(x).cpu()
        shift = exact.mean(0) if shift is None else shift  # about which sums lose nothing to a large mean
        moved = exact - shift
        total = moved.sum(0) if total is None else total + moved.sum(0)
        outer = moved.T @ moved if outer is None else outer + moved.T @ moved
        count += len(x)
    if total is None or outer is None:
        raise UserError("data", 0, "at least one token to take the covariance of")
    mean = total / count
    return outer / count - torch.outer(mean, mean)


def _match(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Mean cosine of one-to-one matched rows, and the share of them that agree."""
    from scipy.optimize import linear_sum_assignment

    cosines = (normalize(first, dim=1) @ normalize(second, dim=1).T).numpy()
    matched = cosines[linear_sum_assignment(cosines, maximize=True)]
    return float(matched.mean()), float((matched >= AGREE).mean())


def _root(covariance: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """The symmetric square root: rows of unit variance times it have this covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@dataclass(frozen=True)
class Probes:
    """Unit activations and classes, of images to choose latents on and of test images."""

    acts: Float[np.ndarray, "images latents"]
    labels: Bool[np.ndarray, "images classes"]
    test_acts: Float[np.ndarray, "test latents"]
    test_labels: Bool[np.ndarray, "test classes"]


@dataclass(frozen=True)
class Measures:
    """All that is measured of one SAE; a part that was not asked for is None. Plain values, ready for JSON."""

    mine: dict[str, Any]  # quality on the tokens it was trained on
    held_out: dict[str, Any]  # quality on tokens it never saw; `overfit` says in words where the two differ
    loss_recovered: dict[str, float | None] | None  # see `loss_recovered`
    probes: dict[str, float | int] | None  # see `probe_held_out`
    stability: list[dict[str, float]] | None  # see `seed_stability`, one for each other seed


def measure(
    sae: SAE,
    mine: Batches,
    test: Batches,
    *,
    splice: Callable[[SAE], dict[str, float | None]] | None = None,
    probes: Probes | None = None,
    others: Sequence[SAE] = (),
    seed: int = 0,
) -> Measures:
    """Everything that can be measured of an SAE, with what chance would give beside it.

    mine, test   the layer's tokens: those it was trained on, and held-out ones
    splice       the SAE's `loss_recovered` in its host, for example
                 `lambda sae: loss_recovered(host, sae, layer, batches, policy)`
    probes       activations and classes of images, for `probe_held_out`
    others       SAEs of the same recipe and other seeds, for `seed_stability`; its null has `mine`'s covariance

    Raises UserError where tokens have another width than the SAE.
    """
    trained = quality(sae, mine)
    covariance = covariance_of(mine) if others else None
    return Measures(
        mine=trained,
        held_out=compare_held_out(sae, trained, test),
        loss_recovered=None if splice is None else splice(sae),
        probes=None if probes is None else probe_held_out(**vars(probes), seed=seed),
        stability=[seed_stability(sae, other, covariance, seed) for other in others] or None,
    )
