"""Heat maps of a report: several pictures projected together are what each is alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saelab.report import maps
from saelab.sae import SAE, Meta
from saelab.units import Projection


def sae_of(d_in: int, latents: int) -> SAE:
    draw = torch.Generator().manual_seed(0)
    W_enc, W_dec = (torch.randn(latents, d_in, generator=draw) for _ in range(2))
    return SAE(W_enc, torch.zeros(latents), W_dec, torch.zeros(d_in), meta=Meta("topk", 3))


@pytest.mark.parametrize("latents", [0, 40])
@pytest.mark.parametrize("at_once", [1, 13, 2048])
def test_maps_are_those_of_each_picture_alone(at_once, latents, monkeypatch):
    monkeypatch.setattr(maps, "AT_ONCE", at_once)
    draw, cells = np.random.default_rng(0), 6
    tokens = draw.standard_normal((9, cells + 1, 8)).astype(np.float32)  # the first is no patch
    asked: list[int] = []

    class Counted(Projection):
        def __call__(self, given):
            asked.append(len(given))
            return super().__call__(given)

    project = Counted(sae=sae_of(8, latents) if latents else None)
    units = latents or 8
    where = {int(i): [(int(u), r) for r, u in enumerate(draw.permutation(units)[:3])] for i in (0, 2, 3, 5, 7, 8)}
    found = np.zeros((units, 3, cells), np.float16)
    maps._fill(found, SimpleNamespace(image_tokens=lambda i: tokens[i]), project, where)
    expected = np.zeros_like(found)
    for image, places in where.items():
        own = Projection(sae=project.sae)(torch.from_numpy(tokens[image, 1:])).numpy()
        for unit, rank in places:
            expected[unit, rank] = own[:, unit]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)  # float16's
    assert max(asked) <= max(at_once, cells) and sum(asked) == cells * len(where) and found.max() > 0
