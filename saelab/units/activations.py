"""UnitActivations: one number per image and unit. Whoever reads it knows no neuron from an SAE latent."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.artifacts import open_artifact, read_json, write_json
from saelab.errors import UserError


@dataclasses.dataclass(frozen=True)
class UnitActivations:
    """One number per image and unit, with what a reader must know of the units."""

    acts: Tensor  # [images, units] float32, dense or torch.sparse_csr
    basis: str  # neuron | sae | pca | random_rotation | what the user calls it
    info: dict[str, Any]  # layer, pooling, SAE folder, ...: plain values

    @property
    def images(self) -> int:
        """Number of images."""
        return self.acts.shape[0]

    @property
    def units(self) -> int:
        """Number of units."""
        return self.acts.shape[1]

    def rows(self, ids: np.ndarray) -> Tensor:
        """The activations of these images only, [len(ids), units], in the layout of `acts`."""
        index = torch.as_tensor(ids)
        if self.acts.layout == torch.strided:
            return self.acts[index]
        csr = to_scipy(self.acts)[np.asarray(ids)]
        return from_scipy(csr)

    def column(self, unit: int) -> Float[Tensor, "images"]:
        """One unit's activation on every image."""
        if self.acts.layout == torch.strided:
            return self.acts[:, unit]
        dense = np.asarray(to_scipy(self.acts)[:, [unit]].todense()).ravel()
        return torch.from_numpy(dense)

    def save(self, folder: Path) -> None:
        """Write `acts.safetensors` and `units.json` into `folder`."""
        from safetensors.torch import save_file

        if self.acts.layout == torch.strided:
            tensors = {"acts": self.acts.contiguous()}
        else:
            tensors = {
                "crow": self.acts.crow_indices(),
                "col": self.acts.col_indices(),
                "values": self.acts.values(),
                "shape": torch.tensor(self.acts.shape),
            }
        save_file(tensors, str(folder / "acts.safetensors"))
        write_json(folder / "units.json", {"basis": self.basis, "info": self.info, "units": self.units})

    @classmethod
    def load(cls, folder: Path | str) -> "UnitActivations":
        """Read what `save` wrote. Raises UserError for a missing, unfinished or damaged folder."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = open_artifact(folder).path
        facts = read_json(folder / "units.json")
        try:
            tensors = load_file(str(folder / "acts.safetensors"))
        except (SafetensorError, OSError) as error:
            raise UserError(
                "units", folder, f"unreadable ({error})", "delete the folder to have it made again"
            ) from None
        if "acts" in tensors:
            acts = tensors["acts"]
        else:
            shape = tuple(tensors["shape"].tolist())
            acts = _csr(tensors["crow"], tensors["col"], tensors["values"], shape)
        return cls(acts, facts["basis"], facts["info"])


def to_scipy(acts: Tensor) -> Any:
    """A torch CSR matrix as scipy's (which can index rows and columns); shares memory."""
    from scipy.sparse import csr_array

    parts = (acts.values().numpy(), acts.col_indices().numpy(), acts.crow_indices().numpy())
    return csr_array(parts, shape=tuple(acts.shape))


def from_scipy(csr: Any) -> Tensor:
    """A scipy CSR matrix as torch's."""
    crow, col = torch.from_numpy(csr.indptr.astype(np.int64)), torch.from_numpy(csr.indices.astype(np.int64))
    return _csr(crow, col, torch.from_numpy(csr.data), csr.shape)


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():  # torch says once in each process that CSR is in beta and goes unchecked
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(crow, col, values, shape)
