"""Every experiment composes, and its way from pictures to labels runs, with random weights, on a dozen pictures."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from small_images import coloured
from stages import Run

CONF = Path(__file__).resolve().parent.parent / "conf"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
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
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("experiments")
    coloured(folder / "pictures", 12, size=64)
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    tiny = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny-for-tests.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(folder / "configs")
    size = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**size)).save_pretrained(folder / "dinov2")
    square = {"height": 56, "width": 56}
    BitImageProcessor(size={"shortest_edge": 56}, crop_size=square).save_pretrained(folder / "dinov2")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_runs(experiment, places, tmp_path):
    pictures = ["images=folder", f"images.root={places / 'pictures'}"]
    own = [f"+experiment={experiment}", f"root={tmp_path}", *TINY, *pictures]
    if experiment == "dinov2":
        own.append(f"host.name=transformers:{places / 'dinov2'}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("quickstart", own)
    assert cfg.name == experiment
    run = Run(cfg)
    bases = run.labelled
    assert {b.kind for b in bases} == set(cfg.bases)
    for basis in bases:
        rows = [json.loads(line) for line in (basis.labels.path / "labels.jsonl").read_text().splitlines()]
        named = [row for row in rows if row["label"] is not None]
        assert named and all(row["label"] in run.vocabulary.labels for row in named)
        assert {row["status"] for row in rows if row["label"] is None} <= {"dead", "constant", "invalid"}
