"""How good an SAE is: what it explains, how sparse it is, and which latents are dead, rare or dense."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.arrays import as_matrix
from saelab.cache.batches import Batches
from saelab.errors import UserError
from saelab.sae.model import SAE, Codes
from saelab.sae.select import widen

RARE_TOKENS = 10  # a latent that fires on fewer tokens is rare
DENSE_RATE = 0.8  # a latent that fires on this share of the tokens or more is dense
EDGES = np.linspace(-6.0, 0.0, 25)  # of the density histogram: log10 of the share of tokens that fire a latent
CHUNK = 4096  # tokens encoded at once
OVERFIT = 1.25  # times the training rows' FVU from which on held-out rows' FVU is called an overfit


def quality(sae: SAE, data: Any) -> dict[str, Any]:
    """Quality over all of `data`: a Batches (its rows, in order), an array [tokens, d_in], or an iterable of such.

    fvu          residual sum of squares / sum of squares about the per-dimension mean; both in float64
    r2           1 - fvu
    l0           mean number of latents above 0 a token
    cosine       mean cosine of token and reconstruction, both about b_dec
    dead, rare, dense    shares of the latents: fired by no token; by fewer than 10; by 80 % of the tokens or more
    density      {"edges": log10 of firing rate, "counts": latents in between}; dead latents are in no bin
    tokens       tokens seen
    Independent of how the data is cut up, but for the float32 rounding of single reconstructions.
    """
    sums = _Sums(sae)
    for x in chunks(data):
        for part in x.split(sae.tokens_at_once):
            sums.add(part)
    return sums.result()


def compare_held_out(sae: SAE, trained: dict[str, Any], data: Batches) -> dict[str, Any]:
    """Quality over held-out rows, beside that over the training rows (`trained`).

    The keys of `quality`, and: `rows`, a fingerprint of the rows; `fvu_ratio`, held-out FVU / training FVU (None where
    either is undefined); `overfit`, a sentence where the ratio is 1.25 or more, else None.
    """
    found = quality(sae, data)
    before, now = trained["fvu"], found["fvu"]
    ratio = now / before if before and now is not None else None
    found |= {"rows": data.fingerprint(), "fvu_ratio": ratio, "overfit": None}
    if ratio is not None and ratio >= OVERFIT:
        found["overfit"] = (
            f"The SAE overfits: FVU {now:.3g} on held-out tokens, {before:.3g} on those it was trained on "
            f"({ratio:.1f} times as much)."
        )
    return found


class _Sums:
    """Sums over tokens, in float64. Second moments are taken about the first chunk's mean, and moved at the end."""

    def __init__(self, sae: SAE) -> None:
        self.sae, self.tokens = sae, 0
        self.fired = torch.zeros(sae.latents, dtype=torch.int64, device=sae.device)
        self.residual, self.cosine = 0.0, 0.0
        self.shift: Tensor | None = None

    def add(self, x: Float[Tensor, "chunk d_in"]) -> None:
        x = x.to(self.sae.device, torch.float32)
        codes = self.sae.encode(x) if self.sae.fixed_l0 else self.sae.encode_dense(x)
        _, undo = self.sae.normalize(x)
        rebuilt, exact = widen(undo(self.sae.decode(codes))), widen(x)
        if self.shift is None:
            self.shift = exact.mean(0)
            self.sum = torch.zeros_like(self.shift)
            self.square = torch.zeros_like(self.shift)
        moved = exact - self.shift
        self.sum += moved.sum(0)
        self.square += moved.square().sum(0)
        self.residual += float((exact - rebuilt).square().sum())
        centre = widen(self.sae.b_dec)
        self.cosine += float(torch.cosine_similarity(exact - centre, rebuilt - centre, dim=1).sum())
        self.fired += _count_fired(codes, self.sae.latents)
        self.tokens += len(x)

    def result(self) -> dict[str, Any]:
        if not self.tokens:
            raise UserError("data", 0, "at least one token to measure quality on")
        total = float((self.square - self.sum.square() / self.tokens).sum())
        fvu = self.residual / total if total > 0 else None
        fired = self.sae.group.gather(self.fired).cpu().numpy()
        rate = fired[fired > 0] / self.tokens
        counts, _ = np.histogram(np.log10(rate).clip(EDGES[0], EDGES[-1]), bins=EDGES)
        return {
            "fvu": fvu,
            "r2": None if fvu is None else 1 - fvu,
            "l0": int(fired.sum()) / self.tokens,
            "cosine": self.cosine / self.tokens,
            "dead": float((fired == 0).mean()),
            "rare": float(((fired > 0) & (fired < RARE_TOKENS)).mean()),
            "dense": float((fired >= DENSE_RATE * self.tokens).mean()),
            "density": {"edges": EDGES.tolist(), "counts": counts.tolist()},
            "tokens": self.tokens,
        }


def _count_fired(codes: Codes | Float[Tensor, "chunk latents"], latents: int) -> Int[Tensor, "latents"]:
    """On how many tokens each latent fires."""
    if isinstance(codes, Codes):
        return torch.bincount(codes.indices[codes.values > 0], minlength=latents)
    return (codes > 0).sum(0)


def chunks(data: Any) -> Iterable[Float[Tensor, "chunk d_in"]]:
    """Tokens piece by piece: of a Batches (its rows, in order), an array [tokens, d_in], or an iterable of such.

    Raises UserError for what is no matrix of numbers, and for a row with NaN.
    """
    if hasattr(data, "ndim"):
        data = Batches(data, CHUNK)
    if isinstance(data, Batches):
        yield from data.in_order(CHUNK)
        return
    width = None
    for i, chunk in enumerate(data):
        x = as_matrix(chunk, width)
        if not len(x):
            continue
        width = x.shape[1]
        bad = (~x.to(torch.float32).isfinite()).any(1).nonzero()
        if len(bad):
            what = f"row {int(bad[0])} holds NaN or a number beyond float32"
            raise UserError("activations", f"chunk {i}", what, "leave the row out")
        yield x
