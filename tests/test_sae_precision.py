"""Gates whose dense products multiply bfloat16: the products' twins, what training comes to, and what is refused."""

import pytest
import torch
from elsewhere import Elsewhere

from saelab.artifacts import read_json
from saelab.errors import UserError
from saelab.sae import SAEConfig, TrainConfig, Trainer, dense, fit, rough
from saelab.sae.start import check_device

D, LATENTS = 24, 96


@pytest.fixture(autouse=True)
def multiplies_bfloat16(monkeypatch):
    monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device: True)


def config(rule: str, precision: str = "bfloat16", **settings) -> SAEConfig:
    return SAEConfig(D, LATENTS, rule=rule, k=6, l1=0.1, lr=2e-3, precision=precision, **settings)


def tokens(seed: int = 0, rows: int = 2048) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    parts = torch.randn(64, D, generator=torch.Generator().manual_seed(99))
    codes = torch.rand(rows, 64, generator=g) * (torch.rand(rows, 64, generator=g) < 0.06)
    return codes @ parts + 0.05 * torch.randn(rows, D, generator=g) + 3


def narrow(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16().float()


def test_the_product_and_its_gradients_are_those_of_rounded_numbers():
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, generator=g).requires_grad_() for shape in ((40, 24), (24, 30)))
    bias = torch.randn(30, generator=g).requires_grad_()
    above = torch.randn(40, 30, generator=g)
    found = dense.multiply(left, right, config("relu"), bias)
    found.backward(above)
    torch.testing.assert_close(found - bias, narrow(left) @ narrow(right), rtol=2**-8, atol=1e-4)
    assert not torch.equal(found, torch.addmm(bias, left, right)) and found.dtype == torch.float32
    for own, twin in ((left, narrow(above) @ narrow(right).T), (right, narrow(left).T @ narrow(above))):
        torch.testing.assert_close(own.grad, twin, rtol=2**-8, atol=1e-4)
    assert torch.equal(bias.grad, above.sum(0)), "no product"


@pytest.mark.parametrize("rule", ["relu", "jumprelu"])
@pytest.mark.parametrize("pieces", [1, 4])
def test_gradients_are_float32s_but_for_rounding(rule, pieces):
    x, found = tokens(), []
    trainer = Trainer(config(rule, "float32"))
    trainer.step(x)
    for precision in ("float32", "bfloat16"):
        given = (trainer.weights, x, config(rule, precision), trainer.variance, len(x))
        grads, error = dense.dense_gradients(*given, pieces=pieces)
        assert all(grad.is_contiguous() for grad in grads.grads.values()), "as fused Adam reads them"
        found.append({**grads.grads, "error": error})
    most = {"relu": 0.03, "jumprelu": 0.1}[rule]  # where a pre-activation lies near its threshold, the gate turns over
    for name in found[0]:
        if name != "threshold":  # of the few numbers in a narrow window
            apart = torch.linalg.vector_norm(found[0][name] - found[1][name]) / torch.linalg.vector_norm(found[0][name])
            assert 0 < float(apart) < most, name


@pytest.mark.parametrize("rule", ["relu", "jumprelu"])
def test_training_comes_to_the_same(rule, tmp_path):
    found = {}
    for precision in ("float32", "bfloat16"):
        folder, train = tmp_path / precision, TrainConfig(256, steps=300)
        found[precision] = fit(tokens(), config(rule, precision), train, folder, progress=False).quality
        stated = read_json(folder / "training.json")["sae"].get("precision")
        assert stated == (None if precision == "float32" else precision), "recipes of before stay"
    exact, rounded = found["float32"], found["bfloat16"]
    assert exact["fvu"] < 0.5 and rounded["fvu"] == pytest.approx(exact["fvu"], rel=0.02)
    assert rounded["l0"] == pytest.approx(exact["l0"], rel=0.05) and rounded["fvu"] != exact["fvu"]


def test_cards_keep_float32_sums(monkeypatch):
    asked, real = [], torch.mm

    def mm(left, right, out_dtype=None):
        assert left.dtype == right.dtype == torch.bfloat16
        asked.append(out_dtype)
        return real(left.float(), right.float())

    monkeypatch.setattr(torch, "mm", mm)
    left, right = torch.randn(8, 6).bfloat16(), torch.randn(6, 4).bfloat16()
    with Elsewhere("cuda"):
        found = dense.widened(left.to("cuda"), right.to("cuda"))
    assert asked == [torch.float32] and torch.equal(found.cpu(), left.float() @ right.float())


def test_what_can_not_be_is_refused(monkeypatch):
    with pytest.raises(UserError, match="precision=bfloat16: needs rule=jumprelu or relu; elsewhere a screen"):
        config("topk")
    with pytest.raises(UserError, match="precision=half: one of float32, bfloat16"):
        config("relu", "half")
    monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device: False)
    with pytest.raises(UserError, match="precision=bfloat16: needs a device that multiplies it, not this cpu"):
        check_device(config("relu"), "cpu")
