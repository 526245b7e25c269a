"""Elastic nets of many units on the same columns: coordinate descent, and exact answers from near ones."""

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

HELD = 4096  # columns whose products with one another are kept: 128 MiB
AT_ONCE = 64  # units solved together, padded to as many columns as the fullest of them has
ROUNDS = 50  # of exchanges, after which coordinate descent takes over; some ten are usual
SLACK = 1e-8  # a slope that exceeds the penalty by less than this share of it is at it


class ElasticNet:
    """Minimises |y - x w|^2 / 2n + lam (l1_share |w|_1 + (1 - l1_share) |w|^2 / 2) for any y; float64, on the CPU.

    `l1_share` is below 1, so that there is one minimum, equal columns or not.
    """

    def __init__(self, x: Float[Tensor, "n columns"], lam: float, l1_share: float) -> None:
        self.x = torch.cat([x, x.new_zeros(len(x), 1)], dim=1)  # the last column takes part in nothing: it pads
        self.columns, self.lam, self.l1_share = x.shape[1], lam, l1_share
        self.l1, self.l2 = lam * l1_share, lam * (1 - l1_share)
        self.held = self.columns <= max(HELD, len(x))

    @cached_property
    def gram(self) -> Float[Tensor, "columns1 columns1"]:
        """x'x / n."""
        return self.x.T @ self.x / len(self.x)

    def descend(self, y: Float[Tensor, "units n"], tolerance: float = 1e-4) -> Float[Tensor, "units columns"]:
        """Near the minimum, by scikit-learn's coordinate descent."""
        from sklearn.linear_model import enet_path

        if not self.columns:
            return y.new_zeros(len(y), 0)
        x, gram = self._as_arrays
        given = {"l1_ratio": self.l1_share, "alphas": [self.lam], "precompute": gram, "check_input": False}
        out = y.new_zeros(len(y), self.columns)
        for i, own in enumerate(y.contiguous()):
            products = (own @ self.x)[:-1].numpy()
            _, path, _ = enet_path(x, own.numpy(), Xy=products, tol=tolerance, max_iter=10_000, **given)
            out[i] = torch.from_numpy(path[:, 0])
        return out

    @cached_property
    def _as_arrays(self) -> tuple[np.ndarray, np.ndarray | bool]:
        """x column by column in memory and x'x, as scikit-learn wants them; False where x'x is not held."""
        x = self.x[:, :-1].T.contiguous().numpy().T
        return x, self.gram[:-1, :-1].mul(len(x)).numpy() if self.held else False

    def solve(
        self, y: Float[Tensor, "units n"], near: Float[Tensor, "units columns"]
    ) -> Float[Tensor, "units columns"]:
        """The minimum, from coefficients whose signs are nearly its own.

        Given which coefficients are not 0, and their signs, the minimum solves a linear system. A coefficient that
        comes out with another sign becomes 0, a 0 with too steep a slope joins, until nothing changes (block pivoting,
        as Kim and Park 2011 do for non-negative least squares). Units that do not come to rest are left to coordinate
        descent.
        """
        products = y @ self.x / len(self.x)
        out = torch.zeros_like(products)
        signs = torch.cat([near.sign(), near.new_zeros(len(near), 1)], dim=1)
        left = torch.arange(len(y))
        for _ in range(ROUNDS):
            left = left[(signs[left] != 0).sum(dim=1).argsort()]
            wrong = [left[:0]]
            for some in left.split(AT_ONCE):
                out[some], new = self._exchange(products[some], signs[some])
                wrong.append(some[(new != signs[some]).any(dim=1)])
                signs[some] = new
            left = torch.cat(wrong)
            if not len(left):
                return out[:, :-1]
        out[left, :-1] = self.descend(y[left], 1e-10)
        return out[:, :-1]

    def _exchange(self, products: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
        """The solution for given signs, and the signs that it asks for."""
        active = sign != 0
        width = int(active.sum(dim=1).max())
        place = active.to(torch.int8).topk(width, dim=1).indices
        padding = ~active.gather(1, place)
        place = place.masked_fill(padding, sign.shape[1] - 1)
        system = self._products(place)
        system.diagonal(dim1=1, dim2=2).add_(self.l2 + padding.to(system.dtype))
        right = products.gather(1, place) - self.l1 * sign.gather(1, place)
        found = torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(system))[:, :, 0]
        w = torch.zeros_like(sign).scatter_(1, place, found)
        direct = self.held and w.shape[1] < 2 * len(self.x)  # the cheaper way
        slope = products - (w @ self.gram if direct else w @ self.x.T @ self.x / len(self.x))
        joins = torch.where(slope.abs() > self.l1 * (1 + SLACK), slope.sign(), 0.0)
        return w, torch.where(active, torch.where(w * sign > 0, sign, 0.0), joins)

    def _products(self, place: Int[Tensor, "units a"]) -> Float[Tensor, "units a a"]:
        """Products of some columns with one another, for each unit its own."""
        if self.held:
            return self.gram[place[:, :, None], place[:, None, :]]
        own = self.x.T[place]
        return own @ own.mT / len(self.x)
