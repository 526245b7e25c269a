"""Attribution against brute force: sums that must hold, and twins written out unit by unit."""

import numpy as np
import pytest
import torch
from effects_worlds import Planted
from torch import nn

from saelab.effects.ablate import Active
from saelab.effects.attribute import direct, exact, gradient_x_part, integrated_gradients, of_output
from saelab.sae import SAE, Meta
from saelab.units.bases import Projection

IDS = np.arange(6)


class Curved(Planted):
    """A rest of the model that is not linear."""

    def __init__(self, tokens: torch.Tensor, head: torch.Tensor) -> None:
        super().__init__(tokens, head)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(head.shape[0], 16), nn.GELU(), nn.Linear(16, head.shape[1]))

    def answer(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.net(tokens).mean(-2)

    def logits(self, ids: np.ndarray, edited: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.answer(edited)

    def gradient(self, ids: np.ndarray, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        leaf = tokens.clone().requires_grad_()
        return torch.autograd.grad((self.answer(leaf) @ weights.to(leaf)).sum(), leaf)[0]


class Linear(Curved):
    def answer(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.mean(-2) @ self.head


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def project_of(kind: str) -> Projection:
    if kind == "neurons":
        return Projection()
    own = SAE(draw(1, 9, 5), draw(2, 9), draw(3, 9, 5), draw(4, 5), Meta(rule="topk", k=3, input_norm="unit"))
    return Projection(sae=own)


def inputs(kind: str, host: type):
    project, tokens = project_of(kind), draw(5, 6, 4, 5)
    return host(tokens, draw(6, 5, 7)), Active.of(project, tokens), project.writes(5)


@pytest.mark.parametrize("kind", ["neurons", "sae"])
def test_all_methods_agree_where_the_rest_is_linear(kind):
    answers, active, writes = inputs(kind, Linear)
    weights, every = of_output(2, 7), range(len(writes))
    alone = exact(answers, IDS, active, writes, weights, every)
    quick = gradient_x_part(answers, IDS, active, writes, weights)
    along = integrated_gradients(answers, IDS, active, writes, weights, steps=3)
    amounts = (active.acts * active.scale).mean(1).double()
    table = amounts * direct(writes, answers.head.T)[:, 2]
    for found in (quick.values, along.values, table):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert quick.complete and along.complete and quick.residual.abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["neurons", "sae"])
def test_integrated_gradients_sum_to_what_units_add(kind):
    answers, active, writes = inputs(kind, Curved)
    weights = of_output(0, 7)
    found = integrated_gradients(answers, IDS, active, writes, weights)
    rest = active.tokens - sum(active.part(u, w) for u, w in enumerate(writes))
    gap = (answers.answer(active.tokens) - answers.answer(rest)).double() @ weights
    torch.testing.assert_close(found.whole, gap.detach(), rtol=1e-4, atol=1e-5)
    assert found.complete and found.residual.abs().max() < 0.01 * found.whole.abs().max()
    one_step = gradient_x_part(answers, IDS, active, writes, weights)
    assert one_step.residual.abs().sum() > 5 * found.residual.abs().sum()


def test_integrated_gradients_equal_those_taken_along_the_codes():
    """The twin: a path in the codes themselves, each unit's derivative by autograd through the decoder."""
    answers, active, writes = inputs("sae", Curved)
    weights, steps = of_output(3, 7), 8
    codes = active.acts * active.scale
    rest = active.tokens - codes @ writes
    expected = torch.zeros(6, len(writes), dtype=torch.float64)
    for step in range(steps):
        z = ((step + 0.5) / steps * codes).requires_grad_()
        value = (answers.answer(rest + z @ writes).double() @ weights).sum()
        expected += (torch.autograd.grad(value, z)[0] * codes).sum(1).double() / steps
    found = integrated_gradients(answers, IDS, active, writes, weights, steps)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-6)


def test_silent_units_get_exactly_nothing():
    answers, active, writes = inputs("sae", Curved)
    weights, silent = of_output(1, 7), (active.acts == 0).all(1)
    assert silent.any()
    for values in (
        gradient_x_part(answers, IDS, active, writes, weights).values,
        exact(answers, IDS, active, writes, weights, range(len(writes))),
    ):
        assert (values[silent] == 0).all() and (values[~silent] != 0).all()


def test_units_that_carry_an_output_are_missed_more_than_others():
    answers, active, writes = inputs("neurons", Curved)
    weights = of_output(4, 7)
    found = integrated_gradients(answers, IDS, active, writes, weights)
    best, worst = found.values.argmax(1), found.values.argmin(1)
    alone = exact(answers, IDS, active, writes, weights, range(len(writes)))
    rows = torch.arange(6)
    assert (alone[rows, best] > alone[rows, worst]).all()
