"""CoSy: planted labels are preferred, wrong ones are not; numbers by brute force; pictures from all three sources."""

import itertools
import json
import math
import sys
from pathlib import PurePosixPath
from types import SimpleNamespace

import cache_world
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import mannwhitneyu
from small_images import coloured

from saelab import cache, images, truth, units
from saelab.acts import columns, dense
from saelab.cli.cosy import _fire
from saelab.errors import UserError
from saelab.evaluate import cosy, generation
from saelab.hosts import Host
from saelab.run.basis import Basis
from saelab.run.stages.cosy import leave_out_black, open_like

TEST = np.arange(100, 400)


@pytest.fixture(scope="module")
def world():
    """400 images of three things; unit u fires on thing u, weakly on others, unit 3 on nothing in particular."""
    generator = torch.Generator().manual_seed(0)
    thing = torch.randint(0, 3, (400,), generator=generator)
    acts = torch.rand(400, 4, generator=generator)
    acts[torch.arange(400), thing] += 0.7
    acts[acts < 0.5] = 0
    names = ["red cup", "blue cup", "dog"]
    stated = truth.from_descriptions([*names, "zebra"], [f"a {names[t]}s" for t in thing.tolist()], [()] * 400)
    return acts, thing, stated, names


def measure(world, labels, acts=None):
    acts = world[0] if acts is None else acts
    distinct = sorted({label for label in labels if label})
    of = cosy.match_descriptions(distinct, world[2], TEST)
    dense = units.UnitActivations(acts, "planted", {}).rows(TEST)
    return cosy.cosy(labels, dense, of, dense, of, world[0][:100].amax(0))


def test_right_labels_are_preferred_and_wrong_ones_are_not(world):
    right = measure(world, ["red cup", "blue cup", "dog", "dog"])
    wrong = measure(world, ["dog", "red cup", "blue cup", "red cup"])
    assert all(row["auc_half"] > 0.85 and row["mad"] > 1 and row["mann_whitney_p"] < 1e-6 for row in right[:3])
    assert all(row["auc_half"] < 0.45 and row["mad"] < 0 for row in wrong[:3])
    assert abs(right[3]["auc_half"] - 0.5) < 0.1


def test_numbers_by_brute_force(world):
    acts, thing, _, _ = world
    row = measure(world, ["dog", None, None, None])[0]  # zeros on both sides
    test = acts[100:, 0].double().numpy()
    a, b = test[thing[100:].numpy() == 2], test[thing[100:].numpy() != 2]
    above, equal = (a[:, None] > b).mean(), (a[:, None] == b).mean()
    assert (row["images"], row["controls"]) == (len(a), len(b))
    assert row["auc_half"] == pytest.approx(above + equal / 2) and row["auc_strict"] == pytest.approx(above)
    assert row["tie_share"] == pytest.approx(equal) and equal > 0
    assert row["mad"] == pytest.approx((a.mean() - b.mean()) / b.std(ddof=1), rel=1e-5)
    assert row["dma"] == pytest.approx(a.mean() / acts[:100, 0].max().item(), rel=1e-5)
    assert row["mann_whitney_p"] == pytest.approx(mannwhitneyu(a, b, method="asymptotic").pvalue)


def test_sparse_activations_give_the_same(world):
    labels = ["red cup", "blue cup", "dog", "red cup"]
    assert measure(world, labels, world[0].to_sparse_csr()) == measure(world, labels)


def test_labels_without_pictures_and_units_without_labels_are_counted_not_zero(world, tmp_path):
    rows = measure(world, ["zebra", None, "dog", "dog"])
    assert all(math.isnan(rows[u][name]) for u in (0, 1) for name in cosy.NUMBERS)
    found = cosy.summarise(rows)
    assert (found["units"], found["unlabelled"], found["without_images"], found["measured"]) == (4, 1, 1, 2)
    assert found["preferred"] == 0.5
    assert found["mean"]["auc_half"] == pytest.approx((rows[2]["auc_half"] + rows[3]["auc_half"]) / 2)
    cosy.write(tmp_path, rows, found)
    assert json.loads((tmp_path / "cosy.jsonl").read_text().splitlines()[0])["auc_half"] is None
    assert cosy.summarise(measure(world, ["zebra", None, None, None]))["preferred"] is None


def test_units_that_do_not_fit_are_refused(world):
    with pytest.raises(UserError, match="3 labels"):
        measure(world, ["dog", "dog", "dog"])


def test_folders_are_matched_as_labels_are(tmp_path):
    pictures = coloured(tmp_path, 9)
    (tmp_path / "red").rename(tmp_path / "Red_Cups")
    pictures = images.load("folder", root=str(tmp_path))
    found = cosy.in_folders(["red cup", "green", "mauve"], pictures)
    assert {pictures.files[i].split("/")[0] for i in found["red cup"]} == {"Red_Cups"} and len(found["red cup"]) == 3
    assert len(found["green"]) == 3 and len(found["mauve"]) == 0


PLAIN = ["jack-o'-lantern", "St. Bernard"]


@pytest.mark.parametrize("label", [*PLAIN, "AC/DC", "what?", "..", "con", ".net", "a" * 300, "dos: A|B"])
def test_pictures_of_any_label_are_written_inside_and_found_again(label, tmp_path):
    (place,) = {PurePosixPath(file) for file in generation.files_of([label], 1)}
    assert len(place.parts) == 2 and not set('<>:"|?*') & set(place.parts[0]) and len(place.parts[0]) < 80
    (tmp_path / "out" / place).parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "out" / place)
    found = cosy.in_folders([label, "AC DC"], images.load("folder", root=str(tmp_path / "out")))
    assert len(found[label]) == 1 and len(found["AC DC"]) == 0
    assert (place.parts[0] == label) == (label in PLAIN)


def test_new_pictures_get_the_activations_that_the_cache_gave_them(tmp_path):
    pictures, host = cache_world.pictures(tmp_path / "pictures", 12), cache_world.host()
    store = cache.write(pictures, host, ["conv"], tmp_path / "runs", workers=0)["conv"]
    for made in (units.neuron(store, tmp_path / "runs"), units.random_rotation(store, tmp_path / "runs")):
        project = units.Projection.load(made.path)
        (found,) = cosy.activations(host, pictures, [("conv", project)], "all", "max", batch_size=5)
        kept = units.UnitActivations.load(made.path)
        expected = kept.acts if kept.acts.layout == torch.strided else kept.acts.to_dense()
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_a_random_hosts_units_see_new_pictures_by_that_host(tmp_path):
    """Two networks of one shape: the units of each get what its own cache gave them, in the order of the bases."""
    pictures, hosts = cache_world.pictures(tmp_path / "pictures", 12), [cache_world.host()]
    other = cache_world.Net()  # of other random weights
    hosts.append(Host(other, hosts[0].transform, "net"))
    found = []
    for place in (1, 0, 1):
        store = cache.write(pictures, hosts[place], ["conv"], tmp_path / "runs", workers=0)["conv"]
        made = [units.neuron, units.neuron, units.random_rotation][len(found)](store, tmp_path / "runs")
        name = f"units {len(found)}"
        found.append(Basis(name, name, "neuron", None, "conv", made, ("own", "random")[place]))
    config = SimpleNamespace(policy="all", pool="max", dtype="float16", batch_size=5, workers=0)
    run = SimpleNamespace(host=hosts[0], random_host=hosts[1], weights="own", config=config)
    for basis, shown in zip(found, _fire(run, found, pictures), strict=True):
        kept = dense(columns(units.UnitActivations.load(basis.units.path).acts))
        torch.testing.assert_close(shown.acts, kept, rtol=2e-3, atol=2e-3)
    own = [shown.acts for shown in _fire(run, found[:2], pictures)]
    assert not torch.allclose(*own, atol=0.1)


def test_of_generated_pictures_as_many_are_measured_as_are_asked_for(tmp_path):
    """More lie there: of a larger count, and of a label that no unit has now."""
    root = tmp_path / "generated"
    for label in ("red cup", "dog", "zebra"):
        (root / label).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / label / f"{i:03}.png")
    own = images.load("folder", root=str(root))
    few = open_like(own, root, generation.files_of(["red cup", "dog", "unpainted"], 2))
    assert few.files == ("dog/000.png", "dog/001.png", "red cup/000.png", "red cup/001.png")
    assert len(cosy.in_folders(["dog", "zebra"], few)["dog"]) == 2 and few.fingerprint != own.fingerprint
    assert open_like(own, root).files == own.files
    for i in range(2, 6):
        (root / "dog" / f"{i:03}.png").unlink()
    again = open_like(own, root, generation.files_of(["red cup", "dog"], 2))
    assert again.fingerprint == few.fingerprint, "what else lies there changes nothing"
    with pytest.raises(UserError, match="no"):
        open_like(own, root, ["wolf/000.png"])


def test_without_diffusers_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install diffusers"):
        generation.generate(["dog"], tmp_path, generation.Generation())


@pytest.fixture(scope="module")
def tiny_diffusion(tmp_path_factory):
    """Stable Diffusion's parts, small and random."""
    diffusers = pytest.importorskip("diffusers", reason="the extra diffusers is not installed")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=2, **blocks
        ),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "sd")
    return folder / "sd"


@pytest.mark.slow
def test_generated_pictures_depend_on_label_and_number_and_survive_a_stop(tiny_diffusion, tmp_path):
    settings = generation.Generation(str(tiny_diffusion), count=2, steps=2)
    root = generation.generate(["dog", "red cup"], tmp_path, settings)
    files = sorted(root.rglob("*.png"))
    assert [str(f.relative_to(root)) for f in files] == [f"{x}/00{i}.png" for x in ("dog", "red cup") for i in (0, 1)]
    before = [np.asarray(Image.open(f)) for f in files]
    assert not any((a == b).all() for i, a in enumerate(before) for b in before[:i])
    files[3].unlink()
    kept = files[0].stat().st_mtime_ns
    assert generation.generate(["dog", "red cup"], tmp_path, settings) == root
    assert (np.asarray(Image.open(files[3])) == before[3]).all() and files[0].stat().st_mtime_ns == kept
    found = cosy.in_folders(["red cup"], images.load("folder", root=str(root)))
    assert len(found["red cup"]) == 2


@pytest.mark.slow
def test_batches_have_the_same_files_and_a_safety_checkers_black_pictures_are_counted(
    tiny_diffusion, tmp_path, monkeypatch
):
    """A checker that blackens every third picture, as Stable Diffusion's does: zeros in place of what it forbids."""
    import diffusers

    one, four = (generation.Generation(str(tiny_diffusion), count=6, steps=2, batch=n) for n in (1, 4))
    roots = [generation.generate(["dog"], tmp_path / str(s.batch), s) for s in (one, four)]
    each = [[np.asarray(Image.open(f), dtype=int) for f in sorted(root.rglob("*.png"))] for root in roots]
    assert [len(own) for own in each] == [6, 6]
    assert all(np.abs(a - b).max() <= 3 for a, b in zip(*each, strict=True))  # the same seeds; other rounding

    count = itertools.count(1)

    def check(self, image, device, dtype):
        flags = [next(count) % 3 == 0 for _ in image]
        return torch.stack([own * (not flag) for own, flag in zip(image, flags, strict=True)]), flags

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "run_safety_checker", check)
    root = generation.generate(["dog"], tmp_path / "checked", one)
    pictures = images.load("folder", root=str(root))
    kept, black = leave_out_black(cosy.in_folders(["dog"], pictures), pictures)
    assert black == {"dog": 2} and len(kept["dog"]) == 4


def test_a_model_that_is_not_there_is_told(tmp_path):
    pytest.importorskip("diffusers", reason="the extra diffusers is not installed")
    with pytest.raises(UserError, match=r"cosy\.model"):
        generation.generate(["dog"], tmp_path, generation.Generation(str(tmp_path / "none")))
