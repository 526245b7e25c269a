"""Output words of units at the last layer, and the host's own logits as units: what is known there must come out."""

import dataclasses

import numpy as np
import pytest
import torch
from test_effects_attribution import IDS, Curved, Linear, inputs
from test_effects_stage import Net, made  # noqa: F401  (a fixture)

import saelab
from saelab.artifacts import read_jsonl
from saelab.cli.effects import words_lines
from saelab.effects import MeasureSettings
from saelab.effects.attribute import check_linear, direct, read_out
from saelab.effects.targets import Outputs, find_targets
from saelab.run.making import Stages
from saelab.run.stages.effects import EffectsSettings
from saelab.run.stages.words import summarise, word_rows
from saelab.sae import SAE


@pytest.fixture(scope="module")
def last(made):  # noqa: F811
    """The same run at two more layers: the head's input and at the host's own answer."""
    config = dataclasses.replace(made.config, layers=("second", "in:head", "output"), bases=("neuron", "sae"))
    return Stages(config, made.given)


def test_the_read_out_is_the_heads_weight():
    answers, active, _ = inputs("neurons", Linear)
    check_linear(answers, IDS, "last")
    found = read_out(answers, IDS)
    torch.testing.assert_close(found, answers.head.T.double(), rtol=1e-4, atol=1e-6)
    curved, *_ = inputs("neurons", Curved)
    with pytest.raises(saelab.UserError, match=r"not followed by a linear read-out alone"):
        check_linear(curved, IDS, "last")
    assert active.tokens.shape[0] == len(IDS)


def test_words_are_ranked_outputs_by_hand():
    table = torch.tensor([[1.0, -1.0, 0.0], [0.0, 3.0, -3.0]]).double()
    names = ("cat", "dog", "eel")
    rows = word_rows(table, ["cat", "eel"], find_targets(["cat", "eel"], Outputs(names), ("exact",)), names)
    assert [row["raised"][0] for row in rows] == [["cat", 1.0], ["dog", 3.0]]
    assert [row["lowered"][0][0] for row in rows] == ["dog", "eel"]
    assert [row["pct"] for row in rows] == [pytest.approx(5 / 6), pytest.approx(1 / 6)]
    assert summarise(rows) == {"units": 2, "known": 2, "pct": pytest.approx(0.5), "first": 1}
    assert summarise([rows[0] | {"pct": None}])["pct"] is None


def test_words_of_a_model_of_ones_own(last):
    own, head = EffectsSettings(targets=("exact",)), Net().head.weight.detach()
    neurons, features = (b for b in last.labelled if b.layer == "in:head")
    found = read_jsonl(last.find_words(neurons, own).path / "words.jsonl")
    assert [row["raised"][0] for row in found[:3]] == [["red", 2.0], ["green", 2.0], ["blue", 2.0]]  # 3 less the mean
    assert all(row["pct"] == pytest.approx(5 / 6) and row["first"] for row in found[:3])
    decoder = SAE.load(features.sae.path / "sae.safetensors").W_dec.double()
    expected = direct(decoder, head.double())
    for row in read_jsonl(last.find_words(features, own).path / "words.jsonl"):
        assert row["raised"][0][1] == pytest.approx(float(expected[row["unit"]].max()), abs=1e-4)
    assert last.find_words(neurons, own).reused


def test_the_command_says_where_there_are_no_words(made, last):  # noqa: F811
    own = EffectsSettings(targets=("exact",))
    with pytest.raises(saelab.UserError, match="in:_avg_pooling"):
        words_lines(made, made.labelled[:1], own)
    second, head, output = words_lines(last, [b for b in last.labelled if b.kind == "neuron"], own)
    assert "no words" in second and "first of all outputs for" in head and "first of all outputs for 3 of 3" in output
    table = made.effects["neuron"]
    with pytest.raises(saelab.UserError, match="linear read-out"):
        table.words()


def test_the_hosts_own_logits_are_units_that_do_what_they_are_called(last):
    """The one basis whose labels are known: each logit raises its own class and nothing else."""
    logits = next(b for b in last.labelled if b.layer == "output" and b.kind == "neuron")
    own = EffectsSettings(units="all", targets=("exact",), measure=MeasureSettings(count=5))
    rows = read_jsonl(last.measure_effects(logits, own) / "effects.jsonl")
    assert [row["label"] for row in rows] == ["red", "green", "blue"]
    for row in rows:
        assert row["causal_pct"] == pytest.approx(5 / 6) and row["top1"], "the best of three outputs"
        assert row["moved"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) ** 2 / (4 / 9 + 1 / 9 + 1 / 9))
        np.testing.assert_allclose(row["screen"], row["own"], rtol=1e-4)
    words = read_jsonl(last.find_words(logits, own).path / "words.jsonl")
    assert all(row["first"] for row in words)


def test_outputs_asked_for_as_a_basis_are_one_line_that_says_how():
    with pytest.raises(saelab.UserError, match=r"layers=\[output\] bases=\[neuron\]"):
        saelab.Pipeline(bases=["output"])
