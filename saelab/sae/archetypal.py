"""Archetypal decoders: each row points at a convex combination of data points, give or take a short shift.

    row_i = point_i / |point_i|,  point_i = mix_i candidates + shift_i,  mix_i >= 0, sum(mix_i) = 1, |shift_i| <= delta

After Fel et al., "Archetypal SAE" (2025), section 4 (RA-SAE), with centred data points rather than k-means centres as
candidates.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae.config import SAEConfig
from saelab.sae.distributed import draw_rows

OWN_SHARE = 0.9  # of a row's first mix that lies on one candidate; the rest is spread over all


class Hull:
    """The candidates and where each row stands among them."""

    def __init__(self, candidates: Tensor, mix: Tensor, shift: Tensor, delta: Tensor) -> None:
        self.candidates, self.mix, self.shift, self.delta = candidates, mix, shift, delta

    @classmethod
    def start(
        cls,
        config: SAEConfig,
        centred: Float[Tensor, "batch d_in"],
        spread: Tensor,
        generator: torch.Generator,
        rows: slice,
    ) -> "Hull":
        """Candidates drawn from centred activations, and each of the decoder's `rows` near one of them."""
        chosen = torch.randperm(len(centred), generator=generator)[: config.candidates].to(centred.device)
        candidates = centred[chosen].clone()
        n = len(candidates)
        own = torch.arange(rows.start, rows.stop, device=centred.device) % n
        share = draw_rows(torch.rand, config.latents, n, rows, generator).to(centred.device)
        mix = share.div_(share.sum(1, keepdim=True)).mul_(1 - OWN_SHARE)
        mix[torch.arange(len(own), device=centred.device), own] += OWN_SHARE
        shift = torch.zeros(len(own), config.d_in, device=centred.device)
        return cls(candidates, mix, shift, config.delta * spread)

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.mix, self.shift]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        return {"candidates": self.candidates, "mix": self.mix, "shift": self.shift}

    def points(self) -> Float[Tensor, "latents d_in"]:
        """Where the rows point, from the data's mean: within delta of the candidates' hull."""
        return torch.addmm(self.shift, self.mix, self.candidates)

    def rows(self) -> Float[Tensor, "latents d_in"]:
        """The decoder's unit rows."""
        return torch.nn.functional.normalize(self.points(), dim=1)

    def backward(self, gradient: Float[Tensor, "latents d_in"]) -> None:
        """From the gradient of the unit rows (without its radial part) to those of mix and shift."""
        lengths = torch.linalg.vector_norm(self.points(), dim=1, keepdim=True).clamp(min=1e-12)
        self.shift.grad = gradient / lengths
        self.mix.grad = self.shift.grad @ self.candidates.T

    def project(self) -> None:
        """Back to the constraints: mixes onto the simplex (by clipping and rescaling), shifts into the ball."""
        self.mix.clamp_(min=0)
        self.mix.div_(self.mix.sum(1, keepdim=True).clamp(min=1e-12))
        lengths = torch.linalg.vector_norm(self.shift, dim=1, keepdim=True)
        self.shift.mul_((self.delta / lengths.clamp(min=1e-30)).clamp(max=1.0))
