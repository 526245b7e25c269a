"""Attribution against captum: integrated gradients, gradient x input and single ablations along units' activations."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_effects_attribution import IDS, Curved, Linear, draw, inputs, project_of
from test_effects_controls import Resumed

from saelab import hosts
from saelab.effects.ablate import Active
from saelab.effects.attribute import (
    attribution_of,
    exact,
    gradient_x_part,
    integrated_gradients,
    of_output,
    values_by,
)
from saelab.effects.by_captum import METHODS, Splice, values_by_captum
from saelab.effects.classes import find_class_units
from saelab.errors import UserError
from saelab.sae import SAE, Meta
from saelab.units.bases import Projection

attr = pytest.importorskip("captum.attr", reason="needs the extra captum")


def spliced(answer, active, writes, weights):
    """The output as a plain differentiable function of units' activations: captum's reference, none of saelab's."""
    rest = active.tokens - (active.acts * active.scale) @ writes

    def forward(acts, rest, scale):
        return answer(rest + (acts * scale) @ writes).double() @ weights

    return forward, (rest, active.scale)


@pytest.mark.parametrize("kind", ["neurons", "sae"])
def test_integrated_gradients_are_captums(kind):
    answers, active, writes = inputs(kind, Curved)
    weights = of_output(3, 7)
    forward, fixed = spliced(answers.answer, active, writes, weights)
    captums, gap = attr.IntegratedGradients(forward).attribute(
        active.acts,
        additional_forward_args=fixed,
        n_steps=8,
        method="riemann_middle",
        return_convergence_delta=True,
    )
    found = integrated_gradients(answers, IDS, active, writes, weights, steps=8)
    torch.testing.assert_close(found.values, captums.sum(1).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.residual, -gap.double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["neurons", "sae"])
def test_gradient_x_part_is_captums_gradient_x_input(kind):
    answers, active, writes = inputs(kind, Curved)
    weights = of_output(1, 7)
    forward, fixed = spliced(answers.answer, active, writes, weights)
    captums = attr.InputXGradient(forward).attribute(
        active.acts.clone().requires_grad_(), additional_forward_args=fixed
    )
    found = gradient_x_part(answers, IDS, active, writes, weights).values
    torch.testing.assert_close(found, captums.sum(1).double(), rtol=1e-5, atol=1e-6)
    splice = Splice(answers, IDS, active, writes, weights)
    there = attr.LayerGradientXActivation(splice, splice.codes).attribute(active.acts.clone())
    torch.testing.assert_close(found, there.sum(1).double(), rtol=1e-5, atol=1e-6)


def test_class_units_are_captums_gradient_x_activation():
    """WWW's matrix: the mean over a class' pictures, of captum's layer method at the codes."""
    answers, active, writes = inputs("sae", Curved)
    project, of = project_of("sae"), np.array([0, 0, 4, 4, 4, 0])
    found = find_class_units(answers, IDS, of, project, writes, 7)
    for output, scores in zip(found.outputs, found.scores):
        own = np.flatnonzero(of == output)
        some = Active.of(project, active.tokens[own])
        splice = Splice(answers, own, some, writes, of_output(int(output), 7))
        there = attr.LayerGradientXActivation(splice, splice.codes).attribute(some.acts.clone())
        torch.testing.assert_close(scores, there.sum(1).mean(0).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("own", "captums"), [("integrated_gradients", "IntegratedGradients"), (None, None)])
@pytest.mark.parametrize("kind", ["neurons", "sae"])
def test_the_back_end_says_token_by_token_what_saelab_says(kind, own, captums):
    answers, active, writes = inputs(kind, Curved)
    given = (answers, IDS, active, writes, of_output(2, 7))
    found = values_by(f"captum:{captums or 'InputXGradient'}", *given)
    torch.testing.assert_close(found, values_by(own or "gradient_x_part", *given), rtol=1e-5, atol=1e-6)
    whole = attribution_of(found, *given)
    assert whole.complete is (captums is not None)


def test_units_taken_out_one_by_one_are_captums_feature_ablation():
    answers, active, writes = inputs("sae", Curved)
    weights = of_output(0, 7)
    found = values_by_captum(answers, IDS, active, writes, weights, "FeatureAblation")
    alone = exact(answers, IDS, active, writes, weights, range(len(writes)))
    torch.testing.assert_close(found.sum(1), alone, rtol=1e-4, atol=1e-6)
    assert (found[active.acts == 0] == 0).all(), "a unit counts where it fires"


def test_shapley_values_share_out_all_that_units_add():
    for host in (Curved, Linear):
        answers, active, writes = inputs("neurons", host)
        given = (answers, IDS, active, writes, of_output(4, 7))
        found = attribution_of(values_by("captum:ShapleyValueSampling", *given), *given)
        torch.testing.assert_close(found.values.sum(1), found.whole, rtol=1e-4, atol=1e-5)
        if host is Linear:
            alone = exact(*given, range(len(writes)))
            torch.testing.assert_close(found.values, alone, rtol=1e-4, atol=1e-5)


def test_on_a_real_host_the_two_agree(shared):
    """Lite0's `_blocks.15`, an SAE's codes: captum goes through the model itself by autograd."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra quickstart")
    files = sorted((shared / "images" / "imagenet-samples").glob("*.jpg"))[::400]
    if not files:
        pytest.skip("needs the shared photos")
    host = hosts.load("efficientnet_lite0", device="cpu")
    tokens = host.tokens(host.load_images([Image.open(f).convert("RGB") for f in files]), ["_blocks.15"])
    tokens, ids = tokens["_blocks.15"].float().clone(), np.arange(len(files))
    answers = Resumed(host, tokens)
    own = SAE(0.1 * draw(1, 60, 320), draw(2, 60), 0.1 * draw(3, 60, 320), draw(4, 320), Meta(rule="topk", k=8))
    active, writes = Active.of(Projection(sae=own), tokens), own.W_dec
    weights = of_output(int(answers.logits(ids[:1], tokens[None, :1])[0, 0].argmax()), 1000)
    forward, fixed = spliced(lambda x: host.resume(x, "_blocks.15", grad=True), active, writes, weights)

    def agree(steps: int) -> bool:
        with torch.inference_mode(False), torch.enable_grad():
            captums = attr.IntegratedGradients(forward).attribute(
                active.acts.clone(), additional_forward_args=fixed, n_steps=steps, method="riemann_middle"
            )
        found = integrated_gradients(answers, ids, active, writes, weights, steps=steps)
        assert found.values.abs().max() > 0.05
        return torch.allclose(found.values, captums.sum(1).double(), rtol=1e-4, atol=1e-5)

    # A step may fall on a channel's ReLU6 to within rounding; then its gradient is there in one pass and not in the
    # other: on some processors at 4 steps. Of three grids with different points at most one may meet such a place.
    assert sum(agree(steps) for steps in (3, 4, 5)) >= 2


def test_what_captum_can_not_give_is_one_line(monkeypatch):
    answers, active, writes = inputs("neurons", Curved)
    given = (answers, IDS, active, writes, of_output(0, 7))
    with pytest.raises(UserError, match="did you mean IntegratedGradients"):
        values_by_captum(*given, "IntegratedGradient")
    for wrong in ("gradient", "captum:Saliency", "captum"):
        with pytest.raises(UserError, match="method"):
            values_by(wrong, *given)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(UserError, match=r"pip install 'saelab\[captum\]'"):
        values_by("captum:InputXGradient", *given)
    assert set(METHODS) <= set(dir(attr))
