"""Bases: what turns a token [d_in] into unit activations [units]. Everything a basis learns comes from `mine`.

By default a unit is its positive side: relu of the token's coordinate. `signed="split"` makes two units of each
direction, first all positive, then all negative sides. SAE latents are positive already.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.artifacts import open_artifact, read_json
from saelab.cache import ActivationCache
from saelab.errors import UserError
from saelab.sae import SAE
from saelab.units.grouping import Grouping

SIGNED = ("positive", "split")
FILE = "directions.safetensors"


@dataclass(frozen=True)
class Projection:
    """Tokens to unit activations before pooling. Neither directions nor SAE: the layer's own coordinates."""

    signed: str = "positive"  # positive | split
    directions: Float[Tensor, "d_in units"] | None = None  # of a linear basis
    shift: Float[Tensor, "units"] | None = None  # subtracted: where the centre lies along each direction
    sae: SAE | None = None
    gated: bool = True  # False: an SAE's latents before its rule, their positive side
    groups: Grouping | None = None  # of the units that all this gives: then a unit is a group of them

    def __call__(self, tokens: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens units"]:
        """Activations, float32, >= 0, on the CPU. `tokens` is left as it is.

        A group's is the mean of its members', in standard deviations above their means: a map of the group. What the
        group does in a picture, `pool_units` says: it is not this, pooled.
        """
        return self.groups.mean_of(self.members(tokens)) if self.groups else self.members(tokens)

    def members(self, tokens: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens units"]:
        """Activations of the units that groups are made of; without groups, of the units themselves."""
        if self.sae is not None and not self.gated:
            with torch.no_grad():
                return self.sae.pre_activations(tokens.to(self.sae.device)).relu().cpu()
        if self.sae is not None:
            return self.sae.encode_dense(tokens.to(self.sae.device)).cpu()
        values = tokens.float()
        if self.directions is not None and self.shift is not None:
            values = values @ self.directions - self.shift
        return torch.cat([values, -values], dim=1).relu_() if self.signed == "split" else values.relu()

    def before_gate(self, tokens: Float[Tensor, "tokens d_in"], units: Sequence[int]) -> Float[Tensor, "tokens chosen"]:
        """What decides whether the units fire, float32, on the tokens' device; differentiable, also where none fires.

        An SAE's pre-activations, a coordinate, or a projection less its shift; of a negative side, the same turned.
        Raises UserError for groups, which have no gate of their own.
        """
        if self.groups is not None:
            raise UserError(
                "units", "groups", "have no gate of their own", "ask this of the units that they are made of"
            )
        if self.sae is not None:
            return self.sae.pre_activations_of(tokens.float().to(self.sae.device), units).to(tokens.device)
        values, width = tokens.float(), tokens.shape[1] if self.directions is None else self.directions.shape[1]
        places = torch.tensor([unit % width for unit in units], dtype=torch.long, device=values.device)
        sides = torch.tensor([1.0 if unit < width else -1.0 for unit in units], device=values.device)
        if self.directions is None or self.shift is None:
            return values[:, places] * sides
        directions, shift = self.directions.to(values.device), self.shift.to(values.device)
        return (values @ directions[:, places] - shift[places]) * sides

    def writes(self, d_in: int) -> Float[Tensor, "units d_in"]:
        """What each unit adds to a token for every 1 of activation, float32, on the CPU; an SAE's before `scale`.

        `d_in`: the layer's width. Raises UserError for a transcoder's encoder, which writes to another layer, and for
        groups.
        """
        if self.groups is not None:
            raise UserError("bases", "groups", "write nothing of their own", "ask this of their members' basis")
        if self.sae is not None:
            if self.sae.meta.source.get("transcoder"):
                raise UserError("sae", "a transcoder's encoder", "writes to another layer than it reads", "use an SAE")
            return self.sae.W_dec.detach().float().cpu()
        own = torch.eye(d_in) if self.directions is None else self.directions.T.float().contiguous()
        return torch.cat([own, -own]) if self.signed == "split" else own

    def scale(self, tokens: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens 1"]:
        """How much longer each token is than what the SAE's weights see; 1 unless it normalises its input."""
        norm = "none" if self.sae is None else self.sae.meta.input_norm
        tokens = tokens.float().cpu()
        if norm == "layer":
            return tokens.std(1, keepdim=True)
        if norm == "unit":
            return tokens.norm(dim=1, keepdim=True).clamp(min=1e-8)
        return tokens.new_ones(len(tokens), 1)

    def part(self, tokens: Float[Tensor, "tokens d_in"], unit: int) -> Float[Tensor, "tokens d_in"]:
        """What the unit contributes to each token: activation x what it writes, float32, on the CPU.

        A token is the sum of its units' parts and of what no unit holds: negative sides of coordinates, an SAE's bias
        and error.
        """
        amount = self(tokens)[:, unit, None] * self.scale(tokens)
        return amount * self.writes(tokens.shape[1])[unit]

    def save(self, folder: Path) -> None:
        """Write what a linear basis has learnt, and groups, into a units artifact; neurons and SAEs need nothing."""
        from safetensors.torch import save_file

        if self.directions is not None and self.shift is not None:
            save_file({"directions": self.directions.contiguous(), "shift": self.shift}, str(folder / FILE))
        if self.groups is not None:
            self.groups.save(folder)

    @classmethod
    def load(cls, folder: Path | str, sae: Path | str | None = None) -> "Projection":
        """The projection of a units artifact; `sae`: the SAE that its latents are of (a file or an artifact's folder).

        Raises UserError for a missing or damaged folder, and where the units are an SAE's but `sae` is not given
        (groups of latents know theirs).
        """
        from safetensors.torch import load_file

        folder = open_artifact(folder).path
        info = read_json(folder / "units.json")["info"]
        if "planted" in info:
            raise UserError("units", folder, "planted units are read from no layer", "ask this of another basis")
        groups = Grouping.load(folder) if "groups" in info else None
        if "latents" in info:
            if sae is None and groups is not None and "sae" in info:  # a folder; elsewhere, the file's checksum
                sae = folder / info["sae"]
            if sae is None:
                raise UserError("sae", None, "these units are an SAE's latents", "give the SAE's folder")
            return cls(info["signed"], sae=SAE.load(sae_file(sae)), groups=groups)
        if (folder / FILE).is_file():
            learnt = load_file(str(folder / FILE))
            return cls(info["signed"], learnt["directions"], learnt["shift"], groups=groups)
        return cls(info["signed"], groups=groups)


def sae_file(path: Path | str) -> Path:
    """The weights' file of an SAE given as a file or as an artifact's folder."""
    path = Path(path)
    return path / "sae.safetensors" if path.is_dir() else path


def principal(cache: ActivationCache) -> tuple[Tensor, Tensor]:
    """Principal components [d_in, d_in] of the centred `mine` tokens, strongest first, and their shift, in float64."""
    mean = torch.from_numpy(cache.mean)
    covariance = torch.zeros(cache.d_in, cache.d_in, dtype=torch.float64)
    rows = cache.rows("mine")
    for part in np.array_split(rows, max(1, len(rows) // 16384)):
        centred = torch.from_numpy(np.asarray(cache.tokens[part], dtype=np.float64)) - mean
        covariance += centred.T @ centred
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(-1)
    return directions, mean @ directions


def rotation(cache: ActivationCache, seed: int) -> tuple[Tensor, Tensor]:
    """A uniformly random orthogonal basis [d_in, d_in] of the centred tokens, and its shift, in float64.

    QR of a Gaussian matrix with the signs of R's diagonal fixed, without which it is not uniform (Mezzadri, 2007).
    """
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(cache.d_in, cache.d_in, generator=generator, dtype=torch.float64))
    directions = q * r.diagonal().sign()
    return directions, torch.from_numpy(cache.mean) @ directions
