"""Numbers of effects in closed form: a host that is linear in its tokens, so that each edit's answer is one product."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from effects_worlds import Planted, ground
from scipy import stats

from saelab.compare.left_out import Measured
from saelab.compare.shared import of_one
from saelab.effects import MeasureSettings, amounts, difference, measure, summarise
from saelab.effects.groups import measure_group
from saelab.effects.steering import AMPLIFIED, DOSES, STEERED, output_scores
from saelab.effects.summary import USES, add_corrected, causal_columns, correct, mean_of, share_below
from saelab.units.bases import Projection

IMAGES, TOKENS, UNITS, OUTPUTS = 40, 3, 6, 15
LABELS = ["class 3", "class 7", "class 3", None, "class 11", "purple"]


class Linear(Planted):
    """Logits = mean over tokens @ head."""

    def logits(self, ids, edited):
        return edited.mean(-2) @ self.head

    def gradient(self, ids, tokens, weights):
        return (self.head @ weights.to(self.head) / tokens.shape[1]).expand_as(tokens)


@pytest.fixture(scope="module")
def world():
    """Tokens, head and ground; every unit fires on 12 of 40 pictures, unit 4 on 28."""
    rng = np.random.default_rng(0)
    tokens = rng.uniform(0.5, 2, (IMAGES, TOKENS, UNITS)).astype(np.float32)
    for unit in range(UNITS):
        tokens[rng.permutation(IMAGES)[12 if unit != 4 else 28 :], :, unit] = 0
    head = rng.normal(0, 1, (UNITS, OUTPUTS)).astype(np.float32)
    own = ground(tokens, head, LABELS)
    answers = Linear(torch.from_numpy(tokens), torch.from_numpy(head))
    return tokens.astype(float), head.astype(float), dataclasses.replace(own, answers=answers)


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def midranks(x: np.ndarray) -> np.ndarray:
    return np.array([((x < v).sum() + (x == v).sum() / 2) / len(x) for v in x])


def place(label: str) -> int:
    return int(label.split()[1])


@pytest.mark.parametrize("unit", [0, 1, 4])
def test_what_a_unit_does_where_all_is_linear(world, unit):
    tokens, head, own = world
    row = measure(unit, own, MeasureSettings(count=9))
    strength = tokens[..., unit].max(1)
    chosen = np.argsort(-strength, kind="stable")[:9]
    assert row["pictures"] == chosen.tolist() and row["fires"] == (strength > 0).sum()
    amount = tokens[chosen][..., unit].mean(1)
    effect = amount[:, None] * centred(head[unit])  # [pictures, outputs]
    mean, at = effect.mean(0), place(LABELS[unit])
    assert row["own"] == pytest.approx(effect[:, at], rel=1e-4) and row["drop"] == pytest.approx(mean[at], rel=1e-4)
    assert row["screen"] == pytest.approx(row["own"], rel=1e-4)
    assert row["size"] == pytest.approx(np.linalg.norm(effect, axis=1).mean(), rel=1e-4)
    assert row["moved"] == pytest.approx(np.abs(mean).sum() ** 2 / (mean**2).sum(), rel=1e-4)
    order = np.argsort(mean)
    for name, places in (("raised", order[::-1][:5]), ("lowered", order[:5])):
        assert [output for output, _ in row[name]] == [f"class {i}" for i in places]
        assert [value for _, value in row[name]] == pytest.approx(mean[places], rel=1e-4)
    pct, means = midranks(mean), [place(LABELS[u]) for u in (0, 1, 2, 4)]
    left = 1 - (0.5**2 + 0.25**2 + 0.25**2)
    assert row["causal_pct"] == pytest.approx(pct[at]) and row["causal_chance"] == pytest.approx(pct[means].mean())
    assert row["causal"] == pytest.approx((pct[at] - pct[means].mean()) / left)
    assert row["causal_p"] == np.mean([mean[m] >= mean[at] for m in means])
    assert row["top1"] == (pct[at] == pct.max()) and row["top10"] == ((mean > mean[at]).sum() < 10)
    foreign = midranks(amount.mean() * head[own.partner[unit]])
    assert row["permuted_pct"] == pytest.approx(foreign[at])
    assert row["without"]["causal"] == pytest.approx([row["causal"]] * 9), "one profile, whichever picture is left out"
    logits = tokens[chosen].mean(1) @ head
    before, after = softmax(logits), softmax(logits - amount[:, None] * head[unit])
    assert row["drop_log_p"] == pytest.approx(np.log(before[:, at] / after[:, at]).mean(), rel=1e-3)
    first, then = before.argmax(1) == at, after.argmax(1) == at
    assert row["necessity"] == (pytest.approx((first & ~then).sum() / first.sum()) if first.any() else None)
    assert row["other_value_pct"] == (pytest.approx(pct[at]) if unit == 4 else None), "28 of 40 fire it: often"


@pytest.mark.parametrize("unit", [0, 1, 2])
def test_a_unit_added_in_doses_where_all_is_linear(world, unit):
    tokens, head, own = world
    strength = tokens[..., unit].max(1)
    silent = np.flatnonzero(strength == 0)[:15]  # of at most 20 silent pictures all are taken
    ids = np.sort(np.r_[np.flatnonzero(strength)[:8], silent])
    some = dataclasses.replace(own, ids=ids, acts=own.acts[torch.from_numpy(ids)])
    row = measure(unit, some, MeasureSettings(count=6))
    assert list(row["steer_pct"]) == list(row["kl"]) == [f"{dose:g}" for dose in STEERED]
    at, usual = place(LABELS[unit]), float(own.usual[unit])
    logits = tokens[silent].mean(1) @ head
    for dose in STEERED:
        p, q = softmax(logits), softmax(logits + dose * usual * head[unit])
        assert row["kl"][f"{dose:g}"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-3)
        assert row["steer_pct"][f"{dose:g}"] == pytest.approx(midranks(head[unit])[at])
    assert row["dose"] == pytest.approx(np.sign(centred(head[unit])[at])) and not row["inverted"]
    scores = []
    for picture in logits + AMPLIFIED * usual * head[unit]:
        p = softmax(picture)
        rank = np.argsort(-p, kind="stable").tolist().index(at)
        scores.append((1 - rank / OUTPUTS) * p[at])
    assert row["output_score"] == pytest.approx(np.mean(scores), rel=1e-4, abs=1e-12)


def test_more_that_does_less_is_inverted(world):
    tokens, _, own = world
    usual = float(own.usual[0])

    class Bent(Planted):
        """Class 3 rises with the unit to 1.5 times its usual amount and falls from there."""

        def logits(self, ids, edited):
            made, amount = edited.new_zeros(*edited.shape[:2], OUTPUTS), edited.mean(-2)[..., 0] / usual
            made[..., 3] = amount * (3 - amount)
            return made

        def gradient(self, ids, tokens, weights):
            return torch.zeros_like(tokens)

    bent = dataclasses.replace(own, answers=Bent(torch.from_numpy(tokens).float(), torch.zeros(UNITS, OUTPUTS)))
    row = measure(0, bent, MeasureSettings(count=6))
    doses = np.array([0, *DOSES])
    expected = stats.spearmanr(doses, (doses * (3 - doses)).round(6)).statistic
    assert row["inverted"] and row["dose"] == pytest.approx(expected, abs=0.11), "two doses tie but for rounding"
    assert measure(4, own, MeasureSettings(count=6))["inverted"] is False


def test_units_of_one_label_are_seen_where_each_is_near_its_own_strongest(world):
    tokens, head, own = world
    wide = tokens * np.array([1.0, 1, 50, 1, 1, 1])  # in pictures by plain sums, unit 2 would decide alone
    acts = torch.from_numpy(wide).float()
    loud = dataclasses.replace(own, answers=Linear(acts, torch.from_numpy(head).float()), acts=acts.amax(1))
    row = measure_group("class 3", [0, 2], loud, MeasureSettings(count=6))
    peaks = wide.max(1)
    strength = peaks[:, 0] / peaks[:, 0].max() + peaks[:, 2] / peaks[:, 2].max()
    chosen = np.argsort(-strength, kind="stable")[:6]
    assert row["pictures"] == chosen.tolist() and row["fires"] == (strength > 0).sum()
    amounts = wide[chosen].mean(1)
    lost = (amounts[:, :1] * head[0] + amounts[:, 2:3] * head[2]).mean(0)
    assert row["drop"] == pytest.approx(centred(lost)[3], rel=1e-4) and row["beyond"] == pytest.approx(0, abs=1e-3)
    assert row["causal_pct"] == pytest.approx(midranks(lost)[3])
    single = [midranks(amounts[:, u].mean() * head[u])[3] for u in (0, 2)]
    assert row["single_pct"] == pytest.approx(np.mean(single))


def test_usual_amounts_are_means_and_high_quantiles_of_mining_tokens(monkeypatch):
    """Whatever is held at once; of more tokens than are looked at, as many drawn by seed."""
    tokens = np.random.default_rng(0).normal(0.5, 1, (900, 4)).astype(np.float16)
    tokens[:, 3] = -1
    store = SimpleNamespace(rows=lambda split: np.arange(100, 900) if split == "mine" else None, tokens=tokens)
    seen = tokens[100:].astype(float).clip(0)
    for at_once in (amounts.AT_ONCE, 7 * 4):
        monkeypatch.setattr(amounts, "AT_ONCE", at_once)
        means, usual = amounts.usual_amounts(store, Projection(), [2, 0, 3], 4)
        np.testing.assert_allclose(means[[0, 2, 3]], seen[:, [0, 2, 3]].mean(0), rtol=1e-5)
        for unit in (0, 2):
            positive = seen[:, unit][seen[:, unit] > 0]
            assert float(usual[unit]) == pytest.approx(np.quantile(positive, 0.95), rel=1e-5)
        assert means.isnan().tolist() == [False, True, False, False], "unit 1 was not asked for"
        assert usual.isnan().tolist() == [False, True, False, True], "unit 3 is silent"
    monkeypatch.setattr(amounts, "TOKENS", 300)
    some = [amounts.usual_amounts(store, Projection(), [0], 4, seed)[0][0] for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2] and abs(some[0] - seen[:, 0].mean()) < 0.2
    drawn = np.random.default_rng(1).choice(np.arange(100, 900), 300, replace=False)
    assert float(some[2]) == pytest.approx(tokens[drawn, 0].astype(float).clip(0).mean(), rel=1e-5)


def test_partners_form_one_cycle_through_all_units(world):
    own = world[2]
    seen, unit = [], 0
    for _ in range(UNITS):
        unit = int(own.partner[unit])
        seen.append(unit)
    assert sorted(seen) == list(range(UNITS)) and seen[-1] == 0
    other = dataclasses.replace(own, seed=1).partner
    assert not np.array_equal(own.partner, other)


def rows_of(values: np.ndarray, labels: list[str], name: str = "causal_net") -> list[dict]:
    return [{"unit": i, "label": label, name: value} for i, (value, label) in enumerate(zip(values, labels))]


def test_a_difference_of_units_with_labels_of_their_own_is_welch():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 25), rng.normal(0, 2, 40)
    rows = [rows_of(x, [f"{i}" for i in range(len(x))]) for x in (a, b)]
    rows[0].insert(3, {"unit": 99, "label": "none", "causal_net": None})
    found, twin = difference(*rows), stats.ttest_ind(a, b, equal_var=False)
    interval = twin.confidence_interval(0.95)
    assert (found.difference, found.p, found.df) == pytest.approx((a.mean() - b.mean(), twin.pvalue, twin.df))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    flat = [rows_of(np.full(5, x), list("abcde")) for x in (0.5, 0.25)]
    assert difference(*flat) is None and difference(flat[0], flat[0]) is None, "nothing says how sure that is"
    assert mean_of(np.full(5, 0.5), list("abcde")).interval() is None
    assert difference(rows[0], rows_of(b, ["one"] * 40)) is None


def test_units_of_one_label_move_together():
    """Against loops over labels: sums of gaps, squared, over n^2, each over 1 less the label's share of the units."""
    values, labels = np.array([0.1, 0.5, 0.9, 0.4, np.nan, 0.2]), ["a", "b", "a", None, "b", None]
    found = mean_of(values, labels)
    gaps = values - np.nanmean(values)
    sums = [gaps[0] + gaps[2], gaps[1], gaps[3], gaps[5]]
    assert found.units == 5 and found.mean == pytest.approx(np.nanmean(values))
    shares = np.array([2, 1, 1, 1]) / 5
    assert found.se**2 == pytest.approx((np.square(sums) / 25 / (1 - shares)).sum())
    assert (found.clusters, found.df) == (4, pytest.approx(1 / np.square(shares).sum() - 1))


@pytest.mark.parametrize(
    "sizes", [[1] * 60, [40] + [1] * 60, [10] + [1] * 10, [60, 20, 10, 5, 5], [6, 4, 2] + [1] * 8, [8] * 3]
)
def test_intervals_hold_the_truth_however_uneven_labels_are(sizes):
    """Means that move with their labels: 95 % intervals hold 0 in 9 of 10 worlds, alarms are rare (Gaussian draws)."""
    rng, labels = np.random.default_rng(1), [f"{i}" for i, size in enumerate(sizes) for _ in range(size)]

    def draw() -> np.ndarray:
        return np.repeat(rng.normal(size=len(sizes)), sizes) + 0.3 * rng.normal(size=len(labels))

    held = alarms = 0
    for _ in range(600):
        a, b = draw(), draw()
        low, high = mean_of(a, labels).interval()
        held += low <= 0 <= high
        alarms += difference(rows_of(a, labels), rows_of(b, labels)).p < 0.05
    assert held >= 0.915 * 600 and alarms <= 0.085 * 600


def test_effects_and_comparisons_share_one_error():
    rng = np.random.default_rng(2)
    values, cluster = rng.normal(size=60), np.unique(rng.integers(0, 30, 60), return_inverse=True)[1]
    nothing = np.zeros(60, dtype=np.int64)
    side = Measured(values, values, np.zeros((0, 60)), cluster, nothing, np.arange(60), 1, 0)
    whole, own = of_one(side, None), mean_of(values, [f"{i}" for i in cluster])
    assert (whole.low, whole.high) == pytest.approx(own.interval())
    assert whole.variance["units_a"] == pytest.approx(own.se**2) and whole.df == pytest.approx(own.df)


def test_the_summary_of_a_basis_is_that_of_its_rows():
    nothing = {"why": None, "how": "exact", "screen": None, "own": None, "causal_control": 0.5, "inverted": False}
    values = [0.2, 0.4, -0.1, None, 0.9]
    rows = [nothing | {"unit": u, "label": f"{u}", "causal": x, "causal_net": x} for u, x in enumerate(values)]
    for row, p in zip(rows, (0.01, 0.04, 0.05, None, 0.5)):
        row["causal_p"] = p
    rows[0] |= {"screen": [1.0, 2.0], "own": [1.5, 2.0], "kl": {"1": 0.2}, "steer_pct": {"1": 0.9, "2": 0.8}}
    rows[1] |= {"screen": [3.0, 5.0], "own": [4.5, 6.0], "kl": {"1": 0.6}, "inverted": True}
    rows[2] |= {"causal_control": None, "how": "text"}
    rows[3] |= {"why": "no_target", "how": "none", "causal_control": None}
    rows = add_corrected(rows)
    found = summarise(rows, [True, False, True, None, True], 9)
    assert (found["units"], found["chosen"], found["measured"], found["without_companions"]) == (9, 5, 4, 1)
    assert found["how"] == {"exact": 3, "text": 1, "none": 1} and found["inverted"] == 1
    assert found["mean"]["causal"]["mean"] == pytest.approx(1.4 / 4) and found["mean"]["causal"]["units"] == 4
    assert found["all"]["causal"]["mean"] == pytest.approx(1.4 / 5) and found["all"]["causal"]["units"] == 5
    assert found["labelled"]["causal"]["mean"] == pytest.approx((0.2 - 0.1 + 0.9) / 3)
    assert found["kl"]["1"]["mean"] == pytest.approx(0.4) and found["kl"]["1"]["units"] == 2
    assert found["steer_pct"]["2"] == {"mean": 0.8, "se": None, "units": 1}
    assert found["uses"] == 0.5, "2 of 4: below 0.05, not at it"
    assert found["uses_corrected"] == 0.25, "0.01 x 4 is below, 0.04 x 4 / 2 and 0.05 x 4 / 3 are not"
    assert found["four_field"] == {"both": 0.2, "detects": 0.4, "uses": 0.2, "neither": 0.2}
    quick, exact = [1.0, 2, 3, 5], [1.5, 2, 4.5, 6]
    assert found["screen_r"] == pytest.approx(np.corrcoef(quick, exact)[0, 1])
    assert found["screen_slope"] == pytest.approx(np.polyfit(quick, exact, 1)[0])
    assert summarise(rows[2:], [None] * 3, 3)["screen_r"] is None
    columns = causal_columns([rows[4], rows[1]], 6)
    assert columns["causal_p"].tolist()[1::3] == [0.04, 0.5] and np.isnan(columns["causal"][[0, 2, 3, 5]]).all()


def test_p_values_are_corrected_for_the_number_of_units():
    """Twin: Benjamini & Hochberg's step-up rule, written out; under chance alone units almost never pass."""
    rng = np.random.default_rng(0)
    p = rng.random(40) ** 2
    p[7] = np.nan
    known = np.sort(p[np.isfinite(p)])
    last = max((i for i, value in enumerate(known, 1) if value <= USES * i / len(known)), default=0)
    found = correct(p)
    assert (
        np.isnan(found[7]) and (found <= USES).sum() == last > 0 and (found[np.isfinite(p)] >= p[np.isfinite(p)]).all()
    )
    worlds = [rng.random(100) for _ in range(200)]
    assert np.mean([share_below(world) for world in worlds]) == pytest.approx(0.05, abs=0.01)
    any_left = np.mean([share_below(correct(world)) > 0 for world in worlds])
    assert any_left < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(worlds))
    assert share_below(correct(np.full(3, np.nan))) == 0


def test_the_output_score_is_the_probability_that_an_amplified_unit_gives_what_it_alone_writes():
    """Identity: logits are 0 where the unit is silent, so that it alone decides: p in closed form, and rank 0.

    A unit that writes another class than its label's leaves the label's output among the 19 losers: the formula, with
    rank 1, since all of them tie; near 0.
    """
    tokens = np.zeros((20, 1, 2))
    tokens[:10, 0] = 0.5, 0.7
    head = np.zeros((2, 20))
    head[0, 4], head[1, 9] = 2.0, 2.0
    own = ground(tokens, head, ["class 4", "class 5"])
    writes, elsewhere = (measure(unit, own, MeasureSettings()) for unit in (0, 1))
    p = np.exp(AMPLIFIED * 0.5 * 2) / (np.exp(AMPLIFIED * 0.5 * 2) + 19)
    assert p > 0.999 and writes["output_score"] == pytest.approx(p, rel=1e-6)
    left = 1 / (np.exp(AMPLIFIED * 0.7 * 2) + 19)
    assert elsewhere["output_score"] == pytest.approx((1 - 1 / 20) * left, rel=1e-4) and left < 1e-5


def test_of_a_label_with_several_outputs_the_likeliest_counts():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.15, 0.05]]))
    found = output_scores(logits, np.array([0, 2]))
    assert found.tolist() == pytest.approx([(1 - 2 / 4) * 0.2, 0.7], rel=1e-6)
