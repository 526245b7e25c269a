"""Pixels that cause a unit: a planted host whose tokens look elsewhere, completeness, shut gates, the page."""

import numpy as np
import pytest
import torch
from test_effects_attribution import draw
from test_effects_stage import made  # noqa: F401  (a fixture)
from test_explain import picture
from torch import nn

from saelab.effects.pixels import Causes, blurred, find_causes
from saelab.hosts import Host, Transform
from saelab.sae import SAE, Meta
from saelab.units.bases import Projection

PLAIN = Transform((32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Elsewhere(nn.Module):
    """Each token of `moved` holds the mean of the patch one to its left."""

    def __init__(self, curved: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.moved = nn.Conv2d(3, 5, 4, 4), nn.Conv2d(5, 5, 3, padding=1, bias=False)
        self.act, self.head = nn.Tanh() if curved else nn.Identity(), nn.Linear(5, 3)
        with torch.no_grad():
            self.moved.weight.zero_()
            self.moved.weight[range(5), range(5), 1, 0] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.moved(self.act(self.patches(x))).mean((2, 3)))


def bright(row: int, column: int) -> torch.Tensor:
    """A dark picture with one patch of noise."""
    batch = torch.zeros(1, 3, 32, 32)
    batch[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = draw(3, 3, 4, 4) + 1
    return batch


@pytest.mark.parametrize("place", [(2, 3), (6, 1)])
def test_the_patch_that_causes_a_unit_is_found_where_its_token_is_not(place):
    host, batch = Host(Elsewhere().eval(), PLAIN, "elsewhere"), bright(*place)
    project = Projection("split")
    acts = project(host.tokens(batch, ["moved"])["moved"][0])
    units = [int(u) for u in torch.argsort(acts.amax(0) - acts.median(0).values, descending=True)[:3]]
    found = find_causes(host, "moved", "all", project, units, batch)
    for unit, token, places in zip(units, found.tokens, found.places(8, 8)):
        assert divmod(token, 8) == (place[0], place[1] + 1) == divmod(int(acts[:, unit].argmax()), 8)
        assert divmod(int(places.flatten().argmax()), 8) == place


@pytest.mark.parametrize("kind", ["neurons", "split", "rotation", "sae"])
@pytest.mark.parametrize("curved", [False, True])
def test_pixels_sum_to_what_the_picture_adds_to_the_blurred_one(kind, curved):
    host, batch = Host(Elsewhere(curved).eval(), PLAIN, "elsewhere"), draw(7, 1, 3, 32, 32)
    sae = SAE(draw(1, 9, 5), draw(2, 9), draw(3, 9, 5), draw(4, 5), Meta(rule="topk", k=2, input_norm="layer"))
    turned = torch.linalg.qr(draw(8, 5, 5))[0]
    project = {
        "neurons": Projection(),
        "split": Projection("split"),
        "rotation": Projection(directions=turned, shift=draw(9, 5)),
        "sae": Projection(sae=sae),
    }[kind]
    found = find_causes(host, "moved", "all", project, [0, 3], batch, steps=64)
    tokens = host.tokens(torch.cat([batch, blurred(batch)]), ["moved"])["moved"]
    ends = project.before_gate(tokens.flatten(0, 1), [0, 3]).unflatten(0, tokens.shape[:2])
    gap = torch.stack([ends[0, t, u] - ends[1, t, u] for u, t in enumerate(found.tokens)])
    torch.testing.assert_close(found.whole, gap.detach(), rtol=1e-4, atol=1e-5)
    bound = 1e-4 if not curved and kind != "sae" else 0.02 * found.pixels.abs().sum((1, 2)).max()
    assert (found.residual.abs() <= bound).all() and found.pixels.abs().max() > 0
    assert all(p.requires_grad and p.grad is None for p in host.model.parameters())


def test_a_gate_that_is_shut_still_has_causes():
    host, batch = Host(Elsewhere().eval(), PLAIN, "elsewhere"), draw(7, 1, 3, 32, 32)
    sae = SAE(draw(1, 9, 5), draw(2, 9), draw(3, 9, 5), draw(4, 5), Meta(rule="topk", k=1))
    project = Projection(sae=sae)
    acts = project(host.tokens(batch, ["moved"])["moved"][0])
    silent = [unit for unit in range(9) if not (acts[:, unit] > 0).any()]
    assert silent and (find_causes(host, "moved", "all", project, silent, batch).pixels != 0).flatten(1).any(1).all()


def test_places_are_sums_of_rectangles():
    pixels = torch.arange(32.0).reshape(1, 4, 8)
    found = Causes(pixels, [0], pixels.sum((1, 2)), torch.zeros(1)).places(2, 4)
    assert found.tolist() == [[[0 + 1 + 8 + 9, 2 + 3 + 10 + 11, 4 + 5 + 12 + 13, 6 + 7 + 14 + 15], [82, 90, 98, 106]]]
    none = find_causes(Host(Elsewhere().eval(), PLAIN, "e"), "moved", "all", Projection(), [], draw(1, 1, 3, 32, 32))
    assert none.pixels.shape == (0, 32, 32) and none.residual.shape == (0,)


def test_an_explanation_shows_the_pixels_that_cause_its_units(made, tmp_path):  # noqa: F811
    found = made.explain(picture(tmp_path), bases="neuron", top=2, pixels=True)
    first = found.facts["bases"][0]["units"][0]
    causes = np.array(first["causes"])
    assert first["unit"] == 0 and causes.shape == (14, 14)
    assert "Pixels that cause it" in found.page.read_text(encoding="utf-8")
    plain = made.explain(picture(tmp_path), bases="neuron", top=2)
    assert "causes" not in plain.facts["bases"][0]["units"][0] and "Pixels" not in plain.page.read_text("utf-8")
    assert plain.folder != found.folder
