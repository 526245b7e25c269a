"""Causal faithfulness on planted hosts, whose units write a class, only read one, or write another than they read."""

import dataclasses

import numpy as np
import pytest
import torch
from effects_worlds import KINDS, OUTPUTS, ground, world
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from saelab.effects import MeasureSettings, add_corrected, causal_columns, difference, measure, percentiles, summarise
from saelab.effects.ablate import Active, effects
from saelab.effects.causal import choose_pictures, companions
from saelab.effects.ground import FEWEST, run_edits
from saelab.effects.groups import groups_of, measure_group, summarise_groups
from saelab.effects.summary import column, four_field, mean_of
from saelab.effects.targets import Outputs, find_targets
from saelab.errors import UserError
from saelab.sae import SAE, Meta
from saelab.units.bases import Projection

QUICK = MeasureSettings(count=8)
WORLDS = 100
EACH = 5  # units of a kind


@pytest.fixture(scope="module")
def worlds():
    """The rows of 100 worlds, five units of each kind in one basis."""
    kinds = [kind for kind in KINDS for _ in range(EACH)]
    found = []
    for seed in range(WORLDS):
        own = world(seed, kinds)
        rows = [measure(unit, own, QUICK) for unit in range(len(kinds))]
        found.append({kind: rows[i * EACH : (i + 1) * EACH] for i, kind in enumerate(KINDS)})
    return found


def test_units_that_write_read_or_write_elsewhere_are_told_apart(worlds):
    def tell(rows):
        if np.nanmean(column(rows, "causal")) > 0.37:
            return "writes"
        return "elsewhere" if np.nanmean(column(rows, "moved")) < 0.5 * OUTPUTS else "reads"

    right = sum(all(tell(found[kind]) == kind for kind in KINDS) for found in worlds)
    assert right >= 95


def test_only_units_that_write_their_class_have_an_effect_above_chance(worlds):
    for kind in KINDS:
        rows = [row for found in worlds for row in found[kind]]
        pct, causal = np.nanmean(column(rows, "causal_pct")), np.nanmean(column(rows, "causal"))
        net, permuted = np.nanmean(column(rows, "causal_net")), np.nanmean(column(rows, "permuted_pct"))
        if kind == "writes":
            assert pct > 0.95 and causal > 0.4 and net > 0.3
            assert np.mean(column(rows, "causal_p") < 0.2) > 0.9 and np.nanmean(column(rows, "dose")) > 0.95
        else:
            assert abs(causal) < 0.03 and abs(net) < 0.03 and np.mean(column(rows, "top1")) < 0.06
        assert abs(permuted - pct) > 0.3 or kind != "writes"


def test_the_percentile_is_the_rank_that_the_class_has_in_what_the_unit_writes(worlds):
    """Exact, unit by unit: whatever is left of 0 in the means above is the draw of the worlds."""
    kinds = [kind for kind in KINDS for _ in range(EACH)]
    for seed in range(0, WORLDS, 10):
        own, found = world(seed, kinds), [row for kind in KINDS for row in worlds[seed][kind]]
        for unit, row in enumerate(found):
            written = own.answers.head[unit]
            planted = float((written < written[int(own.labels[unit].split()[1])]).sum()) + 0.5
            assert row["causal_pct"] == pytest.approx(planted / OUTPUTS)


def test_a_difference_of_bases_is_rarely_seen_where_there_is_none(worlds):
    """Units that only read, against units that write elsewhere: the network uses neither for their labels."""
    found = [difference(world_["reads"], world_["elsewhere"]) for world_ in worlds]
    alarms = sum(one.p < 0.05 for one in found if one is not None)
    assert alarms <= 5 + 2 * np.sqrt(WORLDS * 0.05 * 0.95)
    seen = [difference(world_["writes"], world_["reads"], "causal_pct") for world_ in worlds]
    assert sum(one.p < 0.05 and one.difference > 0 for one in seen if one is not None) >= 80


def test_units_that_stand_in_for_each_other_are_seen_only_together():
    """One direction read by three units, of which any is enough: the rest of the model takes their maximum."""
    rng = np.random.default_rng(0)
    fires = rng.random((60, 3, 1)) < 0.4
    tokens = np.concatenate([np.repeat(2.0 * fires, 3, axis=2), rng.random((60, 3, 3)) * (~fires)], axis=2)
    own = ground(tokens, rng.normal(0, 0.1, (6, OUTPUTS)), ["class 7"] * 3 + ["class 1", "class 2", None])

    class Enough:
        """Class 7 is raised by the largest of the three."""

        def tokens(self, ids):
            return torch.from_numpy(tokens[ids]).float()

        def logits(self, ids, edited):
            made = edited.new_zeros(*edited.shape[:2], OUTPUTS)
            made[..., 7] = edited[..., :3].amax(-1).mean(-1)
            return made

    own = dataclasses.replace(own, answers=Enough())
    assert groups_of(own.labels, own.targets) == {"class 7": [0, 1, 2]}
    row = measure_group("class 7", [0, 1, 2], own, QUICK)
    assert row["singles"] == pytest.approx(0, abs=1e-9) and row["drop"] > 0.3
    assert row["beyond"] == pytest.approx(row["drop"])
    assert row["causal_pct"] > 0.98 and row["single_pct"] == pytest.approx(0.5)
    silent = dataclasses.replace(own, acts=torch.zeros(60, 6))
    assert measure_group("class 7", [0, 1, 2], silent, QUICK)["why"] == "too_few"


def test_single_losses_add_up_where_the_rest_is_linear():
    own = world(9, ["writes"] * 6)
    own = dataclasses.replace(own, labels=["class 3"] * 3 + ["class 4"] * 2 + [None])
    own = dataclasses.replace(own, targets=find_targets(["class 3", "class 4"], Outputs(own.names), ("exact",)))
    rows = [measure_group(label, units, own, QUICK) for label, units in groups_of(own.labels, own.targets).items()]
    assert [row["units"] for row in rows] == [[0, 1, 2], [3, 4]]
    assert all(row["beyond"] == pytest.approx(0, abs=1e-5) for row in rows)
    found = summarise_groups(rows)
    assert (found["measured"], found["units"]) == (2, 5) and found["times"] == pytest.approx(1, abs=1e-3)
    assert summarise_groups([])["times"] is None


def test_without_each_picture():
    """The numbers once more without each picture, by hand: the mean effect over the others, ranked anew."""
    own = world(4, ["writes"] * 6)
    row = measure(2, own, QUICK)
    ids = np.array(row["pictures"])
    active = Active.of(own.project, own.answers.tokens(ids))
    edits = [active.without(unit, own.writes[unit]) for unit in (2, *row["companions"])]
    found = effects(*run_edits(own.answers, ids, active.tokens, edits))
    output = own.targets.weights[own.labels[2]][0][0]
    for i in range(len(ids)):
        pct = percentiles(torch.from_numpy(np.delete(found.numpy(), i, 1).mean(1)))[:, output]
        if row["companions"]:
            assert row["without"]["causal_net"][i] == pytest.approx(float(pct[0] - pct[1:].mean()), abs=1e-9)
    assert len(row["without"]["causal"]) == len(ids)


def test_a_row_depends_on_its_own_unit_alone():
    own = world(3, ["writes"] * 8)
    alone = measure(5, own, QUICK)
    for unit in (2, 7):
        measure(unit, own, QUICK)
    assert measure(5, own, QUICK) == alone
    assert measure(5, own, MeasureSettings(count=8, seed=1)) != alone


@tries(max_examples=25)
@given(st.integers(0, 10_000))
def test_a_silent_unit_changes_nothing_to_the_bit(seed):
    own = world(seed, ["writes"] * 6)
    active = Active.of(own.project, own.answers.tokens(own.ids))
    for unit in range(6):
        silent = (active.acts[..., unit] == 0).all(1)
        before, after = run_edits(own.answers, own.ids, active.tokens, [active.without(unit, own.writes[unit])])
        assert torch.equal(before[silent], after[0][silent])
        assert torch.equal(effects(before, after)[0][silent], torch.zeros(int(silent.sum()), OUTPUTS).double())
        assert not torch.equal(before[~silent], after[0][~silent])


@pytest.mark.parametrize("basis", ["neurons", "rotation", "sae"])
def test_single_ablations_add_up_to_the_joint_one_where_the_rest_is_linear(basis):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    rotation = torch.linalg.qr(draw(6, 6))[0]
    sae = SAE(draw(9, 6), draw(9), draw(9, 6), draw(6), Meta(rule="topk", k=3, input_norm="layer"))
    project = {
        "neurons": Projection(),
        "rotation": Projection("split", rotation, draw(6)),
        "sae": Projection(sae=sae),
    }[basis]
    tokens, head = draw(7, 4, 6), draw(6, 11)
    active, writes = Active.of(project, tokens), project.writes(6)

    def answer(x):
        return x.mean(-2) @ head

    single = [effects(answer(tokens), answer(active.without(u, w))) for u, w in enumerate(writes)]
    joint = tokens - sum(active.part(u, w) for u, w in enumerate(writes))
    torch.testing.assert_close(sum(single), effects(answer(tokens), answer(joint)), rtol=1e-4, atol=1e-5)


def test_percentiles_are_those_of_midranks_and_average_to_a_half():
    effect = torch.tensor([[3.0, 1.0, 1.0, -2.0], [0.0, 0.0, 0.0, 0.0]]).double()
    expected = torch.tensor([[0.875, 0.5, 0.5, 0.125], [0.5] * 4]).double()
    assert torch.equal(percentiles(effect), expected)
    torch.testing.assert_close(percentiles(torch.randn(5, 999).double()).mean(1), torch.full((5,), 0.5).double())


def test_labels_dealt_out_average_to_chance_exactly():
    """The mean over all units' labels, put on one unit, is its `causal_chance`; the mean above chance is 0."""
    own = world(1, ["writes"] * 10)
    for unit in (0, 4):
        dealt = []
        for label in own.labels:
            labels = [label if u == unit else other for u, other in enumerate(own.labels)]
            dealt.append(measure(unit, dataclasses.replace(own, labels=labels), QUICK)["causal_pct"])
        row = measure(unit, own, QUICK)
        np.testing.assert_allclose(np.mean(dealt), row["causal_chance"], rtol=1e-12)
        np.testing.assert_allclose(row["causal"] * own.left, row["causal_pct"] - np.mean(dealt), rtol=1e-9)


def test_effects_by_hand():
    """One picture class, two units: the first writes output 1 alone."""
    tokens = np.zeros((8, 1, 2))
    tokens[:6, 0, 0], tokens[:, 0, 1] = 2.0, 1.0
    own = ground(tokens, np.array([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]), ["class 1", "class 2"])
    row = measure(0, own, MeasureSettings())
    assert sorted(row["pictures"]) == list(range(6)) and row["fires"] == 6
    np.testing.assert_allclose(row["drop"], 4.0)  # logits 6 -> 0 of three: centred 4
    assert row["raised"][0] == ("class 1", pytest.approx(4.0)) and row["causal_pct"] == pytest.approx(5 / 6)
    assert row["necessity"] == 1.0 and row["causal_p"] == 0.5 and row["top1"]
    log_p = np.log(np.exp(6) / (np.exp(6) + np.e + 1)) - np.log(1 / (1 + np.e + 1))
    np.testing.assert_allclose(row["drop_log_p"], log_p, rtol=1e-5)
    np.testing.assert_allclose(row["moved"], 8**2 / (16 + 4 + 4))
    np.testing.assert_allclose(row["screen"], row["own"], rtol=1e-5)
    assert "steer_pct" not in row  # silent on two pictures only


def test_units_without_numbers_say_why():
    tokens = np.zeros((12, 1, 4))
    tokens[: FEWEST - 1, 0, 0] = 1.0
    tokens[:, 0, 1:] = np.random.default_rng(0).random((12, 3))
    own = ground(tokens, np.random.default_rng(1).normal(0, 1, (4, 5)), ["class 1", None, "purple", "class 2"])
    rows = [measure(unit, own, QUICK) for unit in range(4)]
    assert [row["why"] for row in rows] == ["too_few", "unlabelled", "no_target", None]
    assert "causal_pct" not in rows[2] and rows[2]["raised"], "what it does is shown, without a label too"
    found = summarise(add_corrected(rows), [True, None, True, False], 4)
    assert found["measured"] == 1 and found["why"] == {"too_few": 1, "unlabelled": 1, "no_target": 1}
    assert found["how"] == {"exact": 2, "none": 1}
    assert found["all"]["causal"]["mean"] == pytest.approx(rows[3]["causal"] / 4)
    assert np.isnan(causal_columns(rows[2:], 6)["causal"]).tolist() == [True, True, True, False, True, True]


def test_mean_ablation_leaves_the_mean():
    own = world(0, ["writes"] * 4)
    active = Active.of(own.project, own.answers.tokens(own.ids))
    left = active.without(2, own.writes[2], float(own.means[2]))
    torch.testing.assert_close(left[..., 2], own.means[2].expand(left.shape[:2]), rtol=1e-5, atol=1e-6)
    assert measure(2, own, MeasureSettings(count=8, value="mean"))["value"] == "mean"


def test_companions_fire_on_the_same_pictures_with_parts_of_like_length():
    acts = torch.zeros(4, 1, 6)
    acts[:, 0, 0], acts[:, 0, 1], acts[:, 0, 2] = 1.0, 2.0, 10.0
    acts[:2, 0, 3], acts[:3, 0, 4], acts[:, 0, 5] = 1.0, 1.0, 0.9
    active = Active(torch.zeros(4, 1, 6), acts, torch.ones(4, 1, 1))
    assert companions(active, 0, torch.eye(6)) == [5, 4, 1]  # 2 is too long, 3 fires on half of the pictures
    assert companions(active, 2, torch.eye(6)) == []


def test_pictures_are_the_strongest_or_spread_over_all_that_fire():
    strength = torch.tensor([0.0, 5, 1, 3, 3, 2, 0, 4]).double()
    assert strength[choose_pictures(strength, MeasureSettings(count=5))].tolist() == [5, 4, 3, 3, 2]
    strength = torch.arange(101.0).double()
    spread = choose_pictures(strength, MeasureSettings(count=5, pictures="quantiles"))
    assert spread.tolist() == [100, 75, 50, 26, 1] or spread.tolist() == [100, 75, 51, 26, 1]


@pytest.mark.parametrize("wrong", [{"count": 3}, {"pictures": "tops"}, {"value": "nought"}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        MeasureSettings(**wrong)


def test_errors_know_which_units_share_a_label():
    values = np.array([1.0, 1, 1, 0, 0, 0])
    apart = mean_of(values, ["a", "b", "c", "d", "e", "f"])
    together = mean_of(values, ["a", "a", "a", "b", "b", "b"])
    assert apart.mean == together.mean == 0.5 and together.se > 1.5 * apart.se
    np.testing.assert_allclose(apart.se, values.std(ddof=1) / np.sqrt(6))
    assert mean_of(values, ["a"] * 6).se is None and mean_of(np.full(3, np.nan), ["a"] * 3) is None


def test_four_fields_are_shares_of_all_units():
    found = four_field(np.array([0.01, 0.5, 0.01, np.nan]), [True, True, None, False])
    assert found == {"both": 0.25, "detects": 0.25, "uses": 0.25, "neither": 0.25}
