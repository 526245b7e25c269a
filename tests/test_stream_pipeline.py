"""A run whose activations are never stored: the same units, exemplars and labels as from a cache, file by file."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_images import coloured
from torch import nn

import saelab
from saelab import cache, hosts
from saelab.artifacts import read_json
from saelab.report import maps
from saelab.run.config import RunConfig, StreamSettings
from saelab.sae import SAE

WORDS = ["red", "green", "blue", "grey"]
SMALL = {"latents": 24, "expansion": None, "k": 4, "lr": 1e-3, "train": {"batch_size": 128, "epochs": 2}}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 6, 3, stride=4), nn.Conv2d(6, 10, 3, stride=2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))).mean((2, 3))


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saelab.sae.summary.draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A maker of pipelines over the same pictures and host."""
    folder = tmp_path_factory.mktemp("streamed")
    coloured(folder / "pictures", 60)
    vectors = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)

    def made(root: str, layers=("first", "second"), **more) -> saelab.Pipeline:
        shared = {
            "images": folder / "pictures",
            "host": Net(),
            "transform": {"resize": [32, 32]},
            "layers": list(layers),
            "embeddings": {"images": vectors[:60], "labels": vectors[60:]},
            "vocabulary": WORDS,
            "scorer": ["pearson"],
            "label": {"nulls": 20, "mining": {"k": 4, "rule": "host"}},
            "root": str(folder / root),
            "batch_size": 8,
            "workers": 0,
            "device": "cpu",
            "sae": SMALL,
            "seeds": [0, 1],
            "bases": ["neuron", "sae", "random_rotation"],
        }
        return saelab.Pipeline(**(shared | more))

    return made


@pytest.fixture(scope="module")
def streamed(make):
    return make("streamed", stream={"pictures": 12}, also=["sae.k=2"])


def test_all_layers_seeds_and_variants_train_in_one_pass(streamed, make, monkeypatch):
    calls = []
    inner = saelab.run.stages.sae.fit_layers

    def fit_layers(streams, configs, *given, **more):
        calls.append({layer: [(c.k, c.seed) for c in own] for layer, own in configs.items()})
        return inner(streams, configs, *given, **more)

    monkeypatch.setattr("saelab.run.stages.sae.fit_layers", fit_layers)
    saes = [basis for basis in streamed.bases if basis.sae is not None]
    every = [(4, 0), (4, 1), (2, 0), (2, 1)]
    assert calls == [{"first": every, "second": every}]
    assert [(b.layer, read_json(b.sae.path / "recipe.json")["sae"]["k"]) for b in saes] == [
        (layer, k) for k in (4, 2) for layer in ("first", "second") for _ in (0, 1)
    ]
    for basis in saes:
        recipe = read_json(basis.sae.path / "recipe.json")
        assert (
            recipe["stream"] == {"superblocks": 12, "mixed": 13}
            and recipe["cache"] == streamed.caches[basis.layer].digest
        )
        facts = read_json(basis.sae.path / "training.json")["data"]
        assert (facts["superblocks"], facts["superblock_pictures"]) == (12, 3)
        assert facts["moments"] == "of the first 36 pictures"
        assert read_json(basis.sae.path / "quality.json")["fvu"] < 1
    again = make("streamed", stream={"pictures": 12}, also=["sae.k=2"])
    assert all(b.sae is None or b.sae.reused for b in again.bases) and len(calls) == 1


def test_crops_are_of_the_training_alone_and_stand_in_its_recipes(streamed, make):
    cropped = make("streamed", stream={"pictures": 12, "crop": "random"}, bases=["neuron", "sae"], seeds=[0])
    said = {"crop": "random: 8% to 100% of the area, aspect 3:4 to 4:3, 50% mirrored"}
    whole = {(basis.layer, basis.kind): basis for basis in reversed(streamed.bases)}
    for basis in cropped.bases:
        other = whole[basis.layer, basis.kind]
        if basis.kind == "neuron":
            assert basis.units.reused and basis.units.path == other.units.path, "of whole pictures"
            continue
        assert read_json(basis.sae.path / "recipe.json")["stream"] == {"superblocks": 12, "mixed": 13} | said
        assert said.items() <= read_json(basis.sae.path / "training.json")["data"].items()
        assert basis.sae.path != other.sae.path
        tokens = [read_json(b.sae.path / "quality.json")["tokens"] for b in (basis, other)]
        assert tokens[0] == tokens[1]


def test_units_exemplars_and_labels_are_those_from_a_cache(streamed, make):
    trained = SAE.load(next(b.sae.path for b in streamed.bases if b.kind == "sae" and b.layer == "second"))
    own = {"layers": ["second"], "sae": trained}
    live, stored = make("unstored", stream=True, **own), make("stored", **own)
    for a, b in zip(live.labelled, stored.labelled, strict=True):
        for one, other in ((a.units, b.units), (a.exemplars, b.exemplars), (a.labels, b.labels)):
            assert one.path.name == other.path.name
            files = sorted(p.relative_to(other.path) for p in other.path.rglob("*") if p.is_file())
            assert [p for p in files if p.suffix != ".jsonl"], "there is something to compare"
            for file in files:
                if file.name != "complete.json":
                    assert (one.path / file).read_bytes() == (other.path / file).read_bytes(), file
    assert not (live.root / "activations").exists() and (stored.root / "activations").is_dir()


def test_a_report_computes_the_maps_of_a_streamed_run_by_its_host(tmp_path):
    images = coloured(tmp_path / "pictures", 12)
    given = {"name": "module:cache_world:Net", "weights": "random", "transform": {"resize": [15, 15]}}
    config = RunConfig.of({"stream": True, "host": given})
    wanted = cache.recompute(images, hosts.load(**given), ["conv"], tmp_path)["conv"].digest
    run = SimpleNamespace(facts={"config": config.record()}, images=images, path=tmp_path / "run.json")
    basis = SimpleNamespace(layer="conv", name="neuron", recipes={"units": {"cache": wanted}})
    seen: maps.Stores = {}
    found = maps._cache(run, basis, seen)
    assert found is not None and found.digest == wanted and maps._cache(run, basis, seen) is found
    assert maps._cache(SimpleNamespace(**vars(run) | {"facts": {"config": {"stream": None}}}), basis, {}) is None
    basis.recipes["units"]["cache"] = "another"
    assert maps._cache(run, basis, seen) is None


def test_settings_that_can_not_be_used_are_refused(make, tmp_path):
    assert RunConfig().stream is None and RunConfig.of({"stream": False}).stream is None
    assert RunConfig.of({"stream": True}).stream == StreamSettings()
    assert RunConfig.of(json.loads(json.dumps(RunConfig.of({"stream": True}).record()))).stream == StreamSettings()
    for given, message in (
        ({"stream": 512}, r"stream=512: expected true, false or settings"),
        ({"stream": {"picture": 3}}, r"stream\.picture=3: there is no such setting; did you mean pictures"),
        ({"stream": {"pictures": 3}}, r"stream\.pictures=3: expected a whole number of at least 4"),
        ({"stream": {"crop": "centre"}}, r"stream\.crop=centre: unknown; known: random; leave it out for whole"),
        ({"stream": {"crop": True}}, r"stream\.crop=True: expected"),
        ({"stream": {"crop": "random"}, "arrays": {"activations": "x.npy"}}, "no host that could compute"),
        ({"stream": True, "arrays": {"activations": "x.npy"}}, r"no host that could compute arrays\.activations"),
    ):
        with pytest.raises(saelab.UserError, match=message):
            RunConfig.of(given)
    own = {"stream": {"crop": "random"}, "transform": lambda image: torch.zeros(3, 32, 32)}
    with pytest.raises(saelab.UserError, match="transform=a callable: resizes and cuts in its own way"):
        _ = make("refused", **own).caches
    made = saelab.Pipeline(activations=torch.rand(20, 4).numpy(), stream=True, root=str(tmp_path))
    with pytest.raises(saelab.UserError, match="no host that could compute your arrays"):
        _ = made.caches
