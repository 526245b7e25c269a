"""From the tokens of an image to one activation a unit, in constant memory for caches of any size."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from saelab import bars
from saelab.cache import ActivationCache
from saelab.cache.store import top_count
from saelab.units.activations import from_scipy
from saelab.units.bases import Projection

POOLS = ("max", "mean", "cls", "top_mean")
SPARSE_BELOW = 0.1  # density under which activations are kept as CSR


def pool_cache(cache: ActivationCache, project: Projection, pool: str, at_once: int = 8192) -> Tensor:
    """Every image's pooled activation of every unit, [images, units] float32, CSR where under 10 % is nonzero.

    `project` sees whole images, about `at_once` tokens together (fewer for a wide SAE), so memory does not grow with
    the cache. `max`, `mean`: over an image's tokens; `cls`: its first token; `top_mean`: the mean of its highest tenth
    (rounded down, at least one token), as the cache's own `top:0.1`.
    """
    from scipy.sparse import csr_array, vstack

    offsets = np.asarray(cache.offsets)
    at_once = at_once if project.sae is None else min(at_once, project.sae.tokens_at_once)
    blocks, kept, start = [], 0, 0
    with bars.show(total=len(offsets) - 1, what=f"pool units, {cache.layer}", unit="img") as bar:
        while start < len(offsets) - 1:
            stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + at_once, side="right")) - 1)
            stop = min(stop, len(offsets) - 1)
            # A copy: the map is read-only.
            raw = np.array(cache.tokens[offsets[start] : offsets[stop]], dtype=np.float32)
            block = _pool(project.members(torch.from_numpy(raw)), offsets[start : stop + 1] - offsets[start], pool)
            block = project.groups.least_of(block) if project.groups else block
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
        return pool_tokens(grid, pool)
    return torch.cat([pool_tokens(part[None], pool) for part in tokens.split(lengths.tolist())])


def pool_units(project: Projection, tokens: Float[Tensor, "images t d_in"], pool: str) -> Float[Tensor, "images units"]:
    """What a basis' units do in pictures of equally many tokens, as `pool_cache` would have it."""
    grid = project.members(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    found = pool_tokens(grid, pool)
    return project.groups.least_of(found) if project.groups else found


def pool_tokens(grid: Float[Tensor, "images t units"], pool: str) -> Float[Tensor, "images units"]:
    """Pool the tokens of images that have equally many; see `pool_cache`."""
    if pool == "max":
        return grid.amax(1)
    if pool == "mean":
        return grid.mean(1)
    if pool == "cls":
        return grid[:, 0].clone()
    return grid.topk(top_count(grid.shape[1]), dim=1).values.mean(1)
