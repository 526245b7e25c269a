"""Hosts from every library, with random weights: each library's own transform and forward pass is the reference."""

from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from torch.nn.functional import normalize

from saelab import encoders, hosts
from saelab.errors import UserError
from saelab.hosts import Prefix
from saelab.hosts.huggingface import processor_transform, read_processor

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth picture with an edge; smooth, so that resizing is the only thing that could differ."""
    y, x = np.mgrid[0:300, 0:401]
    bands = np.stack([128 + 120 * np.sin(x / 30), 128 + 120 * np.cos(y / 25), 255.0 * (x > y)], axis=-1)
    return Image.fromarray(bands.astype(np.uint8))


def same(ours: torch.Tensor, theirs: torch.Tensor, step: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= step


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_timm(name: str, picture: Image.Image) -> None:
    from timm.data import create_transform, resolve_model_data_config

    host = hosts.load(f"timm:{name}", weights="random")
    same(host.transform(picture), create_transform(**resolve_model_data_config(host.model))(picture))
    batch = host.load_images([picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    with torch.no_grad():
        features = host.model.forward_features(batch)
    if features.ndim == 3:
        assert host.prefix == Prefix(cls=1)
        last = host.tokens(batch, ["norm"], "patches")["norm"]
        torch.testing.assert_close(last, features[:, 1:])
    else:
        last = host.tokens(batch, ["in:global_pool"])["in:global_pool"]
        torch.testing.assert_close(last, features.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("mode", ["center", "squash", "border", "one to come"])
def test_timms_ways_to_crop(mode: str, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model("resnet10t")
    model.pretrained_cfg = model.pretrained_cfg | {"crop_mode": mode, "crop_pct": 0.8}
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    if mode in ("center", "squash"):
        host = hosts.load("timm:resnet10t", weights="random")
        same(host.transform(picture), create_transform(**resolve_model_data_config(model))(picture))
        return
    with pytest.raises(UserError, match=f"mode {mode}, .*use module: with a Transform"):
        hosts.load("timm:resnet10t", weights="random")


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32"])
def test_torchvision(name: str, picture: Image.Image) -> None:
    from torchvision.models import get_model_weights

    host = hosts.load(f"torchvision:{name}", weights="random")
    same(host.transform(picture), get_model_weights(name)["DEFAULT"].transforms()(picture))
    batch = host.load_images([picture])
    layer, policy = ("layer4", "all") if name == "resnet18" else ("encoder.ln", "cls")
    tokens = host.tokens(batch, [layer], policy)[layer]
    with torch.no_grad():
        head = host.model.fc if name == "resnet18" else host.model.heads
        torch.testing.assert_close(head(tokens.mean(1)), host.logits(batch))


@pytest.mark.parametrize("name", ["ViT-S-32-alt", "RN50"])
def test_open_clip(name: str, picture: Image.Image) -> None:
    import open_clip

    host = hosts.load(f"open_clip:{name}", weights="random", seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=None, load_weights=False)
    same(host.transform(picture), transform(picture))
    drawn, reference = dict(host.model.named_parameters()), dict(model.visual.named_parameters())
    assert drawn.keys() == reference.keys() and all(torch.equal(drawn[k], reference[k]) for k in drawn)
    model.visual.load_state_dict(host.model.state_dict())  # the batch norms' statistics, which `settle` has set
    batch = host.load_images([picture])
    with torch.no_grad():
        expected = model.eval().encode_image(batch.to(memory_format=host.memory_format))
    torch.testing.assert_close(host.logits(batch), expected)


def saved(folder: Path, kind: str) -> str:
    """A small configuration, saved as a hub's folder would be."""
    import transformers as tf

    made = {
        "vit": lambda: tf.ViTConfig(**VISION, architectures=["ViTForImageClassification"]),
        "dinov2_registers": lambda: tf.Dinov2WithRegistersConfig(
            **VISION | {"image_size": 28, "patch_size": 14}, num_register_tokens=4
        ),
        "clip": lambda: tf.CLIPConfig(vision_config=VISION, text_config=TEXT),
        "siglip": lambda: tf.SiglipConfig(vision_config=VISION, text_config=TEXT),
        "resnet": lambda: tf.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            architectures=["ResNetForImageClassification"],
        ),
        "llava": lambda: tf.LlavaConfig(
            vision_config=tf.CLIPVisionConfig(**VISION), text_config=tf.LlamaConfig(**TEXT, vocab_size=100)
        ),
    }[kind]()
    made.save_pretrained(folder / kind)
    return f"transformers:{folder / kind}"


@pytest.mark.parametrize(
    ("kind", "layer", "prefix"),
    [
        ("vit", "vit.layers.1", Prefix(1)),
        ("dinov2_registers", "encoder.layer.1", Prefix(1, 4)),
        ("clip", "vision_model.encoder.layers.1", Prefix(1)),
        ("siglip", "encoder.layers.1", Prefix()),
        ("resnet", "resnet.encoder.stages.3", Prefix()),
        ("llava", "encoder.layers.1", Prefix(1)),
    ],
)
def test_transformers_vision_models_and_towers(kind: str, layer: str, prefix: Prefix, tmp_path: Path) -> None:
    host = hosts.load(saved(tmp_path, kind), weights="random")
    assert host.prefix == prefix
    batch = torch.randn(2, 3, *host.transform.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = host.model(pixel_values=batch, output_hidden_states=True).hidden_states
    if kind == "resnet":
        expected = states[-1].flatten(2).transpose(1, 2)
    else:
        expected = states[2][:, len(prefix) :]
    torch.testing.assert_close(host.tokens(batch, [layer], "patches")[layer], expected)
    assert torch.equal(host.logits_with(batch, layer, lambda t: t), host.logits(batch))
    usual = [found.name for found in host.usual_layers()]
    assert layer in usual or kind == "resnet"


def test_transformers_folder_with_weights_and_processor(tmp_path: Path, picture: Image.Image) -> None:
    import transformers as tf

    model = tf.ViTForImageClassification(tf.ViTConfig(**VISION, num_labels=3)).eval()
    processor = tf.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3)
    model.save_pretrained(tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")
    host = hosts.load(f"transformers:{tmp_path / 'vit'}")
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    same(host.transform(picture), theirs[0], step=2.5 / 255 / 0.5)  # tensors are resized there, pictures here
    with torch.no_grad():
        torch.testing.assert_close(host.logits(theirs), model(pixel_values=theirs).logits)


@pytest.mark.parametrize("kind", ["transformers_clip", "open_clip", "siglip"])
def test_a_layer_holds_the_encoders_own_image_vectors(kind: str, tmp_path: Path, picture: Image.Image) -> None:
    """`visual_projection`, `output`, `head`: what scripts cache for SAEs in the space of texts."""
    if kind == "siglip":
        tiny_clip.siglip(tmp_path, 2)
    else:
        getattr(tiny_clip, kind)(tmp_path, 24)  # not what the tower's own settings would have
    name = f"open_clip:local-dir:{tmp_path}" if kind == "open_clip" else f"transformers:{tmp_path}"
    layer = {"transformers_clip": "visual_projection", "open_clip": "output", "siglip": "head"}[kind]
    host, encoder = hosts.load(name), encoders.load(name)
    pixels = encoder.transform(picture)[None]
    tokens = host.tokens(pixels, [layer])[layer]
    assert tokens.shape == (1, 1, encoder.d_text)
    torch.testing.assert_close(normalize(tokens[:, 0], dim=-1), encoder.embed_batch(pixels)["images"])
    same(host.transform(picture)[None], pixels, step=2.5 / 255 / 0.25)


def test_an_open_clip_folder_without_its_weights_is_refused(tmp_path: Path) -> None:
    tiny_clip.open_clip(tmp_path)
    name = f"open_clip:local-dir:{tmp_path}"
    drawn = hosts.load(name, weights="random", seed=5)
    assert drawn.digest != hosts.load(name).digest
    with pytest.raises(UserError, match="carries its own weights"):
        hosts.load(name, weights=tmp_path / "other.pt")
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="is out of reach"):
        hosts.load(name)


def test_processor_settings(picture: Image.Image) -> None:
    picture = picture.resize((450, 300))  # a side whose centre crop needs no rounding: they round it down
    import transformers as tf

    for processor in (
        tf.CLIPImageProcessor(),
        tf.BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3),
        tf.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
        tf.SiglipImageProcessor(),
    ):
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
        ours = processor_transform(processor.to_dict())(picture)
        assert ours.shape == theirs.shape
        spread = float(max(processor.image_std))
        assert (ours - theirs).abs().mean() < 1.0 / 255 / spread, type(processor).__name__


LIKE_THEIRS = (
    ("CLIPImageProcessor", {"size": {"shortest_edge": 235}}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}),
    ("SiglipImageProcessor", {"size": {"height": 384, "width": 384}}),
    ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 0}),
    ("DeiTImageProcessor", {}),
    ("DINOv3ViTImageProcessor", {}),
    ("BitImageProcessor", {"size": {"shortest_edge": 256}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("EfficientNetImageProcessor", {"include_top": False}),
)


@pytest.mark.parametrize(("kind", "settings"), LIKE_THEIRS)
def test_a_processor_that_its_settings_describe_is_taken(kind: str, settings: dict, picture: Image.Image) -> None:
    import transformers as tf

    processor = getattr(tf, kind)(**settings)
    theirs = processor(picture.resize((600, 300)), return_tensors="pt")["pixel_values"][0]
    ours = read_processor(processor, "x")(picture.resize((600, 300)))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 3.0 / 255 / float(max(processor.image_std))


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        ("LevitImageProcessor", {}, "more than its settings say"),
        ("EfficientNetImageProcessor", {}, "more than its settings say"),
        ("PPLCNetImageProcessor", {}, "more than its settings say"),
        ("PerceiverImageProcessor", {}, r"makes \[3, 224, 224\]"),
        ("TextNetImageProcessor", {}, r"makes \[3, 640, 864\]"),
        ("Qwen2VLImageProcessor", {}, "of a picture, its settings read as"),
        ("GLPNImageProcessor", {}, "KeyError: 'size'"),
        ("Siglip2ImageProcessor", {}, "KeyError: 'size'"),
        ("SuperPointImageProcessor", {}, "KeyError: 'image_mean'"),
        ("CLIPImageProcessor", {"size": {"longest_edge": 224}}, "no Transform's"),
        ("ImageGPTImageProcessor", {}, "fails on a picture"),
    ],
)
def test_a_processor_that_does_more_than_its_settings_say_is_refused(
    kind: str, settings: dict, why: str, tmp_path: Path
) -> None:
    import transformers as tf

    tf.ViTConfig(**VISION).save_pretrained(tmp_path)
    getattr(tf, kind)(**settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{why}.*use module: with a Transform") as error:
        hosts.load(f"transformers:{tmp_path}", weights="random")
    assert "\n" not in str(error.value)


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (hosts.load("timm:resnet10t", weights="random", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert one.digest == two.digest != other.digest
    assert "random, seed 0" in one.name


def test_weights_from_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = hosts.load("timm:resnet10t", weights="random", seed=7)
    save_file(source.model.state_dict(), str(tmp_path / "w.safetensors"))
    torch.save({"state_dict": source.model.state_dict()}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        assert hosts.load("timm:resnet10t", weights=tmp_path / file).digest == source.digest
    with pytest.raises(UserError, match=r"Missing key.*give the weights of this model"):
        hosts.load("torchvision:resnet18", weights=tmp_path / "w.pth")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="unreadable"):
        hosts.load("timm:resnet10t", weights=tmp_path / "cut.safetensors")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="unreadable"):
        hosts.load("timm:resnet10t", weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_own_module_and_torchscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "import torch\nfrom saelab.hosts import Transform\n"
        "def net(): return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())\n"
        "def with_transform(): return net(), Transform(16)\n"
        "def nothing(): return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    host = hosts.load("module:my_nets:net", transform={"resize": 8, "crop": [6, 6]})
    assert host.transform.size == (6, 6)
    assert [layer.shape for layer in host.layers("1")] == [(4, 4, 4)]
    assert hosts.load("module:my_nets:with_transform").transform.size == (16, 16)
    with pytest.raises(UserError, match="gave a int"):
        hosts.load("module:my_nets:nothing")
    with pytest.raises(UserError, match="can't be imported"):
        hosts.load("module:my_nets:absent")
    torch.jit.trace(host.model, torch.zeros(1, 3, 6, 6)).save(str(tmp_path / "net.pt"))
    script = hosts.load(f"torchscript:{tmp_path / 'net.pt'}", transform={"resize": 6, "crop": [6, 6]})
    batch = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(script.tokens(batch, ["output"])["output"], host.tokens(batch, ["output"])["output"])
    with pytest.raises(UserError, match="never runs"):
        script.tokens(batch, ["net.0"])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nonesuch", "known: timm:<name>"),
        ("timm:resnt50", "timm has no such model"),
        ("torchvision:resnt50", "nearest: resnet50"),
        ("open_clip:ViT-B-33", "nearest: ViT-B"),
        ("open_clip:ViT-B-32", "add one: ViT-B-32/"),
        ("torchscript:absent.pt", "can't be read"),
    ],
)
def test_unknown_names_say_what_there_is(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        hosts.load(name)
    assert "\n" not in str(error.value)


def test_unknown_device_and_dtype() -> None:
    with pytest.raises(UserError, match="dtype=float8: unknown"):
        hosts.load("timm:resnet10t", weights="random", dtype="float8")
    with pytest.raises(UserError, match="device=abc: not usable"):
        hosts.load("timm:resnet10t", weights="random", device="abc")
