"""Attention heads as units: found in each library's models, one direction each, and taken out as they write."""

import numpy as np
import pytest
import torch
from small_images import coloured

import saelab
from saelab import cache, hosts, units
from saelab.effects.ablate import Active
from saelab.errors import UserError


def dinov2(folder) -> str:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**size)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return f"transformers:{folder}"


def projection_of(host: hosts.Host) -> str:
    """The input of the last attention's output projection, by its usual names."""
    ends = ("attn.proj", "attention.output.dense", "attention.o_proj")
    return "in:" + [name for name, module in host.model.named_modules() if name.endswith(ends)][-1]


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> hosts.Host:
    return hosts.load(dinov2(tmp_path_factory.mktemp("dinov2")))


def test_heads_are_counted_by_each_library(host):
    assert host.heads(projection_of(host)) == 4
    timm = hosts.load("timm:vit_tiny_patch16_224", weights="random")
    assert timm.heads("in:blocks.3.attn.proj") == 3


def test_what_goes_into_queries_holds_no_heads(host):
    queries = [f"in:{name}" for name, _ in host.model.named_modules() if name.endswith(("query", "q_proj"))]
    for layer in queries:
        with pytest.raises(UserError, match="does not hold the outputs"):
            host.heads(layer)
    assert queries


@pytest.mark.parametrize("layer", ["blocks.3", "blocks.3.attn.proj", "in:blocks.3.attn.qkv", "in:blocks.3.mlp.fc2"])
def test_other_layers_have_none(layer):
    with pytest.raises(UserError, match=r"bases=heads: .* does not hold the outputs of attention heads"):
        hosts.load("timm:vit_tiny_patch16_224", weights="random").heads(layer)


def test_a_heads_direction_is_where_it_varies_and_the_rare_side_is_positive(tmp_path):
    """Four heads of six coordinates; each says one thing now and then, along a direction of its own."""
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(4, 6))
    planted /= np.linalg.norm(planted, axis=1, keepdims=True)
    says = rng.random((400, 3, 4)) < 0.1
    tokens = 0.1 * rng.normal(size=(400, 3, 4, 6)) + 2.0 * says[..., None] * planted + rng.normal(size=(4, 6))
    store = cache.adopt(tokens.reshape(400, 3, 24).astype(np.float32), tmp_path)
    made = units.heads(store, tmp_path, 4)
    project = units.Projection.load(made.path)
    assert project.directions.shape == (24, 4)
    for head in range(4):
        direction = project.directions[:, head].view(4, 6)
        assert float(direction[head] @ torch.from_numpy(planted[head]).float()) > 0.99  # the sign, too
        assert direction.norm() == pytest.approx(1) and direction[head].norm() == pytest.approx(1)
    acts = units.UnitActivations.load(made.path).acts.numpy()
    spoken = says.any(1)
    assert all(acts[spoken[:, h], h].min() > acts[~spoken[:, h], h].max() for h in range(4))


def test_without_a_heads_part_the_others_are_as_they_were(host):
    layer = projection_of(host)
    batch = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    tokens = host.tokens(batch, [layer])[layer].float()
    mean = tokens.mean((0, 1)).view(4, 8, 1)
    directions = torch.block_diag(*torch.nn.functional.normalize(mean, dim=1))
    project = units.Projection("positive", directions, torch.zeros(4))
    without = Active.of(project, tokens).without(2, project.writes(32)[2])
    changed = (without - tokens).abs().amax((0, 1)).view(4, 8).amax(1)
    assert (changed[[0, 1, 3]] == 0).all() and changed[2] > 0


def test_a_run_labels_heads_beside_neurons_and_refuses_other_layers_first(host, tmp_path):
    coloured(tmp_path / "pictures", 40, size=28)
    encoder = tmp_path / "clip"
    import tiny_clip

    tiny_clip.open_clip(encoder)
    given = {"images": tmp_path / "pictures", "host": host, "encoder": f"open_clip:local-dir:{encoder}"}
    given |= {"vocabulary": ["red", "green", "blue"], "root": str(tmp_path / "runs"), "bases": ["neuron", "heads"]}
    given |= {"label": {"nulls": 20, "mining": {"k": 4}}, "scorer": ["pearson"], "workers": 0, "device": "cpu"}
    made = saelab.Pipeline(layers=[projection_of(host)], **given)
    assert len(made.labels["heads"].table()) == 4 and len(made.labels["neuron"].table()) == 32
    with pytest.raises(UserError, match=r"bases=heads: encoder\.layer\.1 does not hold"):
        _ = saelab.Pipeline(layers=["encoder.layer.1"], **given).labels
    with pytest.raises(UserError, match="bases=heads: arrays don't say where heads end"):
        _ = saelab.Pipeline(activations=np.ones((40, 32), np.float32), **given | {"host": None}).labels
