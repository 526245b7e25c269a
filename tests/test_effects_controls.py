"""Controls that run by default, hosts in half precision, and how well first-order values agree on a real host."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from test_effects_stage import made  # noqa: F401  (a fixture)

from saelab import effects, hosts
from saelab.artifacts import read_json
from saelab.cli.effects import notes
from saelab.compare import Settings
from saelab.effects.ablate import Active
from saelab.effects.attribute import exact, gradient_x_part, of_output
from saelab.hosts import Host
from saelab.label import pipeline
from saelab.run.config import RunConfig
from saelab.run.controls import control_config, missing_controls
from saelab.run.given import Given
from saelab.run.making import Stages
from saelab.run.stages.effects import EffectsSettings, make_ground, measure_basis, read_labels
from saelab.units.bases import Projection


def test_saes_that_learned_nothing_are_measured_with_the_others(made):  # noqa: F811
    """Whatever bases a run has, controls among them, `saelab effects` measures all; it names those that are missing."""
    bases = ("neuron", "sae", "untrained", "frozen_decoder")
    run = Stages(dataclasses.replace(made.config, bases=bases), made.given)
    own = EffectsSettings(units="all", targets=("exact",), measure=effects.MeasureSettings(count=5))
    found = {b.name: effects_of(run, b, own) for b in run.labelled}
    assert list(found) == ["neuron", "sae seed 0", "untrained", "frozen decoder"]
    assert [s["control"] for s in found.values()] == [False, False, True, True]
    assert all(s["measured"] > 0 and s["chosen"] == 24 for name, s in found.items() if name != "neuron")
    text = notes(list(found.values()))
    assert "Not among these bases: random_rotation, pca, random_host." in text
    assert "untrained, frozen_decoder, random_host" in notes([found["sae seed 0"]])
    assert "untrained" not in notes([found["neuron"]])


def test_controls_that_a_run_lacks_are_made_with_its_own_labels(made):  # noqa: F811
    """They don't change the run; their labels are those that they would have had in it."""
    run = Stages(dataclasses.replace(made.config, bases=("neuron", "sae"), rotation_seeds=(0,)), made.given)
    assert missing_controls(run.config, run.given) == ["random_rotation", "pca", "untrained", "frozen_decoder"]
    found = {b.name: b for b in run.controls.labelled}
    assert list(found) == ["random rotation", "pca", "untrained", "frozen decoder"]
    assert [b.name for b in run.labelled] == ["neuron", "sae seed 0"] and run.controls.vocabulary == run.vocabulary
    both = Stages(dataclasses.replace(run.config, bases=("neuron", "sae", "pca", "untrained")), made.given)
    inside = {b.name: b for b in both.labelled}
    assert all(inside[name].labels.path == found[name].labels.path for name in ("pca", "untrained"))
    own = EffectsSettings(units="all", targets=("exact",), measure=effects.MeasureSettings(count=5))
    summary = effects_of(run.controls, found["pca"], own)
    assert summary["control"] and summary["group"] == "principal components" and summary["measured"] > 0
    none = Stages(control_config(run.config, []), run.given)  # where only the random host is missing
    assert none.bases == [] == none.labelled
    assert set(made.control_effects) == {"pca", "untrained", "frozen decoder"}


def test_bases_that_write_nothing_of_their_own_are_passed_over(made):  # noqa: F811
    """Groups of units and planted ones have labels and no effects; the others are measured and compared as ever."""
    asked = {"units": "all", "count": 5, "targets": ["exact"]}
    bases = ("neuron", "random_rotation", "planted")
    config = dataclasses.replace(made.config, bases=bases, effects=asked, compare=Settings(fewest=3, resamples=20))
    run = Stages(config, made.given)
    assert [b.kind for b in run.acting] == ["neuron", "random_rotation"]
    assert {b.kind for b in run.measured if b.effects} == {"neuron", "random_rotation"}
    assert set(bases) == {b.kind for b in run.measured}
    assert not dataclasses.replace(run.acting[0], kind="neuron_groups").acts
    family = read_json(run.comparisons["second"].path / "comparison.json")["causal"]
    chosen = {basis["name"]: basis["chosen"] for basis in family["bases"]}
    assert chosen["neuron"] == 9 and chosen["random rotation"] == 9 and sum(chosen.values()) == 18


def test_which_controls_are_missing():
    wanted = ["pca", "untrained", "frozen_decoder", "random_host"]
    assert missing_controls(RunConfig(), Given()) == wanted
    assert missing_controls(RunConfig(random_host=True), Given()) == wanted[:3]
    assert missing_controls(RunConfig.of({"host": {"weights": "random"}}), Given()) == wanted[:3]
    assert missing_controls(RunConfig(bases=("neuron",)), Given()) == ["random_rotation", "pca"]
    alone = control_config(RunConfig(), ["random_host"])
    assert alone.bases == () and alone.random_host
    made_for = control_config(RunConfig(also=("sae.k=8",)), wanted)
    assert made_for.bases == ("pca", "untrained", "frozen_decoder") and made_for.random_host and not made_for.also
    assert made_for.seeds == (0,) and made_for.proposer.name == "none"


def effects_of(run, basis, own):
    return read_json(run.measure_effects(basis, own) / "effects.json")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_host_in_half_precision_says_the_same(made, dtype, tmp_path):  # noqa: F811
    basis = made.labelled[0]
    half = Host(copy.deepcopy(made.host.model).to(dtype), made.host.transform, "half")
    own = EffectsSettings(units="0-2", targets=("exact",), measure=effects.MeasureSettings(count=5))
    seen = dataclasses.replace(made._seen(basis), host=half)
    labels, _ = read_labels(pipeline.read(basis.labels.path), "final")
    rows = []
    for one in (made._seen(basis), seen):
        ground = make_ground(basis, one, own, labels)
        rows.append([effects.measure(unit, ground, own.measure) for unit in range(3)])
    for full, less in zip(*rows):
        assert less["causal_pct"] == full["causal_pct"] and less["raised"][0][0] == full["raised"][0][0]
        assert less["drop"] == pytest.approx(full["drop"], rel=0.05) and np.isfinite(less["screen"]).all()
    assert read_json(measure_basis(basis, seen, own, tmp_path) / "effects.json")["dtype"] == str(dtype)


def test_first_order_values_agree_with_ablation_on_a_real_host(shared):
    """Lite0's last block before the head: r of .97 or more over (unit, picture) pairs; where they are on 10 photos."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra quickstart")
    files = sorted((shared / "images" / "imagenet-samples").glob("*.jpg"))[::100]
    if not files:
        pytest.skip("needs the shared photos")
    host = hosts.load("efficientnet_lite0", device="cpu")
    pictures = [Image.open(file).convert("RGB") for file in files]
    tokens = host.tokens(host.load_images(pictures), ["_blocks.15"])["_blocks.15"].float()
    answers = Resumed(host, tokens)
    active = Active.of(Projection(), tokens)
    ids, first = np.arange(len(files)), answers.logits(np.arange(1), tokens[None, :1])[0, 0]
    weights = of_output(int(first.argmax()), 1000)
    units = torch.argsort(active.lengths, descending=True)[:320:16].tolist()
    alone = exact(answers, ids, active, torch.eye(320), weights, units)
    quick = gradient_x_part(answers, ids, active, torch.eye(320), weights).values[:, units]
    assert np.corrcoef(alone.flatten(), quick.flatten())[0, 1] >= 0.97
    check_deletion(answers, active, ids)


def check_deletion(answers, active, ids):
    """The ten neurons of the largest values, taken out together, cost the first choice more than others do.

    The others fire on the picture too, and their parts are at least as long together. On 95 % of photos: of ten, all.
    """
    rng = np.random.default_rng(0)
    for image in ids:
        one = Active(active.tokens[[image]], active.acts[[image]], active.scale[[image]])
        first = int(answers.logits(ids[[image]], one.tokens[None])[0, 0].argmax())
        values = gradient_x_part(answers, ids[[image]], one, torch.eye(320), of_output(first, 1000)).values[0]
        best = torch.argsort(values, descending=True)[:10]
        others = torch.from_numpy(rng.permutation(torch.nonzero(one.lengths > 0)[:, 0].numpy()))
        others = others[~torch.isin(others, best)]
        enough = int((one.lengths[others].cumsum(0) < one.lengths[best].sum()).sum()) + 1
        edits = [one.tokens - one.acts[..., some] @ torch.eye(320)[some] for some in (best, others[:enough])]
        log_p = answers.logits(ids[[image]], torch.stack([one.tokens, *edits])).log_softmax(-1)[:, 0, first]
        assert log_p[0] - log_p[1] > log_p[0] - log_p[2]


@dataclasses.dataclass
class Resumed:
    """Answers that go on from tokens."""

    host: Host
    all: torch.Tensor

    def logits(self, ids, edited):
        return torch.stack([self.host.resume(one, "_blocks.15").float() for one in edited])

    def gradient(self, ids, tokens, weights):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = tokens.clone().requires_grad_()
            value = (self.host.resume(leaf, "_blocks.15", grad=True) @ weights.float()).sum()
            return torch.autograd.grad(value, leaf)[0]
