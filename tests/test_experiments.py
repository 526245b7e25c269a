"""Every experiment, and a CNN and a ViT of every host family, go the quickstart's way on a dozen pictures.

Random weights, but for the two networks whose weights packages carry.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from small_images import coloured

from saelab.cli.cosy import _fire, _open
from saelab.cli.edge import plain, stages
from saelab.errors import UserError
from saelab.run.stages.cosy import CosySettings, labels_of, measure_labels
from saelab.units import UnitActivations

CONF = Path(__file__).resolve().parent.parent / "conf"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
RESNETS = ("csp_resnet50", "csp_resnet101", "melanoma")
TINY = [
    "encoder.name=open_clip:tiny-for-tests/random",
    "host.weights=random",
    "label.vocabulary=[classes,captions]",
    "label.mining.k=3",
    "label.nulls=5",
    "proposer=none",
    "sae.latents=32",
    "++sae.k=4",
    "sae.train.batch_size=64",
    "+sae.train.steps=3",
    "seeds=[0]",
    "workers=0",
    "dtype=float32",
    "device=cpu",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A dozen pictures; a tiny CLIP known to open_clip; a tiny DINOv2 in a local folder."""
    import open_clip
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel

    folder = tmp_path_factory.mktemp("experiments")
    coloured(folder / "pictures", 12, size=64)
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    tiny = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny-for-tests.json").write_text(json.dumps(tiny))
    convolutions = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    (folder / "configs" / "tiny-cnn-for-tests.json").write_text(json.dumps(tiny | {"vision_cfg": convolutions}))
    open_clip.add_model_config(folder / "configs")
    size = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**size)).save_pretrained(folder / "dinov2")
    square = {"height": 56, "width": 56}
    BitImageProcessor(size={"shortest_edge": 56}, crop_size=square).save_pretrained(folder / "dinov2")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(folder / "resnet")
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(
        folder / "resnet"
    )
    return folder


def way(places, tmp_path, *overrides):
    """The run of these overrides, as far as the labels."""
    own = [f"root={tmp_path}", *TINY, "images=folder", f"images.root={places / 'pictures'}", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = stages(compose("quickstart", [text.format(places=places) for text in own]))
    for basis in run.labelled:
        rows = [json.loads(line) for line in (basis.labels.path / "labels.jsonl").read_text().splitlines()]
        named = [row for row in rows if row["label"] is not None]
        assert named and all(row["label"] in run.vocabulary.labels for row in named)
        assert {row["status"] for row in rows if row["label"] is None} <= {"dead", "constant", "invalid"}
    return run


def test_too_few_test_pictures_are_told_before_anything_is_computed(places, tmp_path):
    own = [f"root={tmp_path}", *TINY, "images=folder", f"images.root={places / 'pictures'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = stages(compose("quickstart", own))
    with pytest.raises(UserError, match="splits=4 test images: at least 10 needed"):
        _ = run.evaluated
    assert not list(tmp_path.iterdir())


def test_the_slurm_command_of_the_docs_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    page = (CONF.parent / "docs" / "hosts.md").read_text()
    command = re.search(r"(?:saelab cache|python scripts/cache\.py) --multirun (.*?)\n```", page, re.DOTALL)[1].replace(
        "\\\n", " "
    )
    settings = command.split()
    (hosts,) = (text.removeprefix("host=").split(",") for text in settings if text.startswith("host="))
    assert len(hosts) > 1
    for host in hosts:
        given = [f"host={host}" if text.startswith("host=") else text for text in settings]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("cache", given, return_hydra_config=True)
        launcher = cfg.hydra.launcher
        assert launcher._target_.endswith("SlurmLauncher") and launcher.gpus_per_node == 1
        assert (launcher.partition, launcher.timeout_min, launcher.max_num_timeout) == ("gpu", 240, 3)
        assert cfg.host.name and cfg.layers == cfg.host.layers and cfg.device == "cuda"


@pytest.mark.slow
def test_jobs_of_a_launcher_find_the_scripts_and_tell_mistakes_in_one_line(places, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    command = [sys.executable, str(CONF.parent / "scripts" / "layers.py"), "--multirun"]
    command += ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "host=own", "host.layers=[x]"]
    hosts = f"host.name=transformers:{places / 'dinov2'},timm:nosuch"
    done = subprocess.run([*command, hosts], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("saelab: host=timm:nosuch")
    said = [file.read_text() for file in tmp_path.rglob("*_log.out")]
    assert len(said) == 2 and sum("encoder.layer.11" in text for text in said) == 1


def test_cosy_holds_labels_against_other_pictures_where_some_are_given(places, tmp_path):
    grey, blue = tmp_path / "controls" / "grey", tmp_path / "controls" / "blue"
    for folder, colour in ((grey, (120, 120, 120)), (blue, (30, 40, 220))):
        folder.mkdir(parents=True)
        for i in range(5):
            noise = np.random.default_rng(100 + i).integers(-60, 60, (64, 64, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    own = [f"root={tmp_path / 'runs'}", *TINY, "images=folder", f"images.root={places / 'pictures'}"]
    own += ["layers=[_blocks.15]", "bases=[neuron]", "cosy.scorer=pearson", f"cosy.controls={tmp_path / 'controls'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("cosy", own)
        run = stages(cfg, "cosy")
    (basis,), controls = run.labelled, _open(run, plain(cfg.cosy)["controls"], "")
    (shown,) = _fire(run, [basis], controls)
    assert shown is not None
    labels, quiet = labels_of(basis, "pearson"), shown.acts
    settings = CosySettings(scorer="pearson", controls=str(tmp_path / "controls"))
    made = measure_labels(basis, labels, run.images, settings, "mention", run.root, control=shown)
    rows = [json.loads(line) for line in (made.path / "cosy.jsonl").read_text().splitlines()]
    acts, test = UnitActivations.load(basis.units.path).acts, run.images.ids("test")
    measured = [row for row in rows if row["auc_half"] is not None]
    assert measured
    for row in measured:
        about = [
            i for i in test if row["label"] in (run.images.captions[i] or "") or row["label"] in run.images.classes[i]
        ]
        kept = [i for i in range(10) if not (row["label"] == "blue" and controls.files[i].startswith("blue/"))]
        assert (row["images"], row["controls"]) == (len(about), len(kept))
        shown, other = acts[about, row["unit"]], quiet[kept, row["unit"]]
        wins = (shown[:, None] > other).double() + 0.5 * (shown[:, None] == other)
        assert row["auc_half"] == pytest.approx(float(wins.mean()))


HOSTS = {
    "timm_cnn": ("host=own", "host.name=timm:resnet18", "host.layers=[layer4]"),
    "timm_vit": ("host=timm_vit", "host.name=timm:vit_tiny_patch16_224", "policy=patches"),
    "torchvision_cnn": ("host=resnet50", "host.name=torchvision:resnet18"),
    "torchvision_vit": ("host=own", "host.name=torchvision:vit_b_16", "host.layers=[encoder.layers.encoder_layer_10]"),
    "transformers_cnn": ("host=own", "host.name=transformers:{places}/resnet", "host.layers=[encoder.stages.1]"),
    "transformers_vit": ("host=dinov2_small", "host.name=transformers:{places}/dinov2", "policy=patches"),
    "open_clip_cnn": ("host=own", "host.name=open_clip:tiny-cnn-for-tests", "host.layers=[layer4]"),
    "open_clip_vit": ("host=own", "host.name=open_clip:tiny-for-tests", "host.layers=[transformer.resblocks.1]"),
    "real_cnn": ("host=efficientnet_lite0", "host.layers=[_blocks.15]"),
    "real_vit": ("host=dinov2_small_focus", "policy=patches"),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", HOSTS)
def test_every_host_family_goes_the_same_way(family, places, tmp_path):
    overrides = HOSTS[family]
    if family.startswith("real"):
        pytest.importorskip("efficientnet_lite_pytorch" if family == "real_cnn" else "onnx")
        overrides = (*overrides, "host.weights=pretrained")
    run = way(places, tmp_path, *overrides)
    (store,) = run.caches.values()
    assert {basis.kind for basis in run.labelled} == {"neuron", "sae", "random_rotation"}
    assert store.tokens[:].std() > 1e-3  # something comes through


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_runs(experiment, places, tmp_path):
    more = ["host.name=transformers:{places}/dinov2"] if experiment == "dinov2" else []
    if experiment in RESNETS:  # as deep as they are, on small pictures
        more += ["++host.transform.resize=64", "++host.transform.crop=[64,64]"]
    run = way(places, tmp_path, f"+experiment={experiment}", *more, "label.vocabulary=[classes,captions]")
    assert run.config.name == experiment
    assert {basis.kind for basis in run.labelled} == set(run.config.bases)
