"""What artifacts are known by: recipes stay as they were, so that nobody's caches are lost when code moves.

Each recipe is written out here as it was when its stage got its `code`; a change of a recipe changes this file.
"""

import numpy as np
import pytest
from small_images import coloured

import saelab
from saelab.artifacts import digest, read_json
from saelab.compare import Settings
from saelab.evaluate.painters import Generation
from saelab.label.proposal import answers_digest
from saelab.label.series import group_images
from saelab.run.record import write
from saelab.run.stages.cosy import CosySettings, labels_of, measure_labels
from saelab.sae import SAEConfig

WORDS = ["red", "green", "blue", "grey"]
SEED, SMALL = 3, {"latents": 24, "expansion": None, "k": 4, "lr": 1e-3, "train": {"batch_size": 32, "epochs": 2}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run from arrays on forty pictures, with a proposer that has its answers in a file."""
    folder = tmp_path_factory.mktemp("recipes")
    coloured(folder / "pictures", 60, size=32)
    (folder / "answers.jsonl").write_text('{"unit": 0, "raw": "{\\"concepts\\": [\\"crimson\\"]}"}\n')
    rng = np.random.default_rng(0)
    return saelab.Pipeline(
        images=folder / "pictures",
        activations=rng.random((60, 12)).astype(np.float32),
        encoder="open_clip:ViT-B-32/random",
        vocabulary="classes",
        sae=SMALL,
        scorer=["pearson"],
        label={"nulls": 20, "mining": {"k": 4}},
        proposer={"name": "recorded", "answers": str(folder / "answers.jsonl"), "units": "0"},
        seeds=[SEED],
        root=str(folder / "runs"),
        bases=["neuron", "sae", "pca", "random_rotation"],
        workers=0,
        device="cpu",
        truth="exact",
    )


def recipe(artifact) -> dict:
    """What the folder says, after a look at its name."""
    found = read_json(artifact.path / "recipe.json")
    assert artifact.path.name.rpartition("-")[2] == digest(found)[:10]
    return found


def test_units_and_saes(made):
    cache = made.caches["arrays"]
    shared = {"stage": "units", "code": 2, "cache": cache.digest, "pool": "max", "signed": "positive"}
    of = {basis.kind: basis for basis in made.bases}
    assert recipe(of["neuron"].units) == shared | {"basis": "neuron"}
    assert recipe(of["pca"].units) == shared | {"basis": "pca"}
    assert recipe(of["random_rotation"].units) == shared | {"basis": "random_rotation", "seed": 0}
    sae = recipe(of["sae"].sae)
    assert (sae["stage"], sae["code"], sae["cache"]) == ("sae", 5, cache.digest) and len(sae) == 5
    config = SAEConfig(12, 24, k=4, lr=1e-3, seed=SEED)
    added = {
        "frozen",
        "encoder_length",
        "choose_by_piece",
        "dead_share",
        "precision",
    }  # they enter only where they are set
    before = set(vars(config)) - added
    assert set(sae["sae"]) == before and sae["sae"]["seed"] == SEED and sae["train"]["batch_size"] == 32
    weights = saelab.artifacts.file_digest(of["sae"].sae.path / "sae.safetensors")
    assert recipe(of["sae"].units) == shared | {"basis": "sae", "sae": weights}


def test_exemplars_proposals_labels(made):
    basis = made.labelled[0]
    mining = {"k": 4, "rule": "below_mean", "reuse": True, "rare_below": 10, "dense_from": 0.8}
    embeddings = made.embeddings.artifact
    expected = {"stage": "exemplars", "code": 3, "units": basis.units.digest, "images": made.images.fingerprint}
    assert recipe(basis.exemplars) == expected | {"embeddings": embeddings.digest, "mining": mining}
    asked = {"stage": "proposals", "code": 2, "exemplars": basis.exemplars.digest, "proposer": made.proposer.recipe}
    asked |= {"mode": "contrast", "units": "0", "seed": 0}
    assert basis.proposals.name.endswith(digest(asked)[:10])
    labels = recipe(basis.labels)
    words = made.vocabulary
    settings = {"scorers": ["pearson"], "final": "pearson", "templates": None, "renormalize": True, "nulls": 20}
    settings |= {"rival_nulls": 40, "abstain_below": 0.95, "seed": 0, "runners_up": 5, "meanings": True}
    assert labels["settings"] == settings and labels["exemplars"] == basis.exemplars.digest
    assert labels["vocabulary"] == digest([words.labels, words.sources])
    assert (labels["encoder"], labels["proposals"]) == (embeddings.digest, answers_digest(basis.proposals))
    assert len(labels) == 7


def test_embeddings_images_evaluation_comparison(made):
    embedded = recipe(made.embeddings.artifact)
    expected = {"stage": "embeddings", "code": 1, "encoder": made.encoder.recipe, "images": made.images.fingerprint}
    assert embedded == saelab.artifacts.plain(expected)
    outcome = made.outcome()
    images = {"stage": "images", "code": 1, "images": made.images.fingerprint, "name": "pictures", "skipped": []}
    assert recipe(outcome.images) == images | {"root": str(made.images.root.resolve())}
    basis = made.evaluated[0]
    evaluation = recipe(basis.evaluation)
    own = {"stage": "evaluation", "labels": basis.labels.digest, "images": made.images.fingerprint, "k": 4}
    own |= {"truth": "exact", "judge": saelab.artifacts.plain(made.encoder.recipe)}
    assert {k: v for k, v in evaluation.items() if k != "code"} == own
    compared = recipe(made.comparisons["arrays"])
    assert compared["settings"] == saelab.artifacts.plain(Settings())
    assert compared["evaluations"] == [b.evaluation.digest for b in made.evaluated]
    assert compared["names"] == [[b.name, b.group] for b in made.evaluated]
    groups = group_images(made.images)[made.images.ids("test")]
    assert compared["groups"] == digest([str(group) for group in groups])
    assert write(outcome, made.root, "recipes").is_file()


def test_cosy(made):
    basis = made.labelled[0]
    settings = CosySettings(scorer="pearson", generate=Generation())
    found = measure_labels(basis, labels_of(basis, "pearson"), made.images, settings, "exact", made.root)
    expected = {"stage": "cosy", "code": 5, "labels": basis.labels.digest, "truth": "exact", "scorer": "pearson"}
    assert recipe(found) == expected | {"images": made.images.fingerprint, "pictures": None}
