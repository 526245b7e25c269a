"""`saelab.Pipeline`: a caller's own model, arrays, words and SAEs, in a folder, without Hydra."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_clip
import torch
from small_images import coloured
from torch import nn

import saelab
from saelab.images import ImageSet
from saelab.images.rows import rows
from saelab.run.config import RunConfig
from saelab.run.presets import preset
from saelab.sae import SAE, SAEConfig, TrainConfig, fit

QUICK = {"label": {"nulls": 20, "mining": {"k": 4}}, "seeds": [0], "workers": 0, "device": "cpu"}
SMALL_SAE = {"latents": 24, "expansion": None, "k": 4, "train": {"batch_size": 32, "epochs": 2}}
WORDS = ["red", "green", "blue", "grey"]


class Net(nn.Module):
    """A CNN of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 12, 3, stride=2)

    def forward(self, x):
        return self.second(self.first(x).relu()).relu().mean((2, 3))


def arrays(images: int = 120, d: int = 12):
    """Activations that four concepts drive, and image vectors near their concept's word."""
    rng = np.random.default_rng(0)
    concept = np.arange(images) % len(WORDS)
    acts = rng.random((images, d)).astype(np.float32) * 0.2
    acts[np.arange(images), concept * 3] += 1.0
    words = rng.normal(size=(len(WORDS), 16))
    return acts, words[concept] + 0.3 * rng.normal(size=(images, 16)), words, [WORDS[c] for c in concept]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A tiny CLIP in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.open_clip(folder)
    return f"open_clip:local-dir:{folder}"


@pytest.fixture(scope="module")
def from_arrays(tmp_path_factory):
    acts, images, words, classes = arrays()
    return saelab.Pipeline(
        activations=acts,
        embeddings={"images": images, "labels": words},
        vocabulary=WORDS,
        classes=classes,
        sae=SMALL_SAE,
        root=str(tmp_path_factory.mktemp("arrays")),
        **QUICK,
    )


def test_arrays_alone_go_from_activations_to_a_comparison(from_arrays):
    table = from_arrays.labels["neuron"].table()
    assert list(table["unit"]) == list(range(12)) and {"label", "score", "truth_r"} <= set(table.columns)
    named = table[table["unit"].isin([0, 3, 6, 9])]
    assert list(named["label"]) == WORDS and (named["truth_r"] > 0.8).all()
    assert from_arrays.units["neuron"].acts.shape == (120, 12)
    assert set(from_arrays.evaluations["neuron"].table()["scorer"]) >= set(RunConfig().scorer)
    assert "arrays" in from_arrays.comparison.verdict
    assert from_arrays.saes["sae seed 0"].W_dec.shape == (24, 12)


def test_names_cover_one_basis_or_all_of_a_kind(from_arrays):
    assert set(from_arrays.labels) == {"neuron", "sae seed 0", "random rotation"}
    assert from_arrays.labels["SAE features"].table().equals(from_arrays.labels["sae"].table())
    with pytest.raises(saelab.UserError, match="basis=neurn: is not in this run; did you mean neuron"):
        from_arrays.labels["neurn"]


WRONG = {
    "encoder=int: expected a name, settings or a saelab.encoders.Encoder": {"encoder": 3},
    "sae=3: expected settings, a preset's name, or SAEs": {"sae": 3},
    "label=pearson: expected settings; for example label={'final': ...}": {"label": "pearson"},
    "compare=yes: expected settings": {"compare": "yes"},
    "proposer=7: expected a name or settings": {"proposer": 7},
    "groups=['a']: expected settings": {"groups": ["a"]},
    "vocabulary=3: entry 1 is no word": {"vocabulary": ["red", 3, "blue", "grey"]},
    "vocabulary=None: entry 3 is no word": {"vocabulary": ["red", "green", "blue", None]},
    "vocabulary=' ': entry 0 is no word": {"vocabulary": [" ", "green", "blue", "grey"]},
    "label.final=summed_evidence: is not among the scorers; add it to scorer, or": {
        "label": {"final": "summed_evidence"}
    },
    "label.final=pearsn: is not among the scorers; did you mean pearson": {"label": {"final": "pearsn"}},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_setting_and_no_object_is_answered_in_a_line(message, tmp_path):
    acts, images, words, classes = arrays()
    own = {"activations": acts, "embeddings": {"images": images, "labels": words}, "vocabulary": WORDS}
    with pytest.raises(saelab.UserError) as caught:
        _ = saelab.Pipeline(**own | {"classes": classes, "root": str(tmp_path)} | QUICK | WRONG[message]).labels
    assert str(caught.value).startswith(message) and len(str(caught.value).splitlines()) == 1


def test_text_names_a_proposer_as_it_names_a_host(tmp_path):
    acts, images, words, _ = arrays()
    own = {"activations": acts, "embeddings": {"images": images, "labels": words}, "vocabulary": WORDS}
    assert saelab.Pipeline(**own, proposer="none", root=str(tmp_path)).config.proposer.name == "none"


def test_arrays_without_pictures_and_vectors_say_what_is_missing(tmp_path):
    made = saelab.Pipeline(activations=arrays()[0], vocabulary=WORDS, proposer="none", root=str(tmp_path), **QUICK)
    with pytest.raises(saelab.UserError, match="rows of arrays, without pictures to look at; give their vectors too"):
        _ = made.labels


def test_a_report_needs_pictures(from_arrays):
    with pytest.raises(saelab.UserError, match="no pictures to show"):
        from_arrays.report()
    record = json.loads(from_arrays.save().read_text())  # the run itself is kept
    kept = ImageSet.read(from_arrays.root / record["images"])
    assert kept.files == from_arrays.images.files and kept.sizes == () and len(kept) == 120


def test_a_model_of_ones_own_on_a_folder(encoder, tmp_path):
    coloured(tmp_path / "pictures", 60, size=32)
    transform = {"resize": [32, 32]}
    own = {"images": tmp_path / "pictures", "layers": ["second"], "encoder": encoder}
    settings = {"sae": SMALL_SAE, "vocabulary": WORDS, "root": str(tmp_path / "runs"), "scorer": ["pearson"], **QUICK}
    made = saelab.Pipeline(host=Net(), transform=transform, **own, **settings)
    assert made.caches["second"].d_in == 12
    shown = made.labels["sae"].show(3)
    assert len(shown) == 3 and "data:image/jpeg" in shown._repr_html_()
    index = made.report()
    assert index.is_file()
    again = saelab.Pipeline(host=Net(), transform=transform, **own, **settings)
    assert all(basis.labels.reused for basis in again.labelled)

    def torchvision_like(picture):
        return torch.from_numpy(np.asarray(picture.resize((32, 32)), dtype=np.float32)).permute(2, 0, 1) / 255

    called = saelab.Pipeline(host=Net(), transform=torchvision_like, **own, **settings)
    assert called.caches["second"].d_in == 12 and called.host.digest == made.host.digest


def test_an_sae_trained_elsewhere_is_a_basis(tmp_path):
    acts, images, words, classes = arrays()
    sae = fit(acts, SAEConfig(12, 20, k=3), TrainConfig(batch_size=32, epochs=2), progress=False).sae
    sae.save(tmp_path / "mine.safetensors")
    settings = {"activations": acts, "embeddings": {"images": images, "labels": words}, "vocabulary": WORDS, **QUICK}
    settings |= {"classes": classes, "scorer": ["pearson"], "bases": ["neuron", "sae"], "root": str(tmp_path / "runs")}
    for given in (sae, tmp_path / "mine.safetensors"):
        made = saelab.Pipeline(sae=given, **settings)
        assert list(made.labels) == ["neuron", "sae"]
        assert torch.equal(made.saes["sae"].W_dec, SAE.load(tmp_path / "mine.safetensors").W_dec)
    with pytest.raises(saelab.UserError, match="sae=12: the layer's tokens have 8"):
        _ = saelab.Pipeline(sae=sae, **(settings | {"activations": acts[:, :8]})).units


SLIPS = {
    "pol": ("mean", r"pol=mean: there is no such setting; did you mean pool"),
    "pool": ("avg", r"pool=avg: unknown; .*known: max"),
    "batch_size": ("x", r"batch_size=x: expected a whole number"),
    "bases": (["neurons"], r"bases=neurons: unknown; did you mean neuron"),
    "label": ({"mining": {"kk": 3}}, r"label\.mining\.kk=3: there is no such setting"),
    "sae": ("matroshka", r"sae=matroshka: unknown; did you mean matryoshka"),
    "host": ("timm:resnet18", r"layers=None: a host needs them"),
    "compare": ({"alpha": "small"}, r"compare\.alpha=small: expected a number"),
    "also": (["k=8"], r"also=k=8: is no setting of an SAE"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_names_the_nearest_setting(slip, tmp_path):
    value, message = SLIPS[slip]
    with pytest.raises(saelab.UserError, match=message):
        saelab.Pipeline(root=str(tmp_path), **{slip: value}).check()


def test_what_cannot_work_is_known_before_any_work(encoder, tmp_path):
    coloured(tmp_path / "pictures", 40, size=32)
    base = {"images": tmp_path / "pictures", "transform": {"resize": [32, 32]}, "root": str(tmp_path / "runs")}
    base |= {"vocabulary": WORDS, "encoder": encoder, **QUICK}
    for more, message in (
        ({"layers": ["secnd"]}, "secnd"),
        ({"layers": ["second"], "sae": {"latents": 8, "expansion": None, "k": 9}}, r"k=9"),
        ({"layers": ["second"], "policy": "cls"}, "cls"),
        ({"layers": ["second"], "scorer": ["persn"]}, "scorer=persn: unknown"),
    ):
        with pytest.raises(saelab.UserError, match=message):
            _ = saelab.Pipeline(host=Net(), **base, **more).labels
    assert not (tmp_path / "runs" / "activations").exists() and not (tmp_path / "runs" / "embeddings").exists()


def test_defaults_are_those_of_the_configs():
    """conf/pipeline.yaml, as Hydra composes it, describes the same run as RunConfig without arguments.

    The quickstart also measures what units do, which an object does when asked (`p.effects`).
    """
    from hydra import compose, initialize_config_dir

    from saelab.cli.edge import plain
    from saelab.run.presets import folder

    with initialize_config_dir(str(folder()), version_base="1.3"):
        made = RunConfig.of(plain(compose("quickstart")))
    own = RunConfig()
    assert (made.effects, own.effects) == ("auto", None)
    made = dataclasses.replace(made, effects=None)
    for name in vars(own):
        if name not in ("images", "proposer", "sae"):
            assert getattr(made, name) == getattr(own, name), name
    assert made.sae == own.sae == preset("sae", "quickstart")
    assert made.proposer.name == own.proposer.name and made.images["source"] == own.images["source"]


def test_a_config_survives_its_record():
    config = RunConfig.of({"pool": "mean", "seeds": 3, "proposer": {"name": "openai", "model": "m", "units": "top:3"}})
    assert RunConfig.of(config.record()) == config and config.seeds == (3,)


def test_rows_share_their_splits_by_group():
    images = rows(60, groups=[i // 3 for i in range(60)], seed=1)
    assert all(len({images.splits[i] for i in range(g * 3, g * 3 + 3)}) == 1 for g in range(20))
    with pytest.raises(saelab.UserError, match="captions=2 entries"):
        rows(3, captions=["a", "b"])
