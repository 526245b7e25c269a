"""CoSy (NeurIPS 2024): does the unit prefer images of its label to control images?"""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.acts import Acts, columns, dense, shape
from saelab.errors import UserError


def auroc(generated: Acts, control: Acts, ties: str = "half") -> Float[Tensor, "units"]:
    """P(generated > control), equal activations counted as a half (`ties="half"`) or as nothing (`"strict"`).

    Source: Kopf et al., CoSy; their code is strict. On a unit that is 99 % zeros an unrelated label gets 0.50 by
    halves and 0.02 strictly, so show `tie_share` beside either. NaN for units that are not finite.
    """
    if ties not in ("half", "strict"):
        raise UserError("ties", ties, "expected half or strict")
    above, equal, pairs = _compare(generated, control)
    return ((above + equal / 2 if ties == "half" else above) / pairs).float()


def tie_share(generated: Acts, control: Acts) -> Float[Tensor, "units"]:
    """Share of (generated, control) pairs with equal activations; 0 to 1."""
    _, equal, pairs = _compare(generated, control)
    return (equal / pairs).float()


def mann_whitney(generated: Acts, control: Acts) -> tuple[Float[Tensor, "units"], Float[Tensor, "units"]]:
    """Mann-Whitney U of the generated images (ties as halves) and its two-sided p-value (scipy, asymptotic)."""
    from scipy.stats import mannwhitneyu

    a, b = dense(generated).double().cpu().numpy(), dense(control).double().cpu().numpy()
    _same_units(generated, control)
    result = mannwhitneyu(a, b, axis=0, method="asymptotic", nan_policy="propagate")
    device = dense(generated).device
    return torch.from_numpy(result.statistic).to(device), torch.from_numpy(result.pvalue).to(device)


def mad(generated: Acts, control: Acts) -> Float[Tensor, "units"]:
    """Mean activation difference (CoSy): (mean generated - mean control) / sd of control (n - 1); 0 where sd = 0.

    An sd within rounding of equal activations (1e-12 of the largest) is 0.
    """
    _same_units(generated, control)
    a, b = dense(generated).double(), dense(control).double()
    spread = b.std(dim=0)
    flat = spread <= 1e-12 * b.abs().amax(dim=0)
    return torch.where(flat, 0.0, (a.mean(dim=0) - b.mean(dim=0)) / spread).float()


def dma(generated: Acts, positive_max: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    """Mean generated activation as a share of the unit's largest among its positives; NaN where that is not above 0.

    Source: CSP (arXiv 2604.22477), section on evaluation.
    """
    mean = dense(generated).double().mean(dim=0)
    if positive_max.shape != mean.shape:
        raise UserError("positive_max", tuple(positive_max.shape), f"expected one for each unit, {tuple(mean.shape)}")
    return (mean / positive_max).masked_fill(~(positive_max > 0), torch.nan).float()


def _compare(generated: Acts, control: Acts) -> tuple[Tensor, Tensor, int]:
    """How many (generated, control) pairs have generated above, and equal; by sorting the controls."""
    _same_units(generated, control)
    a, b = dense(generated).T.contiguous(), dense(control).T.contiguous().sort(dim=1).values
    below = torch.searchsorted(b, a, right=False).sum(dim=1).double()
    up_to = torch.searchsorted(b, a, right=True).sum(dim=1).double()
    bad = ~(a.isfinite().all(dim=1) & b.isfinite().all(dim=1))
    return below.masked_fill(bad, torch.nan), (up_to - below).masked_fill(bad, torch.nan), a.shape[1] * b.shape[1]


def _same_units(generated: Acts, control: Acts) -> None:
    a, b = shape(columns(generated)), shape(columns(control))
    if a[1] != b[1] or not a[0] or not b[0]:
        raise UserError("generated", a, f"expected at least one image and as many units as control, which is {b}")
