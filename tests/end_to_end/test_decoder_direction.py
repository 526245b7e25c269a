"""An SAE on CLIP's own image embedding, through the scripts: its features are named by where their decoder points."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import commands
import numpy as np
import pytest
import tiny_clip
from safetensors.numpy import load_file
from small_images import coloured
from test_scripts import ROOT

from saelab import encoders

SETTINGS = ("images=folder", "name=small", "device=cpu", "workers=0", "seeds=[0]", "sae.latents=48", "sae.k=4")
LABELLING = ("proposer=none", "label.vocabulary=[classes,captions]", "label.nulls=20", "label.mining.k=5")
# The layer that holds the image embedding, and a hidden one; CLIP's is one vector an image and as wide, like it.
LAYERS = {
    "transformers_clip": ("visual_projection", "vision_model.post_layernorm"),
    "open_clip": ("output", "transformer.resblocks.1"),
}
REASONS = {
    "transformers_clip": "does not hold the encoder's image vectors (mean cosine",
    "open_clip": "is not one vector of 32 numbers an image, as the encoder's are",
}


@dataclass(frozen=True)
class Finished:
    """One labelling run of both layers, neurons and features."""

    kind: str
    model: str
    pictures: Path
    root: Path
    says: list[str]


def label(root: Path, pictures: Path, model: str, *more: str) -> subprocess.CompletedProcess:
    """label.py on one image-text model, which is the host and the encoder."""
    start = [sys.executable, str(ROOT / "scripts" / "label.py"), f"images.root={pictures}", f"root={root}"]
    given = [*start, *SETTINGS, *LABELLING, f"host.name={model}", f"encoder.name={model}", *more]
    return commands.run(given)


@pytest.fixture(scope="module", params=LAYERS)
def finished(request, tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp(request.param)
    coloured(folder / "pictures", 36)
    getattr(tiny_clip, request.param)(folder / "model", 32)
    model = f"{'open_clip:local-dir' if request.param == 'open_clip' else 'transformers'}:{folder / 'model'}"
    more = (f"layers=[{','.join(LAYERS[request.param])}]", "bases=[neuron,sae]", "label.final=pearson")
    done = label(folder / "runs", folder / "pictures", model, *more, "scorer=[decoder_direction,csp,pearson]")
    assert done.returncode == 0, done.stderr
    return Finished(request.param, model, folder / "pictures", folder / "runs", done.stdout.splitlines())


def scores_of(folder: Path, scorer: str) -> dict[int, dict]:
    """What a scorer says of each unit that it names, in one labels artifact."""
    rows = map(json.loads, (folder / "labels.jsonl").read_text().splitlines())
    return {row["unit"]: row["scores"][scorer] for row in rows if scorer in row["scores"]}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_features_are_named_by_the_cosine_of_their_decoder_row(finished):
    (sae,) = finished.root.glob(f"sae/{LAYERS[finished.kind][0]}-*/sae.safetensors")
    (folder,) = [f for f in finished.root.glob("labels/*/") if scores_of(f, "decoder_direction")]  # of four bases
    encoder = encoders.load(finished.model)
    words = json.loads((folder / "vocabulary.json").read_text())["labels"]
    texts = [encoder.embed_sentences([t.format(word) for t in encoder.templates]).mean(dim=0) for word in words]
    decoder = load_file(sae)["W_dec"].astype(np.float64)
    cosines = unit(decoder) @ unit(np.stack(texts).astype(np.float64)).T
    found = scores_of(folder, "decoder_direction")
    assert len(found) >= 5 and len({entry["label"] for entry in found.values()}) > 1
    for feature, entry in found.items():
        order = np.argsort(-cosines[feature])
        assert [entry["label"], *(w for w, _ in entry["runners_up"])] == [words[i] for i in order[:6]]
        values = [entry["score"], *(value for _, value in entry["runners_up"])]
        assert values == pytest.approx(cosines[feature][order[:6]].tolist(), abs=1e-5)
        assert entry["null_percentile"] is None
    assert any(found[f]["label"] != pearson["label"] for f, pearson in scores_of(folder, "pearson").items())


def test_neurons_and_a_hidden_layers_features_go_without_it_and_say_why(finished):
    layer, hidden = LAYERS[finished.kind]
    told = {line: finished.says[i + 1].strip() for i, line in enumerate(finished.says[:-1])}
    of = {name.split(":")[0]: reason for name, reason in told.items() if name.startswith((layer, hidden))}
    assert "these units have no decoder" in of[f"{layer}  neuron"]
    assert of[f"{hidden}  sae seed 0"].startswith("without decoder_direction: ")
    assert f"{hidden} {REASONS[finished.kind]}" in of[f"{hidden}  sae seed 0"]
    assert "without" not in of[f"{layer}  sae seed 0"]


def test_as_the_final_scorer_of_another_space_it_is_an_error_of_one_line(finished):
    hidden = LAYERS[finished.kind][1]
    final = ("bases=[sae]", "scorer=[decoder_direction,pearson]", "label.final=decoder_direction")
    done = label(finished.root, finished.pictures, finished.model, f"layers=[{hidden}]", *final)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("saelab: ")]
    assert f"decoder_direction: {hidden} {REASONS[finished.kind]}" in line
