"""Channels last where that is faster and gives the same; pictures as they came to whoever would fail or read amiss."""

import pytest
import torch
from torch import Tensor, nn

from saelab import hosts
from saelab.hosts.transform import Transform


class Net(nn.Module):
    """Two convolutions; `end` makes the answer of their map. Notes how each batch lay."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.ReLU())
        self.end, self.last = end, list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.last.append(x.is_contiguous(memory_format=torch.channels_last))
        y = self.body(x)
        if self.end == "view":  # fails where channels lie last
            return y.view(len(y), -1)
        if self.end == "constant":  # tells nothing of what lies before
            return y.flatten(1) * 0
        if self.end == "as it lies":  # gives another answer there
            return y.as_strided((len(y), y[0].numel()), (y[0].numel(), 1))
        return y.flatten(1)


def host_of(end: str) -> tuple[hosts.Host, Net]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(end)
    return hosts.Host(net, Transform(16, None), "net"), net


@pytest.mark.parametrize(
    ("end", "last"), [("flatten", True), ("view", False), ("as it lies", False), ("constant", False)]
)
def test_the_layout_is_the_one_that_a_model_bears(end: str, last: bool):
    host, net = host_of(end)
    batch = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        wanted = net(batch)
    net.last.clear()
    torch.testing.assert_close(host.logits(batch), wanted)
    assert net.last[-1] == last
    tokens = host.tokens(batch, ["body.2"])["body.2"]
    assert net.last[-1] == last and tokens.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(tokens, net.body[:3](batch).flatten(2).transpose(1, 2))
    if end != "constant":  # there no layer can be seen to cut the graph
        torch.testing.assert_close(host.resume(tokens, "body.2"), wanted)


def test_who_looks_first_into_a_layer_sees_one_pass():
    """Trying the layout is no pass that a hook counts: names stand for one call, and taps are not run into."""
    host, net = host_of("flatten")
    assert [layer.name for layer in host.layers()] == ["body.0", "body.1", "body.2", "body.3", "body", "output"]
    calls = len(net.last)
    host.tokens(torch.randn(2, 3, 16, 16), ["body.2"])
    host.logits(torch.randn(2, 3, 16, 16))
    assert len(net.last) == calls + 2


@pytest.mark.parametrize("change", ["bfloat16", "one convolution"])
def test_others_get_pictures_as_they_came(change: str):
    host, net = host_of("flatten")
    if change == "bfloat16":
        net.bfloat16()
    else:
        net.body = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU()).eval()
    host.logits(torch.randn(2, 3, 16, 16))
    assert net.last == [False] * len(net.last)


def test_a_model_that_moves_gets_what_its_new_place_takes():
    host, net = host_of("flatten")
    batch = torch.randn(2, 3, 16, 16)
    for dtype, last in ((torch.float32, True), (torch.bfloat16, False), (torch.float32, True)):
        net.to(dtype)
        host.logits(batch)
        assert net.last[-1] == last
