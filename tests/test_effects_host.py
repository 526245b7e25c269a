"""Edits at a layer: gradients against finite differences, many copies in one pass, what a unit writes."""

import pytest
import torch
from torch import nn

from saelab.errors import UserError
from saelab.hosts import Host, Prefix, Transform
from saelab.sae import SAE, Meta
from saelab.units.bases import Projection

PLAIN = Transform((8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BATCH = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Branch(nn.Module):
    """A residual block whose last activation works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.inner(torch.tanh(self.conv(x))))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.act = nn.Conv2d(3, 4, 1), Branch(), nn.ReLU6(inplace=True)
        self.last, self.pool, self.head = nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.act(self.last(self.block(self.stem(x))))).flatten(1))


class Attention(nn.Module):
    """A residual block of attention and an MLP, written out: torch's own runs fused kernels in inference."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.linear1, self.linear2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
        return x + self.linear2(torch.nn.functional.gelu(self.linear1(x)))


class Transformer(nn.Module):
    """Four patches and a class token, attention between them, two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList([Attention() for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


def convolutions(dtype: torch.dtype = torch.float64) -> Host:
    torch.manual_seed(0)
    return Host(Convolutions().to(dtype), PLAIN, "convolutions")


def transformer(dtype: torch.dtype = torch.float64) -> Host:
    torch.manual_seed(0)
    return Host(Transformer().to(dtype), PLAIN, "transformer", Prefix(cls=1))


PLACES = [
    (convolutions, "block", True),
    (convolutions, "stem", True),
    (convolutions, "in:pool", True),
    (convolutions, "block.conv", False),  # inside a residual branch
    (convolutions, "in:head", True),
    (transformer, "blocks.0", True),
    (transformer, "in:norm", True),
    (transformer, "blocks.0.linear1", False),
]


@pytest.mark.parametrize(("make", "layer"), [place[:2] for place in PLACES])
@pytest.mark.parametrize("policy", ["all", "token:0"])
def test_gradients_are_those_of_finite_differences(make, layer, policy):
    host, given = make(), []
    logits = host.run(BATCH, layer, lambda tokens: given.append(tokens) or tokens, policy, grad=True)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    gradient = torch.autograd.grad((logits * weights).sum(), given[0])[0]
    direction = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-5

    def moved(by: float) -> torch.Tensor:
        return (host.run(BATCH, layer, lambda tokens: tokens + by * direction, policy) * weights).sum()

    numeric = (moved(step) - moved(-step)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-3, atol=1e-8)
    assert numeric.abs() > 1e-4, "a test of zeros tests nothing"


@pytest.mark.parametrize("make", [convolutions, transformer])
def test_gradients_leave_no_trace(make):
    host = make()
    frozen = next(host.model.parameters()).requires_grad_(False)
    before = {name: (p.requires_grad, p.clone()) for name, p in host.model.named_parameters()}
    layer = "block" if make is convolutions else "blocks.0"
    plain = host.logits(BATCH)
    with torch.inference_mode():  # whoever calls
        logits = host.run(BATCH.clone(), layer, lambda tokens: tokens, grad=True)
    assert logits.requires_grad and torch.equal(logits.detach(), plain)
    with pytest.raises(ZeroDivisionError):
        host.run(BATCH, layer, lambda tokens: 1 / 0, grad=True)
    for name, parameter in host.model.named_parameters():
        assert parameter.requires_grad == before[name][0] and parameter.grad is None
        assert torch.equal(parameter, before[name][1])
    assert not frozen.requires_grad


def test_gradients_reach_the_pictures_through_a_layer():
    host = convolutions()
    pictures = BATCH.clone().requires_grad_()
    logits = host.run(pictures, "block", lambda tokens: 2 * tokens, grad=True)
    assert torch.autograd.grad(logits.sum(), pictures)[0].abs().sum() > 0


@pytest.mark.parametrize(("make", "layer", "cuts"), PLACES)
@pytest.mark.parametrize("policy", ["all", "token:0"])
def test_many_edits_in_one_pass_equal_single_ones(make, layer, cuts, policy):
    host = make(torch.float32)
    edits = [lambda t: t, torch.zeros_like, lambda t: 9 * t * t - 7, lambda t: t.flip(2)]
    together = host.fan_out(BATCH, layer, edits, policy)
    single = torch.stack([host.logits_with(BATCH, layer, edit, policy) for edit in edits], dim=1)
    torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-5)
    assert host.cuts(layer) is cuts
    assert (single[:, 0] - single[:, 2]).abs().max() > 1e-4


@pytest.mark.parametrize(("make", "layer", "cuts"), PLACES)
def test_a_pass_goes_on_from_stored_tokens(make, layer, cuts):
    host = make(torch.float32)
    tokens = host.tokens(BATCH, [layer])[layer]
    if not cuts:
        with pytest.raises(UserError, match="inside a branch"):
            host.resume(tokens, layer)
        return
    torch.testing.assert_close(host.resume(tokens, layer), host.logits(BATCH), rtol=1e-5, atol=1e-5)
    leaf = tokens.clone().requires_grad_()
    assert torch.autograd.grad(host.resume(leaf, layer, grad=True)[:, 0].sum(), leaf)[0].abs().sum() > 0


def test_an_edit_of_another_shape_is_refused():
    host = convolutions()
    for edit in (lambda t: t[:, :1], lambda t: t[:1]):
        with pytest.raises(ValueError, match="gave"):
            host.fan_out(BATCH, "block", [edit])
        with pytest.raises(ValueError, match="gave"):
            host.logits_with(BATCH, "block", edit)


# ---- what a unit writes ------------------------------------------------------------------------------------------

TOKENS = torch.randn(40, 6, generator=torch.Generator().manual_seed(3)) + 0.2


def sae(norm: str, rule: str = "topk") -> SAE:
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    k = 3 if rule == "topk" else 0
    return SAE(draw(12, 6), draw(12), draw(12, 6), draw(6), Meta(rule=rule, k=k, input_norm=norm))


@pytest.mark.parametrize("norm", ["none", "layer", "unit"])
@pytest.mark.parametrize("rule", ["topk", "relu"])
def test_without_all_latents_the_bias_and_the_error_are_left(norm, rule):
    own = sae(norm, rule)
    project = Projection(sae=own)
    left = TOKENS - sum(project.part(TOKENS, unit) for unit in range(own.latents))
    _, undo = own.normalize(TOKENS)
    error = TOKENS - own(TOKENS)
    torch.testing.assert_close(left, undo(own.b_dec.expand(40, -1)) + error, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("signed", ["positive", "split"])
def test_without_positive_sides_the_negative_ones_are_left(signed):
    project = Projection(signed)
    writes = project.writes(6)
    left = TOKENS - sum(project.part(TOKENS, unit) for unit in range(6))
    torch.testing.assert_close(left, TOKENS.clamp(max=0))
    assert torch.equal(writes[:6], torch.eye(6)) and (signed == "positive" or torch.equal(writes[6:], -torch.eye(6)))


def test_parts_of_a_rotation_add_up_to_the_centred_token():
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64))[0]
    mean = TOKENS.double().mean(0)
    project = Projection("split", rotation.float(), (mean @ rotation).float())
    whole = sum(project.part(TOKENS, unit) for unit in range(12))
    torch.testing.assert_close(whole, TOKENS - mean.float(), rtol=1e-4, atol=1e-5)


def test_a_silent_unit_has_no_part():
    for project in (Projection(), Projection(sae=sae("layer"))):
        acts = project(TOKENS)
        for unit in range(6):
            silent = acts[:, unit] == 0
            assert silent.any() and torch.equal(project.part(TOKENS, unit)[silent], torch.zeros(int(silent.sum()), 6))


def test_a_transcoder_writes_elsewhere():
    own = sae("none")
    own = SAE(**own.tensors(), meta=Meta(rule="topk", k=3, source={"transcoder": True}))
    with pytest.raises(UserError, match="another layer"):
        Projection(sae=own).writes(6)


class Counting(nn.Module):
    """Reads the number of its pictures off the input, as EfficientNet-Lite does before its classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 6, 3, 2)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        images = x.shape[0]
        return self.head(self.block(self.stem(x).relu()).relu().mean((2, 3)).view(images, -1))


def test_a_model_that_counts_its_input_goes_on_from_tokens_all_the_same():
    own = Host(Counting(), Transform(resize=(16, 16)), "counting")
    batch = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert own.cuts("block")
    kept = own.tokens(batch, ["block"])["block"]
    torch.testing.assert_close(own.resume(kept, "block"), own.logits(batch))
    edits = [lambda t: t * 0.5, lambda t: t + 1, lambda t: t]
    many = own.fan_out(batch, "block", edits)
    for n, edit in enumerate(edits):
        torch.testing.assert_close(many[:, n], own.logits_with(batch, "block", edit))
