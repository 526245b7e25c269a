"""What a caller hands to `saelab.Pipeline`: files, names and objects of every kind, read or refused in one line."""

import json
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import MissingConfigException
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from small_images import coloured
from torch import nn

import saelab
from saelab import cache, images, settings
from saelab.cli.hydra_errors import explain
from saelab.hosts.callable_transform import CallableTransform
from saelab.label import mine
from saelab.run.config import LISTS, RunConfig
from saelab.run.presets import unknown
from saelab.run.stages.sae import check_names, sae_configs
from saelab.sae import SAEConfig, TrainConfig, convert, fit

ACTS = np.random.default_rng(0).random((37, 6), dtype=np.float32)


def refused(**given) -> str:
    """The one line that refuses a pipeline."""
    with pytest.raises(saelab.UserError) as caught:
        _ = saelab.Pipeline(**given).caches
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500
    return str(caught.value)


# ---- activations -----------------------------------------------------------------------------------------------------


def kept(folder: Path) -> dict[str, object]:
    """The same activations, in every form that stands for them."""
    np.save(folder / "acts.npy", ACTS)
    save_file({"acts": ACTS}, str(folder / "acts.safetensors"))
    tensor = torch.from_numpy(ACTS)
    return {
        "array": ACTS,
        "lists": ACTS.tolist(),
        "tensor": tensor,
        "sparse": tensor.to_sparse(),
        "text": str(folder / "acts.npy"),
        "path": folder / "acts.npy",
        "safetensors": folder / "acts.safetensors",
        "dict of text": {"layer4": str(folder / "acts.npy")},
        "dict of paths": {"layer4": folder / "acts.safetensors"},
        "numbered": {3: folder / "acts.npy"},
        "maps": ACTS.reshape(37, 1, 3, 2),
    }


def test_activations_of_every_form_have_a_row_for_each_image(tmp_path):
    for name, given in kept(tmp_path).items():
        made = saelab.Pipeline(activations=given, root=tmp_path / "runs", workers=0, device="cpu")
        assert len(made.images) == 37, name
        (store,) = made.caches.values()
        assert np.allclose(np.sort(store.tokens, axis=None), np.sort(ACTS, axis=None), atol=1e-3), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.npy", "activations=nothing.npy: no such file"),
        (Path("nothing.npy"), "activations=nothing.npy: no such file"),
        ({"layer4": "nothing.npy"}, "activations=nothing.npy: no such file"),
        ("acts.txt", "activations=acts.txt: unknown kind .txt"),
        ("cut.npy", "activations=cut.npy: unreadable"),
        (3, "activations=(): expected [images, d_in]"),
        ({}, "activations={}: holds no layer"),
        (np.zeros((4, 0)), "activations=(4, 0): expected [images, d_in]"),
    ],
)
def test_activations_that_are_none_are_refused(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("acts.txt").write_text("1 2 3")
    np.save("cut.npy", ACTS)
    Path("cut.npy").write_bytes(Path("cut.npy").read_bytes()[:200])
    assert refused(activations=given).startswith(message)


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_a_layer_may_have_a_number_for_a_name(tmp_path):
    coloured(tmp_path / "pictures", 12, size=16)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Sequential(nn.ReLU(), nn.Flatten()))
    own = {"images": tmp_path / "pictures", "transform": {"resize": [16, 16]}, "workers": 0, "device": "cpu"}
    for name, given in enumerate([2, [2], ["2"], (np.int64(2),), ["2", 2]]):
        made = saelab.Pipeline(host=model, layers=given, root=tmp_path / str(name), **own)
        assert list(made.caches) == ["2"] and made.caches["2"].d_in == 6
    assert RunConfig.of({"layers": [0, "1", 0]}).layers == ("0", "1")


@pytest.mark.parametrize("given", [3.1, [3.1], [None], [True], [b"a"]])
def test_what_names_no_layer_is_refused(given):
    with pytest.raises(saelab.UserError, match=r"^layers=.*: is no name of a layer; ") as caught:
        RunConfig.of({"layers": given})
    assert ("as text" in str(caught.value)) == ("3.1" in str(given))
    with pytest.raises(saelab.UserError, match=r"^layers=.*: is no name of a layer; "):
        saelab.Pipeline(host="timm:resnet18", layers=given)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_in_a_list_is_refused(name):
    for given in ([["a"]], [{"a": 1}], {"a": 1}, [0, (1,)]):
        with pytest.raises(saelab.UserError, match=rf"^{name}=.*: is no name"):
            RunConfig.of({name: given})


@pytest.mark.parametrize("name", ["seeds", "rotation_seeds"])
def test_a_seed_that_stands_twice_is_refused(name):
    for given in ([0, 0], (3, 1, 3), [2, 0, 1, 1]):
        with pytest.raises(saelab.UserError, match=rf"^{name}=.*: names a seed twice"):
            RunConfig.of({name: given})
    assert getattr(RunConfig.of({name: [2, 0]}), name) == (2, 0)


def test_an_expansion_names_its_layer_by_number_too():
    given = {"expansion": {3: 2, "default": 4}}
    check_names(given, ["3"])
    found = [sae_configs(given | {"k": 4}, layer, 8, [0])[0][0].latents for layer in ("3", "4")]
    assert found == [16, 32]


@pytest.mark.parametrize("name", ["epochs", "steps", "batch_size", "warmup", "keep", "ema"])
def test_a_training_setting_out_of_range_is_named_as_it_was_given(name):
    for value in (-1, -7, 2**60 if name in ("warmup", "ema") else -3):
        with pytest.raises(saelab.UserError, match=rf"^sae\.train\.{name}={value}: "):
            RunConfig.of({"sae": {"train": {name: value}}})


def test_an_expansion_that_gives_no_latents_is_named():
    for wrong in (-1, 0, -0.5, float("nan"), float("inf"), {"default": 2, "layer4": -2}, {"default": 0}):
        shown = next(own for own in (wrong.values() if isinstance(wrong, dict) else [wrong]) if not 0 < own < np.inf)
        with pytest.raises(saelab.UserError, match=rf"^sae\.expansion={shown}: must be positive and finite"):
            RunConfig.of({"sae": {"expansion": wrong}})
    with pytest.raises(saelab.UserError, match=r"^sae\.expansion=0\.01: .*expansion times d_in \(8\)"):
        sae_configs({"expansion": 0.01, "k": 1}, "layer4", 8, [0])
    with pytest.raises(saelab.UserError, match=r"^sae\.latents=-3: "):
        RunConfig.of({"sae": {"latents": -3}})


@pytest.mark.parametrize("value", ["4", "-1.5", "1e3", "true", "null", "", " ", "[1]", "~", " many"])
def test_text_that_reads_as_something_else_is_shown_in_quotes(value):
    with pytest.raises(saelab.UserError) as caught:
        SAEConfig(4, 8, k=value)
    assert str(caught.value) == f"k={value!r}: expected a whole number"
    with pytest.raises(saelab.UserError, match=r"^k=many: expected a whole number"):
        SAEConfig(4, 8, k="many")


def test_arrays_in_messages_are_their_shapes():
    tensor, array = torch.zeros(3, 4), np.zeros((2, 2))
    for value, shown in (
        (tensor, "Tensor [3, 4]"),
        (nn.Parameter(tensor), "Parameter [3, 4]"),
        ({"W_enc": tensor, "k": 3}, "{'W_enc': Tensor [3, 4], 'k': 3}"),
        ([array, (tensor,)], "[ndarray [2, 2], (Tensor [3, 4],)]"),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), "Sequential"),
        (np.float32(0.5), "0.5"),
        ((3, 4), "(3, 4)"),
        (None, "None"),
        ("a\nb", "a b"),
    ):
        assert str(saelab.UserError("sae", value, "wrong")) == f"sae={shown}: wrong"
    assert len(str(saelab.UserError("seeds", list(range(10_000)), "too many"))) < 500


def test_a_basis_is_chosen_by_its_layers_number():
    known = [("a", ("neuron", "3")), ("b", ("neuron", "4"))]
    assert settings.choose("bases", 3, known) == settings.choose("bases", ["3"], known) == ["a"]


# ---- names of settings, and SAEs of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [p for p in signature(saelab.Pipeline).parameters if p != "settings"])
def test_a_misspelt_keyword_names_the_one_that_was_meant(name):
    for slip in (f"{name}s", name[:-2] + name[-1] + name[-2], name[:1] + name[2:]):
        if slip in signature(saelab.Pipeline).parameters or slip == name:
            continue
        message = refused(**{slip: ACTS})
        assert message.startswith(f"{slip}=ndarray [37, 6]: there is no such setting"), message
        assert "known: images, host, layers, sae, encoder, vocabulary, transform, activations, embeddings" in message
        meant = message.partition("did you mean ")[2].partition("?")[0]
        assert name in meant.split(" or ") or len(name) < 5, message


WEIGHTS = {"W_enc": torch.randn(6, 20), "b_enc": torch.zeros(20), "W_dec": torch.randn(20, 6), "b_dec": torch.zeros(6)}
TIED = {"encoder.weight": torch.randn(20, 6), "encoder.bias": torch.zeros(20)} | {
    n: WEIGHTS[n] for n in ("W_dec", "b_dec")
}


class Own(nn.Module):
    """An SAE of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 20), nn.Linear(20, 6)


def test_weights_in_place_of_settings_are_pointed_to_convert(tmp_path):
    torch.save(WEIGHTS, tmp_path / "own.pt")
    arrays = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    for given in (WEIGHTS, arrays, WEIGHTS | {"k": 4}, Own(), Own().state_dict(), [Own()], [WEIGHTS], (3,)):
        message = refused(activations=ACTS, sae=given)
        assert message.startswith("sae=") and "saelab.sae.convert.load(" in message and "tensor(" not in message
    for given in (tmp_path / "own.pt", str(tmp_path / "own.pt")):
        with pytest.raises(saelab.UserError, match=r"is not saelab's format; give sae=saelab\.sae\.convert\.load"):
            _ = saelab.Pipeline(activations=ACTS, sae=given, root=tmp_path / "runs", workers=0, device="cpu").bases
    with pytest.raises(saelab.UserError, match=r"nothing\.pt: there is no such file"):
        _ = saelab.Pipeline(activations=ACTS, sae="nothing.pt", root=tmp_path / "runs", device="cpu").bases


@pytest.mark.parametrize("name", ["own_sae.safetensors", "own.pt", "./own", "/data/own.PT", "a/b.safetensors"])
def test_a_file_in_place_of_a_preset_is_pointed_to_convert(name):
    assert "saelab.sae.convert.load(FILE)" in str(unknown("sae", name))
    missing = MissingConfigException("", missing_cfg_file=f"sae/{name}")
    assert explain(missing, "label").startswith(f"sae={name}: is no preset of settings; ")
    assert explain(MissingConfigException("", missing_cfg_file="sae/gao"), "label").startswith("sae=gao: unknown; ")


@pytest.mark.parametrize(
    ("tensors", "config", "rule"),
    [
        (WEIGHTS, {"architecture": "standard"}, "relu"),
        (WEIGHTS, {"architecture": "topk", "k": 32}, "topk"),
        (WEIGHTS | {"threshold": torch.ones(20)}, {"architecture": "jumprelu"}, "jumprelu"),
        (WEIGHTS, {"architecture": "standard", "apply_b_dec_to_input": False}, "relu"),
        (TIED, {"k": 32}, "topk"),
    ],
)
def test_bare_weights_say_which_configuration_to_write_and_it_works(tensors, config, rule, tmp_path):
    config = config | ({"k": 4} if "k" in config else {})
    save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, str(tmp_path / "own.safetensors"))
    with pytest.raises(saelab.UserError, match=r"no cfg\.json beside it .* or write one: \{") as caught:
        convert.load(tmp_path / "own.safetensors")
    said = str(caught.value)
    assert all(json.dumps(name) in said for name in config) and json.dumps(config.get("architecture", "k")) in said
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert convert.load(tmp_path / "own.safetensors").meta.rule == rule


# ---- vectors of images and labels, and what excludes what ------------------------------------------------------------

QUICK = {"label": {"nulls": 10, "mining": {"k": 2}}, "bases": ["neuron"], "scorer": ["pearson"], "workers": 0}
WORDS = ["red", "green", "blue"]


def test_vectors_come_from_arrays_and_files_alike(tmp_path):
    rng = np.random.default_rng(1)
    images, labels = rng.random((37, 8)), rng.random((3, 8))
    for name, array in (("images", images), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
        save_file({name: array}, str(tmp_path / f"{name}.safetensors"))
    found = []
    for forms in (
        (images, labels),
        (images.tolist(), torch.from_numpy(labels)),
        (str(tmp_path / "images.npy"), tmp_path / "labels.npy"),
        (tmp_path / "images.safetensors", str(tmp_path / "labels.safetensors")),
        (torch.from_numpy(images).to_sparse(), tmp_path / "labels.npy"),
    ):
        own = dict(zip(("images", "labels"), forms, strict=True))
        made = saelab.Pipeline(activations=ACTS, embeddings=own, vocabulary=WORDS, root=tmp_path, device="cpu", **QUICK)
        found.append(made.embeddings.images)
    assert all(torch.allclose(one, found[0], atol=1e-6) for one in found)
    assert list(made.labels["neuron"].table()["unit"]) == list(range(6))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (ACTS, "embeddings=ndarray [37, 6]: are the vectors of images alone"),
        ("nothing.npy", "embeddings=nothing.npy: no such file"),
        ({"images": "nothing.npy", "labels": ACTS[:3]}, "embeddings.images=nothing.npy: no such file"),
        ({"images": ACTS, "labels": Path("nothing.npy")}, "embeddings.labels=nothing.npy: no such file"),
        ({"images": ACTS, "labels": [["a"], ["b"], ["c"]]}, "embeddings.labels=dtype <U1: expected real numbers"),
        ({"images": ACTS, "labels": None}, "embeddings.labels=dtype object: expected real numbers"),
        ({"images": ACTS}, "embeddings=['images']: lacks labels"),
    ],
)
def test_vectors_that_are_none_are_refused_and_nobody_else_is_named(embeddings, message):
    assert refused(activations=ACTS, embeddings=embeddings, vocabulary=WORDS).startswith(message)


def test_vectors_beside_an_encoder_ask_no_tagger(tmp_path):
    made = saelab.Pipeline(activations=ACTS, embeddings=ACTS, encoder="conse", root=tmp_path)
    assert made.config.proposer.name == "none"


@pytest.mark.parametrize("host", ["timm:resnet18", {"name": "timm:resnet18"}, Own()])
def test_a_host_and_arrays_exclude_each_other(host):
    for given in (ACTS, "acts.npy", {"a": ACTS}):
        assert refused(host=host, layers=["a"], activations=given).startswith(
            "host, activations=both: stand for the same"
        )


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda _: torch.full((3, 4, 4), float("nan")), "gives NaN"),
        (lambda _: torch.tensor([float("inf"), 0, 1]).expand(4, 4, 3).permute(2, 0, 1), "gives an infinity"),
        (lambda _: torch.rand(3, 4, 4), "is random"),
        (lambda _: torch.zeros(3, int(torch.randint(2, 10**6, ())), 1), "is random"),
        (lambda _: torch.zeros(1, 4, 4), "gives (1, 4, 4)"),
        (lambda _: None, "gives NoneType"),
    ],
)
def test_a_transform_that_gives_no_picture_says_what_it_gives(function, said):
    with pytest.raises(saelab.UserError) as caught:
        CallableTransform(function)
    assert f": {said}" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert CallableTransform(lambda _: torch.zeros(3, 4, 4, dtype=torch.uint8)).size == (4, 4)


# ---- Python's own errors, and what objects say of themselves ---------------------------------------------------------


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    file = tmp_path / "afile"
    file.write_text("x")
    config, rows = SAEConfig(6, 8, k=2), np.random.default_rng(0).random((40, 6), dtype=np.float32)
    for place in (file, file / "inside", file / "a" / "b"):
        doors = {
            "root": (
                lambda own: saelab.Pipeline(root=own),
                lambda own: cache.adopt(ACTS, own),
            ),
            "folder": (
                lambda own: fit(rows, config, TrainConfig(8), own, progress=False),
                lambda own: fit(rows, config, TrainConfig(8), str(own), progress=False),
            ),
        }
        for setting, calls in doors.items():
            for call in calls:
                with pytest.raises(saelab.UserError) as caught:
                    call(place)
                assert str(caught.value).startswith(
                    f"{setting}={place}: Not a directory: {file} is a file; give a folder"
                )
    assert file.read_text() == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "data=NoneType: expected an array"),
        ({"data": "acts.npy"}, "data=str: expected an array"),
        ({"data": Path("acts.npy")}, "data=PosixPath: expected an array"),
        ({"data": {"layer4": ACTS}}, "data=dict: expected an array"),
        ({"data": 3}, "data=int: expected an array"),
        ({"data": object()}, "data=object: expected an array"),
        ({"config": {"k": 4}}, "config=dict: expected a saelab.sae.SAEConfig"),
        ({"config": None}, "config=NoneType: expected a saelab.sae.SAEConfig"),
        ({"config": SAEConfig}, "config=type: expected a saelab.sae.SAEConfig"),
        ({"train": {"epochs": 2}}, "train=dict: expected a saelab.sae.TrainConfig"),
        ({"train": 5}, "train=int: expected a saelab.sae.TrainConfig"),
    ],
)
def test_fit_refuses_what_it_cannot_train_on_or_by(change, message):
    with pytest.raises(saelab.UserError) as caught:
        fit(**{"data": ACTS, "config": SAEConfig(6, 8, k=2)} | change, progress=False)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("k", [2.5, "30", None, True, [3], float("nan"), 0, -1, 38])
def test_top_images_takes_a_whole_number(k):
    with pytest.raises(saelab.UserError, match=r"^k="):
        mine.top_images(torch.from_numpy(ACTS), k)
    assert mine.top_images(torch.from_numpy(ACTS), np.int64(3))[0].shape == (6, 3)


def test_an_image_set_knows_its_numbers_and_says_what_it_holds(tmp_path):
    coloured(tmp_path / "pictures", 12, size=16)
    photos = images.load("folder", root=str(tmp_path / "pictures"))
    for wrong in (999, 12, -13, 2.5, "3", None):
        for call in (photos.load, photos.picture, photos.path, photos.mask, lambda i: next(photos.pictures([0, i]))):
            with pytest.raises(saelab.UserError, match=r"^image=.*: .* has pictures 0 to 11; give the number of one"):
                call(wrong)
    assert photos.load(np.int64(11)).size == photos.load(-1).size == (16, 16)
    assert repr(photos).startswith(f"ImageSet({photos.name}: 12 images (") and len(repr(photos)) < 200


def test_a_pipeline_says_what_it_is_about_and_makes_nothing(tmp_path):
    root = tmp_path / "runs"
    for made, words in (
        (saelab.Pipeline(activations={"layer4": ACTS}, root=root), ("arrays", "37 images", "layers layer4")),
        (
            saelab.Pipeline(host="timm:resnet18", layers=[3], images=tmp_path),
            ("timm:resnet18", str(tmp_path), "layers 3"),
        ),
        (saelab.Pipeline(root=root), ("quickstart", "packaged", "efficientnet_lite0", str(root))),
    ):
        assert all(word in repr(made) for word in words) and len(repr(made).splitlines()) == 1
        assert not {"host", "caches", "bases", "encoder"} & set(vars(made)) and not root.exists()


def test_reading_sparse_activations_warns_of_nothing(tmp_path):
    script = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import numpy as np; from scipy.sparse import random as draw; from saelab.units import activations\n"
        "csr = activations.from_scipy(draw(20, 8, 0.2, 'csr', np.float32))\n"
        "activations.UnitActivations(csr, 'neuron', {}).rows(np.arange(3))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
