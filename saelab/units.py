"""Units: whatever can fire on an image. Below this file nobody knows a neuron from an SAE latent or a control.

A basis maps a token [d_in] to unit activations [units]; an image's activation is the pool of its tokens'. Everything a
basis learns (centres, components) comes from the `mine` split. By default a unit is its positive side: what it pools is
relu(token activation). `signed="split"` makes two units of each direction, first all positive, then all negative sides.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from saelab.artifacts import Artifact, ensure, opened, read_json, write_json
from saelab.cache import ActivationCache
from saelab.errors import UserError

CODE = 1  # version of this stage; part of every recipe
POOLS = ("max", "mean", "cls", "top_mean")
SIGNED = ("positive", "split")
SPARSE_BELOW = 0.1  # density under which activations are kept as CSR

Project = Callable[[Float[Tensor, "tokens d_in"]], Float[Tensor, "tokens units"]]


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

        folder = opened(folder).path
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
            acts = torch.sparse_csr_tensor(tensors["crow"], tensors["col"], tensors["values"], shape)
        return cls(acts, facts["basis"], facts["info"])


def to_scipy(acts: Tensor) -> Any:
    """A torch CSR matrix as scipy's (which can index rows and columns); shares memory."""
    from scipy.sparse import csr_array

    parts = (acts.values().numpy(), acts.col_indices().numpy(), acts.crow_indices().numpy())
    return csr_array(parts, shape=tuple(acts.shape))


def from_scipy(csr: Any) -> Tensor:
    """A scipy CSR matrix as torch's."""
    crow, col = torch.from_numpy(csr.indptr.astype(np.int64)), torch.from_numpy(csr.indices.astype(np.int64))
    return torch.sparse_csr_tensor(crow, col, torch.from_numpy(csr.data), csr.shape)


def neuron(cache: ActivationCache, root: Path | str, pool: str = "max", signed: str = "positive") -> Artifact:
    """The layer's own coordinates as units."""
    return _units(cache, root, "neuron", {}, lambda: lambda tokens: tokens, pool, signed)


def pca(cache: ActivationCache, root: Path | str, pool: str = "max", signed: str = "positive") -> Artifact:
    """Principal components of the centred `mine` tokens, strongest first, as a control basis of dense directions."""

    def fit() -> Project:
        mean = torch.from_numpy(cache.mean)
        covariance = torch.zeros(cache.d_in, cache.d_in, dtype=torch.float64)
        rows = cache.rows("mine")
        for part in np.array_split(rows, max(1, len(rows) // 16384)):
            centred = torch.from_numpy(np.asarray(cache.tokens[part], dtype=np.float64)) - mean
            covariance += centred.T @ centred
        directions = torch.linalg.eigh(covariance).eigenvectors.flip(-1)
        return _project(mean, directions)

    return _units(cache, root, "pca", {}, fit, pool, signed)


def random_rotation(
    cache: ActivationCache, root: Path | str, pool: str = "max", signed: str = "positive", seed: int = 0
) -> Artifact:
    """A random orthogonal basis of the centred activations: as many units as neurons, none of them privileged.

    The control of "is the neuron basis special?" (method: QR of a Gaussian matrix with the signs of R's diagonal fixed,
    so that the rotation is uniform; Mezzadri, 2007).
    """

    def fit() -> Project:
        generator = torch.Generator().manual_seed(seed)
        gaussian = torch.randn(cache.d_in, cache.d_in, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        return _project(torch.from_numpy(cache.mean), q * r.diagonal().sign())

    return _units(cache, root, "random_rotation", {"seed": seed}, fit, pool, signed)


def sae(
    cache: ActivationCache,
    root: Path | str,
    path: Path | str,
    pool: str = "max",
    name: str = "sae",
    device: str = "cpu",
) -> Artifact:
    """The latents of the SAE stored at `path` (a file or an SAE artifact's folder) as units.

    Raises UserError if its d_in is not the cache's.
    """
    from saelab.sae import SAE

    path = Path(path)
    file = path / "sae.safetensors" if path.is_dir() else path
    model = SAE.load(file)
    if model.d_in != cache.d_in:
        raise UserError("sae", path, f"has d_in {model.d_in}, the cache {cache.d_in}", "use an SAE of this layer")

    def fit() -> Project:
        moved = model.to(device)
        return lambda tokens: moved.encode(tokens.to(device)).dense().cpu()

    extra = {"sae": _file_digest(file)}
    return _units(cache, root, name, extra, fit, pool, "positive", {"sae_file": file.name, "latents": model.latents})


def _units(
    cache: ActivationCache,
    root: Path | str,
    basis: str,
    settings: dict[str, Any],
    fit: Callable[[], Project],
    pool: str,
    signed: str,
    info: dict[str, Any] | None = None,
) -> Artifact:
    if pool not in POOLS:
        raise UserError("pool", pool, "unknown", f"known: {', '.join(POOLS)}")
    if signed not in SIGNED:
        raise UserError("signed", signed, "unknown", f"known: {', '.join(SIGNED)}")
    shared = {"basis": basis, "pool": pool, "signed": signed} | settings
    recipe = {"stage": "units", "code": CODE, "cache": cache.digest} | shared

    def build(folder: Path) -> None:
        with torch.inference_mode():
            acts = pooled(cache, fit(), pool, signed)
        facts = shared | {"layer": cache.layer, "host": cache.host} | (info or {})
        UnitActivations(acts, basis, facts).save(folder)

    return ensure(root, "units", f"{basis}-{cache.layer}", recipe, build)


def pooled(
    cache: ActivationCache, project: Project, pool: str, signed: str = "positive", at_once: int = 8192
) -> Tensor:
    """Every image's pooled activation of every unit, [images, units] float32, CSR where under 10 % is nonzero.

    `project` sees whole images, about `at_once` tokens together, so memory does not grow with the cache. `max`, `mean`:
    over an image's tokens; `cls`: its first token; `top_mean`: the mean of its highest tenth (at least one token).
    """
    from scipy.sparse import csr_array, vstack
    from tqdm import tqdm

    offsets = np.asarray(cache.offsets)
    blocks, kept, start = [], 0, 0
    with tqdm(total=len(offsets) - 1, desc=f"pool units, {cache.layer}", unit="img", leave=False) as bar:
        while start < len(offsets) - 1:
            stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + at_once, side="right")) - 1)
            stop = min(stop, len(offsets) - 1)
            # A copy: the map is read-only, and pooling works in place.
            raw = np.array(cache.tokens[offsets[start] : offsets[stop]], dtype=np.float32)
            tokens = project(torch.from_numpy(raw)).float()
            if signed == "split":
                tokens = torch.cat([tokens, -tokens], dim=1)
            block = _pool(tokens.relu_(), offsets[start : stop + 1] - offsets[start], pool)
            blocks.append(csr_array(block.numpy()))
            kept += block.numel()
            bar.update(stop - start)
            start = stop
    joined = vstack(blocks, format="csr")
    if joined.nnz < SPARSE_BELOW * kept:
        return from_scipy(joined)
    return torch.from_numpy(joined.toarray())


def _pool(tokens: Float[Tensor, "tokens units"], offsets: np.ndarray, pool: str) -> Float[Tensor, "images units"]:
    lengths = np.diff(offsets)
    if (lengths == lengths[0]).all():  # the common case: one product over equal images
        grid = rearrange(tokens, "(images t) units -> images t units", images=len(lengths))
        return _pool_one(grid, pool)
    return torch.cat([_pool_one(part[None], pool) for part in tokens.split(lengths.tolist())])


def _pool_one(grid: Float[Tensor, "images t units"], pool: str) -> Float[Tensor, "images units"]:
    if pool == "max":
        return grid.amax(1)
    if pool == "mean":
        return grid.mean(1)
    if pool == "cls":
        return grid[:, 0].clone()
    return grid.topk(max(1, grid.shape[1] // 10), dim=1).values.mean(1)


def _project(mean: Tensor, directions: Tensor) -> Project:
    """Coordinates of centred tokens along the columns of `directions`."""
    matrix, shift = directions.float(), (mean @ directions).float()
    return lambda tokens: tokens @ matrix - shift


def _file_digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
