"""Hosts: layers by name, tokens, token policies, splicing; on small models whose right answer is computed by hand."""

import pytest
import torch
from PIL import Image
from torch import nn

from saelab.errors import UserError
from saelab.hosts import Host, Prefix, Transform, load, weights_digest

PLAIN = Transform((8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Residual(nn.Module):
    """A block whose activation is shared (runs twice) and whose last step is functional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        y = self.act(self.norm(self.conv(x)))
        return self.act(x + y), "a word beside it"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.pool, self.head = (
            nn.Conv2d(3, 4, 1),
            Residual(),
            nn.AdaptiveAvgPool2d(1),
            nn.Linear(4, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.block(self.stem(x))
        return self.head(self.pool(torch.tanh(y)).flatten(1))


class Transformer(nn.Module):
    """cls, two registers, 2 x 2 patches; every token says its own number, so that policies can be read off."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        for block in self.blocks:
            nn.init.eye_(block.weight)
            nn.init.zeros_(block.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.patches(x).flatten(2).transpose(1, 2) * 0
        z = torch.cat([p.new_zeros(len(x), 3, 6), p], 1) + torch.arange(7.0)[None, :, None].to(p)
        for block in self.blocks:
            z = block(z)
        return z[:, 0]


@pytest.fixture
def small() -> Host:
    torch.manual_seed(0)
    return Host(Small(), PLAIN, "small")


@pytest.fixture
def transformer() -> Host:
    torch.manual_seed(0)
    return Host(Transformer(), PLAIN, "transformer", Prefix(cls=1, registers=2))


BATCH = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_map_becomes_tokens_row_by_row(small: Host) -> None:
    tokens = small.tokens(BATCH, ["stem"])["stem"]
    expected = small.model.stem(BATCH)
    assert torch.equal(tokens[2, 3 * 8 + 5], expected[2, :, 3, 5])
    assert small.choice("stem").grid == (8, 8)


def test_in_place_activation_behind_a_layer_does_not_change_it(small: Host) -> None:
    block = small.model.block
    before = block.norm(block.conv(small.model.stem(BATCH)))
    tokens = small.tokens(BATCH, ["block.norm"])["block.norm"]
    assert (tokens < 0).any()
    torch.testing.assert_close(tokens, before.flatten(2).transpose(1, 2))


def test_input_of_a_module_reaches_a_functional_activation(small: Host) -> None:
    got = small.tokens(BATCH, ["block", "in:pool"])
    torch.testing.assert_close(got["in:pool"], torch.tanh(got["block"]))


def test_calls_of_a_shared_module_are_told_apart(small: Host) -> None:
    got = small.tokens(BATCH, ["block.act@0", "block.act@1", "block", "stem"])
    assert torch.equal(got["block.act@1"], got["block"])
    assert not torch.equal(got["block.act@0"], got["block"])
    torch.testing.assert_close(got["block"], torch.relu(got["block.act@0"] + got["stem"]))
    with pytest.raises(UserError, match=r"block\.act: runs 2 times in a pass; name one call, block\.act@0 to @1"):
        small.tokens(BATCH, ["block.act"])


def test_a_layer_may_give_a_tuple(small: Host) -> None:
    tokens = small.tokens(BATCH, ["block"])["block"]
    assert torch.equal(tokens, small.model.block(small.model.stem(BATCH))[0].flatten(2).transpose(1, 2))


def test_the_pass_ends_after_the_last_layer(small: Host) -> None:
    ran: list[str] = []
    small.d_in("stem")  # probes now
    small.model.head.register_forward_hook(lambda *_: ran.append("head"))
    small.tokens(BATCH, ["stem", "block"])
    assert not ran
    small.logits(BATCH)
    assert ran == ["head"]


def test_unknown_and_idle_layers_name_real_ones(small: Host) -> None:
    with pytest.raises(UserError, match=r"layer=block\.nrom: no such layer; nearest: block\.norm"):
        small.tokens(BATCH, ["block.nrom"])
    with pytest.raises(UserError, match="never runs"):
        small.tokens(BATCH, ["block.unused"])
    with pytest.raises(UserError, match="covers no layer"):
        small.resolve(["nothing.*"])


def test_wildcards_take_one_part_or_any_number(small: Host) -> None:
    assert small.resolve(["*"]) == ["stem", "block", "pool", "head", "output"]
    assert small.resolve(["block.*"]) == ["block.conv", "block.norm", "block.act@0", "block.act@1"]
    assert set(small.resolve(["**"])) == set(small.resolve(["*", "*.*"]))
    assert all(name.startswith("in:") for name in small.resolve(["in:**"]))
    assert small.resolve(["stem", "st*"]) == ["stem"]


@pytest.mark.parametrize(
    ("policy", "kept", "grid"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6], (2, 2)),
        ("patches", [3, 4, 5, 6], (2, 2)),
        ("cls", [0], None),
        ("no_registers", [0, 3, 4, 5, 6], (2, 2)),
        ("token:2", [2], None),
        ("token:-1", [6], None),
    ],
)
def test_policies_keep_their_tokens(transformer: Host, policy: str, kept: list[int], grid: object) -> None:
    tokens = transformer.tokens(BATCH, ["blocks.1"], policy)["blocks.1"]
    assert tokens[0, :, 0].tolist() == kept
    assert transformer.choice("blocks.1", policy).grid == grid


def test_policies_that_a_layer_cannot_give_are_refused(transformer: Host, small: Host) -> None:
    for host, layer, policy, why in [
        (small, "stem", "cls", "gives a map"),
        (small, "head", "patches", "gives a vector"),
        (transformer, "blocks.1", "token:7", "has tokens 0 to 6"),
        (transformer, "blocks.1", "registers", "unknown"),
        (transformer, "output", "cls", "gives a vector"),
    ]:
        with pytest.raises(UserError, match=why):
            host.tokens(BATCH, [layer], policy)


def test_patch_embedding_has_no_cls_to_drop(transformer: Host) -> None:
    assert transformer.tokens(BATCH, ["patches"], "patches")["patches"].shape == (3, 4, 6)


def test_splice_of_the_same_tokens_changes_nothing_and_of_others_what_it_should(small: Host) -> None:
    logits = small.logits(BATCH)
    for layer in ("stem", "block", "in:pool", "block.act@0", "head"):
        assert torch.equal(small.logits_with(BATCH, layer, lambda tokens: tokens), logits), layer
    zero = small.logits_with(BATCH, "in:pool", torch.zeros_like)
    torch.testing.assert_close(zero, small.model.head.bias.expand(3, 5))
    doubled = small.logits_with(BATCH, "block", lambda tokens: 2 * tokens)
    block = small.model.block(small.model.stem(BATCH))[0]
    torch.testing.assert_close(doubled, small.model.head(torch.tanh(2 * block).mean((2, 3))))
    assert torch.equal(small.logits(BATCH), logits), "a splice must leave nothing behind"


def test_splice_replaces_only_what_the_policy_keeps(transformer: Host) -> None:
    seen = []
    out = transformer.logits_with(BATCH, "blocks.0", lambda t: seen.append(t[0, :, 0].tolist()) or t * 0 - 1, "cls")
    assert seen == [[0.0]]
    assert torch.equal(out, -torch.ones(3, 6))
    kept = transformer.logits_with(BATCH, "blocks.0", lambda t: t * 0 - 1, "patches")
    assert torch.equal(kept, torch.zeros(3, 6))


def test_hooks_are_gone_after_an_error(small: Host) -> None:
    with pytest.raises(ZeroDivisionError):
        small.logits_with(BATCH, "stem", lambda tokens: 1 / 0)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in small.model.modules()]
    assert sum(hooks) == 0


def test_channels_last_maps_are_told_by_the_width_of_the_last_weights() -> None:
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.back = nn.Conv2d(3, 6, 1), nn.LayerNorm(6), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.conv(x).permute(0, 2, 3, 1))
            return self.back(y.permute(0, 3, 1, 2))

    host = Host(ChannelsLast(), PLAIN, "last")
    got = host.tokens(BATCH, ["norm", "back", "conv"])
    assert [host.d_in(name) for name in ("conv", "norm", "back")] == [6, 6, 6]
    assert torch.equal(got["norm"], got["back"])


def test_batch_second_sequences() -> None:
    class Second(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(2).permute(2, 0, 1)).mean(0)

    host = Host(Second(), PLAIN, "second")
    tokens = host.tokens(BATCH, ["linear"])["linear"]
    assert tokens.shape == (3, 64, 4)
    torch.testing.assert_close(tokens, host.model.linear(BATCH.flatten(2).transpose(1, 2)))
    assert torch.equal(host.logits_with(BATCH, "linear", lambda t: t), host.logits(BATCH))


def test_another_dtype_is_fed_its_own(small: Host) -> None:
    wide = small.tokens(BATCH, ["block"])["block"]
    narrow = Host(small.model.to(torch.bfloat16), PLAIN, "small")
    tokens = narrow.tokens(BATCH, ["block"])["block"]
    assert tokens.dtype == torch.bfloat16
    assert narrow.recipe["dtype"] == "bfloat16"
    assert (tokens.float() - wide).abs().max() < 0.1


def test_a_model_that_fails_says_so_in_one_line() -> None:
    host = Host(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), PLAIN, "flat")
    with pytest.raises(UserError, match=r"host=flat: fails on a batch \[2, 3, 8, 8\]") as error:
        host.layers()
    assert "\n" not in str(error.value)


def test_outputs_that_change_width_are_refused(small: Host) -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.flatten(2)).mean(1)

    host = Host(Grows(), PLAIN, "grows")
    assert host.d_in("inner") == 64
    with pytest.raises(UserError, match="an image before"):
        host.tokens(torch.randn(2, 3, 4, 4), ["inner"])


def test_digest_is_of_names_shapes_and_bytes() -> None:
    model = nn.Linear(3, 2)
    before = weights_digest(model)
    assert before == weights_digest(model)
    with torch.no_grad():
        model.weight[0, 0] = torch.nextafter(model.weight[0, 0], torch.tensor(9.0))
    assert weights_digest(model) != before


def test_transform_by_hand() -> None:
    picture = Image.new("RGB", (4, 2), (10, 20, 30))
    transform = Transform((2, 2), mean=(1, 2, 3), std=(1, 2, 4), scale=1.0, channels="BGR")
    assert transform(picture)[:, 0, 0].tolist() == [29.0, 9.0, 1.75]
    assert Transform(6, (4, 4)).size == (4, 4)
    padded = Transform((2, 2), (4, 3), mean=(0, 0, 0), std=(1, 1, 1), scale=1.0)(picture)
    assert padded.shape == (3, 4, 3)
    assert padded[0].tolist() == [[0, 0, 0], [10, 10, 0], [10, 10, 0], [0, 0, 0]]


def test_transform_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UserError, match=r"transform\.crp=3: unknown; known: resize"):
        Transform(8).override({"crp": 3})
    with pytest.raises(UserError, match="bicubik"):
        Transform(8, interpolation="bicubik")
    with pytest.raises(UserError, match="std above 0"):
        Transform(8, std=(0.0, 1.0, 1.0))
    assert Transform(**Transform(8, (4, 4)).spec) == Transform(8, (4, 4))


def test_a_random_network_keeps_its_signal_and_depends_on_its_seed_alone():
    """Without statistics for its batch norms the last block of this network gives under 1e-6 everywhere."""
    pytest.importorskip("efficientnet_lite_pytorch")
    batch = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, same, other = (load("efficientnet_lite0", weights="random", seed=s) for s in (0, 0, 1))
    deep = first.tokens(batch, ["_blocks.15"])["_blocks.15"]
    spread = deep.std(dim=(0, 1))  # of each channel, over pictures and places
    assert 0.05 < float(spread.median()) < 20
    assert torch.equal(deep, same.tokens(batch, ["_blocks.15"])["_blocks.15"])
    assert first.digest == same.digest != other.digest
    assert not any(m.training for m in first.model.modules())
