"""What comes with a host from outside: tokens by the model's own facts, weights in wrappers, own factories."""

import dataclasses
import json
import logging
import math
from pathlib import Path

import numpy as np
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


class Restless(nn.Module):
    """Gives its map; a share of it is drawn anew in each pass, where `share` is above 0."""

    def __init__(self, share: float, convolutions: int = 1) -> None:
        super().__init__()
        made = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)][:convolutions]
        self.body, self.share, self.passes = nn.Sequential(*made), share, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        y = self.body(x)
        return y if self.share == 0 else torch.dropout(y, self.share, True)


@pytest.mark.parametrize("convolutions", [1, 2])
def test_a_model_that_is_random_in_evaluation_mode_is_refused(convolutions: int) -> None:
    host = Host(Restless(0.3, convolutions), PLAIN, "net")
    with pytest.raises(UserError, match=r"host=net: gives one batch another answer each time.*randomness") as error:
        host.layers()
    assert "\n" not in str(error.value)
    calm = Host(Restless(0, convolutions), PLAIN, "net")
    assert calm.layers()
    assert calm.model.passes == (2 if convolutions == 1 else 3)  # two for the layout tell as well as one more


def test_answers_that_are_no_numbers_are_no_randomness() -> None:
    model = Restless(0)
    with torch.no_grad():
        model.body[0].bias[0] = float("nan")
    assert Host(model, PLAIN, "net").layers()


def test_vit_mae_is_refused_and_says_why(tmp_path: Path) -> None:
    import transformers as tf

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    tf.ViTMAEConfig(**sizes, image_size=32, patch_size=8).save_pretrained(tmp_path)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="another answer each time"):
        hosts.load(f"transformers:{tmp_path}", weights="random").usual_layers()


CHANGES = {
    "in place": lambda m: m.body[0].weight.normal_(),
    "another tensor": lambda m: setattr(m.body[0], "weight", nn.Parameter(torch.randn(4, 3, 3, 3))),
    "another tensor's data": lambda m: setattr(m.body[0].weight, "data", torch.randn(4, 3, 3, 3)),
    "a buffer": lambda m: m.norm.running_mean.add_(1),
    "a state dict": lambda m: m.load_state_dict({n: t + 1 for n, t in m.state_dict().items()}),
    "a step of training": lambda m: step(m),
}


def step(model: nn.Module) -> None:
    with torch.enable_grad():
        model(BATCH).sum().backward()
    torch.optim.Adam(model.parameters()).step()


class Learner(nn.Module):
    """Works something out before its body that no picture changes, and uses it behind."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Linear(1, 4)
        self.body, self.norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift = self.shift(x.new_ones(1, 1))
        return self.norm(self.body(x)).mean((2, 3)) + shift


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_follows_the_weights(change: str) -> None:
    host = Host(Learner(), PLAIN, "net")
    before, recipe = host.digest, host.recipe
    host.logits(BATCH)
    host.model.to("cpu", torch.float32)
    assert host.digest == before and host.recipe == recipe
    with torch.no_grad():
        CHANGES[change](host.model)
    assert host.recipe != recipe and host.digest == hosts.weights_digest(host.model) != before


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_step_of_training_changes_the_digest(kind: type[torch.optim.Optimizer], fused: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    host = Host(model, PLAIN, "net")
    before = host.digest
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    kind(model.parameters(), lr=0.1, fused=fused).step()
    assert host.digest == hosts.weights_digest(model) != before


def test_a_write_that_torch_does_not_count_changes_the_digest() -> None:
    host = Host(Learner(), PLAIN, "net")
    before = host.digest
    host.model.shift.weight.data.mul_(2)
    assert host.digest == hosts.weights_digest(host.model) != before


def test_answers_of_whole_numbers_are_answers() -> None:
    class Codes(Learner):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x).argmax(1)

    assert Host(Codes(), PLAIN, "net").tokens(BATCH, ["body"])["body"].shape[0] == len(BATCH)


def test_what_goes_on_from_a_layer_goes_on_with_the_weights_of_now() -> None:
    host = Host(Learner(), PLAIN, "net")
    tokens = host.tokens(BATCH, ["body"])["body"]
    torch.testing.assert_close(host.resume(tokens, "body"), host.logits(BATCH))
    with torch.no_grad():
        host.model.norm.weight.mul_(3)
        host.model.shift.bias.add_(1)
    torch.testing.assert_close(host.resume(tokens, "body"), host.logits(BATCH))


def test_weights_in_inference_mode_have_a_digest() -> None:
    with torch.inference_mode():
        host = Host(Learner(), PLAIN, "net")
    assert host.digest == hosts.weights_digest(host.model)


def test_a_host_keeps_its_digest_in_another_dtype() -> None:
    wide, narrow = (hosts.load("timm:resnet10t", weights="random", dtype=dtype) for dtype in (None, "bfloat16"))
    assert wide.digest == narrow.digest and wide.recipe != narrow.recipe


@pytest.mark.parametrize("part", ["", "body.1"])
def test_a_model_in_training_mode_is_refused(part: str) -> None:
    host = Host(Learner(), PLAIN, "net")
    before = host.model.norm.running_mean.clone()
    host.model.get_submodule(part).train()
    for ask in (lambda: host.tokens(BATCH, ["body"]), lambda: host.logits(BATCH), host.layers):
        with pytest.raises(UserError, match=r"host=net: is in training mode.*call its eval\(\) first"):
            ask()
    assert torch.equal(host.model.norm.running_mean, before)
    host.model.eval()
    assert host.layers()
    host.model.eval()
    host.logits(BATCH)


class Aliases(nn.Module):
    """Every part has a second name; an activation runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.features, self.act = self.body, self.body[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.features(x) - 1).mean((2, 3))


def test_a_module_under_several_names_is_taken_under_each() -> None:
    host = Host(Aliases(), PLAIN, "net")
    names = host.resolve(["**", "in:**"])
    assert {"body", "features", "body.0", "features.0", "act@0", "body.1@0", "in:features", "in:body"} <= set(names)
    found = host.tokens(BATCH, names)
    for name in names:
        assert torch.equal(found[name], host.tokens(BATCH, [name])[name]), name
    assert torch.equal(found["body"], found["features"]) and torch.equal(found["act@1"], found["features.1@1"])
    assert not torch.equal(found["act@0"], found["act@1"])


WHOLE = Transform(256, (224, 224))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"crop": 224}, {"crop": (224, 224)}),
        ({"resize": 256.0}, {"resize": 256}),
        ({"resize": np.int64(256), "crop": np.array([224, 224])}, {}),
        ({"resize": [256.0, np.float32(128)]}, {"resize": (256, 128)}),
        ({"mean": np.array([0.5, 0.5, 0.5]), "std": torch.ones(3)}, {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)}),
        ({"scale": np.float64(0.5)}, {"scale": 0.5}),
    ],
)
def test_a_transforms_numbers_are_taken_as_what_they_mean(given: dict, meant: dict) -> None:
    made = WHOLE.override(given)
    assert made == dataclasses.replace(WHOLE, **meant)
    assert Transform(**json.loads(json.dumps(made.spec))) == made


AMISS = [None, True, "224", 0, -3, 2.5, math.nan, math.inf, [], [8], [8, 8, 8], [8, 0], [[8, 8]], {}, {"a": 1}, b"ab"]


FINE = {("crop", "None"), ("mean", "[8, 8, 8]"), ("std", "[8, 8, 8]"), ("mean", "[1, 1, 0]"), ("scale", "2.5")}


@pytest.mark.parametrize("field", ["resize", "crop", "mean", "std", "scale", "interpolation", "channels"])
def test_a_transforms_other_values_are_a_line(field: str) -> None:
    for value in [*AMISS, np.array(2.5), object(), ["a", "b", "c"], [1, 2, math.nan], [1, 1, 0]]:
        if (field, str(value)) in FINE:
            continue
        with pytest.raises(UserError, match=rf"transform\.{field}=") as error:
            WHOLE.override({field: value})
        assert "\n" not in str(error.value)
