"""The authors' two modes of Linear Explanations' ablation score on a dumped case, against twins of their formulas."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from effects_worlds import Planted
from test_effects_attribution import Curved, draw

from saelab.effects.ablate import Active
from saelab.effects.simulate import (
    Curves,
    Stand,
    Tried,
    find_losses,
    fit_by_loss,
    fit_line,
    score_unit,
    with_pooled,
)
from saelab.units.bases import Projection


@dataclass(frozen=True)
class Dump:
    """Pooled features, a linear head and classes: all that the authors' program asks of a network."""

    features: torch.Tensor  # [240 pictures, 64], > 0
    head: torch.Tensor  # [64, 10]
    classes: torch.Tensor  # [240]
    values: torch.Tensor  # [240]: what an explanation says of unit 5, as it would be put in its place
    checked: np.ndarray  # validation pictures
    test: np.ndarray

    @property
    def stand(self) -> Stand:
        own = Planted(self.features[:, None], self.head)
        tried = Tried(self.checked, self.classes[self.checked].numpy())
        now = self.classes[self.test].numpy()
        return Stand(own, Projection(), torch.eye(64), self.checked, self.test, now, tried)

    def losses(self, ids: np.ndarray, amount: torch.Tensor | None = None) -> torch.Tensor:
        """Cross-entropy at temperature 1.1 of each picture, unit 5 being replaced."""
        x = self.features[ids].double()
        if amount is not None:
            x = torch.cat([x[:, :5], amount[:, None], x[:, 6:]], dim=1)
        return torch.nn.functional.cross_entropy(x @ self.head.double() / 1.1, self.classes[ids], reduction="none")

    def score(self, wanted: torch.Tensor) -> float:
        """1 - sum |change| / sum |change with the validation mean|."""
        own, mean = self.losses(self.test), self.features[self.checked, 5].double().mean().expand(len(self.test))
        changes = [(self.losses(self.test, x) - own).abs().sum() for x in (wanted, mean)]
        return float(1 - changes[0] / changes[1])


def dump(seed: int, noise: float = 0.6, away: float = 0.0) -> Dump:
    """Classes that the features tell; an explanation as good as its noise, off by a factor and an offset."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(64, 10, generator=generator) * 0.3
    classes = torch.randint(10, (240,), generator=generator)
    features = (2 + 0.5 * torch.randn(240, 64, generator=generator) + 0.6 * head.T[classes]).clamp(min=0.05)
    features[:, 5] = 3.5 + 0.7 * torch.randn(240, generator=generator).clamp(-2, 2) + 0.5 * (classes == 3)
    values = features[:, 5] + noise * torch.randn(240, generator=generator)
    return Dump(features, head, classes, (1 - away) * values + away, np.arange(140), np.arange(140, 240))


def twin(own: Dump, v: torch.Tensor, unit: float = 1.0, floor: bool = False) -> tuple[float, float]:
    """Mode `optim` from its formula: c v + d from 1 and 0, 100 steps of Adam at .01 through the network, the last."""
    c, d = torch.ones((), dtype=torch.float64).requires_grad_(), torch.zeros((), dtype=torch.float64).requires_grad_()
    before, adam = own.losses(own.checked), torch.optim.Adam([c, d], lr=0.01)
    for _ in range(100):
        adam.zero_grad()
        wanted = c * v[own.checked] + d * unit
        wanted = wanted.clamp(min=0) if floor else wanted
        (own.losses(own.checked, wanted) - before).abs().sum().backward()
        adam.step()
    return float(c.detach()), float(d.detach()) * unit


def fit(own: Dump, v: torch.Tensor) -> tuple[float, float]:
    """The same by `fit_by_loss`, of a network that was asked at seven amounts."""
    tokens, amounts = own.features[own.checked], torch.linspace(0, 6, 7, dtype=torch.float64)
    asked = [torch.cat([tokens[:, :5], x.expand(140, 1).float(), tokens[:, 6:]], dim=1) @ own.head for x in amounts]
    return fit_by_loss(
        v[own.checked], Curves(amounts, torch.stack(asked)), tokens @ own.head, own.classes[own.checked].numpy()
    )


@pytest.mark.parametrize("seed", range(3))
def test_mode_norm_is_the_authors_on_a_dumped_case(seed):
    """(v - mean v) / sd v x r x sd a + mean a with validation moments, written out; nothing falls below 0 there."""
    own, v = dump(seed), dump(seed).values.double()
    a = own.features[own.checked, 5].double()
    here = v[own.checked]
    r = ((here - here.mean()) * (a - a.mean())).mean() / here.std(correction=0) / a.std(correction=0)
    wanted = (v[own.test] - here.mean()) / here.std(correction=0) * r * a.std(correction=0) + a.mean()
    assert float(wanted.min()) > 0
    found = score_unit(5, replace(own.stand, tried=None), own.features[:, 5], {"label": own.values})
    assert found["scores"]["label"] == pytest.approx(own.score(wanted), abs=1e-4)
    assert 0.1 < found["scores"]["label"] < 0.9 and "fits" not in found


@pytest.mark.parametrize("seed, away", [(0, 0.0), (1, 0.3), (2, 0.6), (3, -0.3)])
def test_mode_optim_is_the_authors_on_a_dumped_case(seed, away):
    own = dump(seed, away=away)
    v = own.values.double()
    (c, d), found = twin(own, v), fit(own, v)
    assert float(v.min()) > 0 and float((c * v + d).min()) > 0, "where saelab's floor at 0 does not matter"
    assert abs(c - 1) > 0.03 or abs(d) > 0.03, "the fit moved"
    assert found == pytest.approx((c, d), abs=0.01)
    assert own.score(found[0] * v[own.test] + found[1]) == pytest.approx(own.score(c * v[own.test] + d), abs=0.01)


def test_the_fit_by_the_loss_knows_that_no_unit_fires_less_than_nothing():
    own = dump(3, away=-0.4)
    v = own.values.double() - 3
    assert (v < 0).double().mean() > 0.05
    assert fit(own, v) == pytest.approx(twin(own, v, floor=True), abs=0.01)
    assert fit(own, v) != pytest.approx(twin(own, v), abs=0.01)


def test_the_fit_by_the_loss_does_the_whole_way_through_the_host():
    """From `score_unit`: it starts at the line of `norm` and steps d in standard deviations of the unit."""
    own = dump(4, noise=1.5)
    a = own.features[own.checked, 5].double()
    slope, start = np.polyfit(own.values[own.checked].double(), a, 1)
    v, before = slope * own.values.double() + start, own.losses(own.checked)
    c, d = twin(own, v, float(a.std(correction=0)))
    said = {"label": own.values, "own": own.features[:, 5]}
    found = score_unit(5, own.stand, own.features[:, 5], said)
    assert found["scores"]["label"] == pytest.approx(own.score((c * v + d)[own.test]), abs=0.01)
    assert found["fits"]["label"] == pytest.approx([c, d], abs=0.01)
    assert found["scores"]["own"] == pytest.approx(1, abs=1e-3) and found["depends"] > 0
    assert own.score(own.features[own.test, 5].double()) == 1 and own.score(a.mean().expand(100)) == 0
    by_line = score_unit(5, replace(own.stand, tried=None), own.features[:, 5], said)
    least, at_first = ((own.losses(own.checked, x[own.checked]) - before).abs().sum() for x in (c * v + d, v))
    assert least <= at_first and by_line["depends"] == found["depends"]


def test_curves_are_exact_where_outputs_are_straight_and_between_two_asked_where_not():
    amounts = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    line = Curves(amounts, (2 * amounts + 1)[:, None, None].expand(3, 5, 1))
    wanted = torch.tensor([0.0, 0.5, 1.0, 2.9, 7.0], dtype=torch.float64, requires_grad=True)
    found = line(wanted)
    assert torch.allclose(found[:, 0], 2 * wanted + 1)
    assert torch.allclose(torch.autograd.grad(found.sum(), wanted)[0], torch.full((5,), 2.0).double())
    bent = Curves(amounts, amounts.square()[:, None, None].expand(3, 2, 1))
    assert bent(torch.tensor([0.5, 2.0]).double()).flatten().tolist() == pytest.approx([0.5, 5.0])


def test_a_constant_prediction_is_fitted_to_a_constant():
    own = dump(5)
    found = score_unit(5, own.stand, own.features[:, 5], {"same": torch.full((240,), 3.0)})
    c, d = found["fits"]["same"]
    mean = float(own.features[own.checked, 5].double().mean())
    assert found["scores"]["same"] == pytest.approx(own.score(torch.full((100,), c * mean + d).double()), abs=1e-3)


def test_seventeen_amounts_are_enough_where_outputs_bend():
    """Maps of four tokens before a network with GELUs: the twin goes through it at every step."""
    host, acts = Curved(draw(5, 90, 4, 5), 3 * draw(6, 5, 7)), draw(5, 90, 4, 5).amax(1).relu()
    checked, test, values = np.arange(45), np.arange(45, 90), acts[:, 2] + 0.4 * draw(8, 90)
    classes = np.arange(90) % 7
    tried = Tried(checked, classes[checked])
    stand = Stand(host, Projection(), torch.eye(5), checked, test, classes[test], tried)
    found = score_unit(2, stand, acts[:, 2], {"label": values})
    slope, start = fit_line(values[checked], acts[checked, 2])
    line, a = slope * values.double() + start, acts[:, 2].double()
    sd = float(a[checked].std(correction=0))
    shape = [float(host.all[i, :, 2].relu().double().mean() / a[i]) for i in np.argsort(-a[checked].numpy())[:20]]

    def change(ids: np.ndarray, wanted: torch.Tensor) -> torch.Tensor:
        own = host.answer(host.all[ids]).detach()
        active = Active.of(Projection(), host.all[ids])
        edited = with_pooled(active, 2, torch.eye(5)[2], a[ids], wanted.clamp(min=0), float(np.mean(shape)))
        return (find_losses(host.answer(edited), own, classes[ids]) - find_losses(own, own, classes[ids])).abs().sum()

    c, d = torch.ones((), dtype=torch.float64).requires_grad_(), torch.zeros((), dtype=torch.float64).requires_grad_()
    adam = torch.optim.Adam([c, d], lr=0.01)
    for _ in range(100):
        adam.zero_grad()
        change(checked, c * line[checked] + d * sd).backward()
        adam.step()
    fitted = [change(test, x).item() for x in (c * line[test] + d * sd, a[checked].mean().expand(45))]
    assert found["scores"]["label"] == pytest.approx(1 - fitted[0] / fitted[1], abs=0.01)
    assert abs(c.item() - 1) > 0.02 or abs(d.item()) > 0.02
