"""The short cut to a layer: what comes before it does not run again, and the answers keep their bits."""

import pytest
import torch
from test_effects_host import PLACES, PLAIN
from torch import nn

from saelab.hosts import Host
from saelab.hosts.shortcut import Recorder
from saelab.hosts.splice import _before, resume

CUTS = [place[:2] for place in PLACES if place[2]]


def tokens_of(host: Host, layer: str, images: int = 3) -> torch.Tensor:
    pictures = torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    return host.tokens(pictures, [layer])[layer].clone()


def both(host: Host, layer: str, tokens: torch.Tensor, grad: bool = False):
    """Answers by the short cut and the long way."""
    short = resume(host, tokens, layer, grad)
    kept, host._before[layer] = host._before[layer], {}
    try:
        return short, resume(host, tokens, layer, grad)
    finally:
        host._before[layer] = kept


@pytest.mark.parametrize(("make", "layer"), CUTS)
def test_answers_and_gradients_keep_their_bits(make, layer):
    host = make()
    tokens = tokens_of(host, layer)
    for _ in range(3):  # what stands in for the modules is not worked on in place
        short, long = both(host, layer, tokens)
        assert host._before[layer] and torch.equal(short, long)
    leaf = tokens.clone().requires_grad_()
    found = [torch.autograd.grad(answer.square().sum(), leaf)[0] for answer in both(host, layer, leaf, grad=True)]
    assert torch.equal(*found) and found[0].abs().sum() > 0
    plain = [host.logits(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))) for _ in range(2)]
    assert torch.equal(*plain) and not any("forward" in vars(module) for module in host.model.modules())


def test_nothing_before_the_layer_runs_again():
    host = CUTS[0][0]()
    tokens = tokens_of(host, "block")
    resume(host, tokens, "block")
    ran = []
    for name, module in host.model.named_modules():
        forward = module.forward
        module.forward = lambda *a, own=name, go=forward, **k: (ran.append(own), go(*a, **k))[1]  # as others wrap
    resume(host, tokens, "block")
    assert ran == ["", "last", "act", "pool", "head"]
    assert all("forward" in vars(module) for module in host.model.modules()), "wrappers stay"


class Sized(nn.Module):
    """Its answer depends on the size of the picture that its first module saw last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        self.pad = Keeps()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(self.pad(x)))
        return self.head(x.mean((2, 3))) * self.pad.size


class Keeps(nn.Module):
    size = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.size = x.shape[-1]
        return x


def test_a_model_that_keeps_something_of_what_it_saw_goes_the_long_way():
    """Its stem would not be asked again, so that it answered by the size of another picture."""
    host = Host(Sized(), PLAIN, "sized")
    tokens = tokens_of(host, "block")
    expected = resume(host, tokens, "block")
    assert _before(host, "block") == {}
    host.logits(torch.randn(1, 3, 4, 4))
    assert torch.equal(resume(host, tokens, "block"), expected)


class Twice(nn.Module):
    """One activation in two places, before the layer and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.stem, self.block = nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.stem(x))
        x += 1.0
        return self.head(self.act(self.block(x)).mean((2, 3)))


def test_a_module_that_is_called_on_both_sides_is_left_out_on_one():
    torch.manual_seed(0)
    host = Host(Twice(), PLAIN, "twice")
    tokens = tokens_of(host, "block")
    for _ in range(2):
        short, long = both(host, "block", tokens)
        assert torch.equal(short, long)
    assert {type(module) for module in host._before["block"]} >= {nn.ReLU, nn.Conv2d}


def test_a_recorder_keeps_outermost_modules_and_stops_at_the_layer():
    host = CUTS[0][0](torch.float32)
    recorder = Recorder()
    model = host.model
    with recorder.watching(model), torch.inference_mode():
        handle = model.last.register_forward_pre_hook(lambda module, args: recorder.stop())
        model(torch.zeros(1, 3, 8, 8))
        handle.remove()
    assert list(recorder.found) == [model.stem, model.block], "not what ran inside the block"
    assert Recorder().found == {} and not model.stem._forward_hooks
