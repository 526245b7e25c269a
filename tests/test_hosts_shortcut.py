"""The short cut to a layer: what comes before it does not run again, and the answers keep their bits."""

from types import SimpleNamespace

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


def long_way(host: Host, layer: str, tokens: torch.Tensor, grad: bool = False) -> torch.Tensor:
    kept, host.one_size = host.one_size, False
    try:
        return resume(host, tokens, layer, grad)
    finally:
        host.one_size = kept


def both(host: Host, layer: str, tokens: torch.Tensor, grad: bool = False):
    """Answers by the short cut and the long way."""
    return resume(host, tokens, layer, grad), long_way(host, layer, tokens, grad)


@pytest.mark.parametrize(("make", "layer"), CUTS)
def test_answers_and_gradients_keep_their_bits(make, layer):
    host = make()
    tokens = tokens_of(host, layer)
    for _ in range(3):  # what stands in for the modules is not worked on in place
        short, long = both(host, layer, tokens)
        assert _before(host, layer) and torch.equal(short, long)
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


class Odd(nn.Module):
    """A stem, a block and a head, between which something odd happens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Keeps(nn.Module):
    """Keeps a number of what it saw, for whoever asks later."""

    def __init__(self, what) -> None:
        super().__init__()
        self.what, self.kept = what, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.what(x)
        return x


class Remembers(Odd):
    """Its answer depends on a number that its first module took of the pictures that it saw last."""

    def __init__(self, what) -> None:
        super().__init__()
        self.look = Keeps(what)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.look(x)) * self.look.kept


class PerPicture(Odd):
    """Joins the block's answer with something that a module before it made for each picture."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = Expands()
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.queries(len(x))
        return self.head(torch.cat([self.block(self.stem(x)).mean((2, 3)), queries], 1))


class Views(Odd):
    """Shapes the block's answer by a number of pictures that a module before it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.look = Keeps(lambda count: count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.look(len(x))
        return self.head(self.block(self.stem(x)).mean((2, 3)).view(self.look.kept, -1))


class Expands(nn.Module):
    def forward(self, count: int) -> torch.Tensor:
        return torch.ones(1, 4).expand(count, -1)


class Boxed(Odd):
    """Its stem gives an object, on whose tensor the model works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Boxes(self.stem)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        box = self.stem(x)
        box.x += 1
        return self.head(self.block(box.x).mean((2, 3)))


class Boxes(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(x=self.inner(x))


class Guarded(nn.Conv2d):
    """Nobody may set its forward."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "forward":
            raise AttributeError(name)
        super().__setattr__(name, value)


def guarded() -> Odd:
    model = Odd()
    model.stem = Guarded(3, 4, 1)
    return model


def scripted() -> Odd:
    model = Odd()
    model.stem = torch.jit.script(model.stem)
    return model


MODELS = {
    "of a size": lambda: Remembers(lambda x: x.shape[-1]),
    "of a number of pictures": Views,
    "something for each picture": PerPicture,
    "an object": Boxed,
    "forward can't be set": guarded,
    "scripted": scripted,
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_to_be_trusted_goes_the_long_way(name):
    """Whatever a model does before the layer, its answers are those without a short cut, and nothing is raised."""
    host = Host(MODELS[name](), PLAIN, name)
    for images in (2, 1, 3, 7):
        tokens = tokens_of(host, "block", images)
        assert torch.equal(*both(host, "block", tokens))
        leaf = tokens.clone().requires_grad_()
        assert torch.equal(*(torch.autograd.grad(x.sum(), leaf)[0] for x in both(host, "block", leaf, grad=True)))
        if name != "something for each picture":
            host.logits(torch.randn(images + 1, 3, 4, 4))
            assert torch.equal(*both(host, "block", tokens)), "after pictures of another size"


def test_a_short_cut_is_of_one_dtype():
    host = CUTS[0][0](torch.float32)
    tokens = tokens_of(host, "block")
    resume(host, tokens, "block")
    host.model.double()
    assert torch.equal(*both(host, "block", tokens.double())) and len(host._before) == 2


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
    assert {type(module) for module in _before(host, "block")} >= {nn.ReLU, nn.Conv2d}


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
