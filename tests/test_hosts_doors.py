"""What comes with a host from outside: tokens by the model's own facts, weights in wrappers, own factories."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from saelab import hosts
from saelab.errors import UserError
from saelab.hosts import Host, Prefix, Transform, open_clip_names
from saelab.hosts.tokens import prefix_of

PLAIN = Transform((8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BATCH = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """2 x 2 patches behind the tokens that its parameters say; every token is its own number."""

    def __init__(self, **learnt: tuple[int, ...]) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 6, 4, 4), nn.Identity()
        before = [shape for name, shape in learnt.items() if name != "mask_token"]  # it stands for patches, in training
        self.extra = sum(shape[-2] if len(shape) > 1 else 1 for shape in before)
        for name, shape in learnt.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2) * 0
        z = torch.cat([patches.new_zeros(len(x), self.extra, 6), patches], 1)
        return self.block(z + torch.arange(z.shape[1])[None, :, None])[:, 0]


@pytest.mark.parametrize(
    ("learnt", "stated", "expected"),
    [
        ({}, {}, Prefix()),
        ({"cls_token": (1, 1, 6)}, {}, Prefix(1)),
        ({"class_embedding": (6,)}, {}, Prefix(1)),
        ({"cls_token": (1, 1, 6), "register_tokens": (1, 4, 6)}, {}, Prefix(1, 4)),
        ({"cls_token": (1, 1, 6), "storage_tokens": (1, 4, 6)}, {}, Prefix(1, 4)),
        ({"cls_token": (1, 2, 6)}, {}, Prefix(1, 1)),  # PiT, distilled
        ({"reg_token": (1, 4, 6)}, {"num_prefix_tokens": 4, "has_class_token": False}, Prefix(0, 4)),
        ({"reg_token": (1, 1, 6)}, {"num_prefix_tokens": 1}, Prefix(0, 1)),
        ({"cls_token": (1, 1, 6), "dist_token": (1, 1, 6)}, {"num_prefix_tokens": 2}, Prefix(1, 1)),
        ({"mask_token": (1, 1, 6)}, {}, Prefix()),
        ({"cls_token1": (1, 1, 6), "cls_token2": (1, 1, 6)}, {}, Prefix(known=False)),  # CoaT
        ({"cls_token_0": (1, 1, 6), "cls_token_1": (1, 1, 12)}, {}, Prefix(known=False)),  # CrossViT
    ],
)
def test_the_prefix_follows_from_the_models_own_facts(learnt: dict, stated: dict, expected: Prefix) -> None:
    model = Tokens(**learnt)
    for name, value in stated.items():
        setattr(model, name, value)
    assert prefix_of(model) == expected
    host = Host(model, PLAIN, "tokens")
    assert host.prefix == expected
    if not expected.known:
        for policy in ("patches", "no_registers", "cls"):
            with pytest.raises(UserError, match="extra tokens"):
                host.choice("block", policy)
        assert host.choice("block").tokens == 4 + model.extra
        return
    kept = host.tokens(BATCH, ["block"], "patches")["block"][0, :, 0]
    assert kept.tolist() == list(range(model.extra, model.extra + 4))


def test_a_register_is_no_class_token() -> None:
    model = Tokens(reg_token=(1, 4, 6))
    model.num_prefix_tokens, model.has_class_token = 4, False
    host = Host(model, PLAIN, "registers")
    with pytest.raises(UserError, match="no cls token"):
        host.choice("block", "cls")
    assert host.choice("block", "no_registers").index == (4, 5, 6, 7)


def net(outputs: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs))


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "door_nets.py").write_text(
        "from test_hosts_doors import PLAIN, net\nfrom saelab.hosts import Prefix\n"
        "def plain(): return net()\n"
        "def full(): return net(), PLAIN, Prefix(cls=1)\n"
        "def raises(): return {}['weights']\n"
        "def composed(): return net(), lambda image: image\n"
        "def nothing(): return ()\n"
    )
    (tmp_path / "door_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "module:door_nets:"


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "model.module.", "module._orig_mod."]
)
@pytest.mark.parametrize("outputs", [5, 3])
def test_wrappers_names_and_heads_of_another_size_load_with_a_line(prefix, outputs, factory, tmp_path, caplog) -> None:
    source = net(outputs)
    torch.save({prefix + n: t for n, t in source.state_dict().items()}, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING, "saelab"):
        host = hosts.load(f"{factory}full", weights=tmp_path / "w.pth")
    torch.testing.assert_close(host.logits(BATCH), source(BATCH))
    assert (repr(prefix) in caplog.text) == bool(prefix)
    assert ("has 3 outputs, not 5" in caplog.text) == (outputs == 3)


def test_weights_of_another_model_and_damaged_ones_are_refused(factory, tmp_path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5))
    torch.save(other.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="give the weights of this model"):
        hosts.load(f"{factory}full", weights=tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    for content in (whole[:-100], b"", b"junk", b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(UserError) as error:
            hosts.load(f"{factory}full", weights=tmp_path / "w.pth")
        assert "\n" not in str(error.value) and "pickle" not in str(error.value)


def test_factories_get_one_line(factory, caplog) -> None:
    for name, why in [
        ("raises", r"raised KeyError: 'weights' \(door_nets.py, line 5\)"),
        ("composed", "expected .Module, saelab.hosts.Transform"),
        ("nothing", "must give a torch.nn.Module"),
    ]:
        with pytest.raises(UserError, match=why) as error:
            hosts.load(factory + name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        hosts.load("module:door_broken:net")
    with caplog.at_level(logging.WARNING, "saelab"):
        hosts.load(f"{factory}plain")
    assert "gives no Transform" in caplog.text
    assert hosts.load(f"{factory}full").prefix == Prefix(cls=1)


def test_a_compiled_model_is_looked_into_as_what_it_wraps() -> None:
    plain = Host(net(), PLAIN, "net")
    whole = Host(torch.compile(net(), backend="eager"), PLAIN, "net")
    inner = net()
    inner[0] = torch.compile(inner[0], backend="eager")
    in_place = net()
    in_place.compile(backend="eager")
    for host in (whole, Host(in_place, PLAIN, "net"), Host(nn.DataParallel(net()), PLAIN, "net")):
        assert host.digest == plain.digest and host.resolve(["**"]) == plain.resolve(["**"])
    for host in (whole, Host(inner, PLAIN, "net"), Host(in_place, PLAIN, "net")):
        assert torch.equal(host.tokens(BATCH, ["1"])["1"], plain.tokens(BATCH, ["1"])["1"])
        assert torch.equal(
            host.logits_with(BATCH, "1", lambda t: t * 0), plain.logits_with(BATCH, "1", lambda t: t * 0)
        )


def test_layers_list_the_containers_that_people_name() -> None:
    usual = {layer.name: layer.usual for layer in hosts.load("timm:resnet10t", weights="random").usual_layers()}
    assert {"layer3", "layer4"} <= {name for name, why in usual.items() if why in ("stage output", "block output")}


def test_open_clip_files_take_their_architectures_preprocessing(tmp_path) -> None:
    import open_clip

    file = tmp_path / "w.pt"
    file.touch()
    for architecture in ("MobileCLIP2-S0", "ViT-B-16-SigLIP", "ViT-B-32"):
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        tag = [t for t in tags if not open_clip.get_pretrained_cfg(architecture, t).get("quick_gelu")][-1]
        known = open_clip.get_pretrained_cfg(architecture, tag)
        for name in (f"{architecture}/{file}", f"{architecture}/{tag}@{file}", architecture):
            found = open_clip_names.parse(name, "host").preprocess
            assert found is not None and all(found[key] == known[key] for key in found) and "mean" in found
    with pytest.raises(UserError, match="name the tag too"):
        open_clip_names.parse(f"ViT-L-14/{file}", "encoder")
    assert open_clip_names.parse(f"ViT-L-14/laion2b_s32b_b82k@{file}", "encoder").preprocess["mean"] == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="neither a file nor a tag"):
        open_clip_names.parse("ViT-B-32/absent.pt", "encoder")
    with pytest.raises(UserError, match=r"QuickGELU.*use open_clip:ViT-B-32-quickgelu/openai"):
        open_clip_names.parse("ViT-B-32/openai", "encoder")
