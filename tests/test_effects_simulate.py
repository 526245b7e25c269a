"""Ablation scores: exact ends, the authors' formula written out, planted labels, pictures that don't fire a unit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from effects_worlds import Planted
from hypothesis import given, settings
from hypothesis import strategies as st
from test_effects_attribution import Curved, draw
from test_effects_stage import made  # noqa: F401  (a fixture)

from saelab.artifacts import read_jsonl
from saelab.cli.effects import simulation_lines
from saelab.effects.ablate import Active
from saelab.effects.simulate import Stand, find_losses, fit_line, score_unit, with_pooled
from saelab.errors import UserError
from saelab.evaluate import Judges
from saelab.run.stages.effects import EffectsSettings
from saelab.run.stages.simulation import Predictors, best_concept, summarise
from saelab.sae import SAE, Meta
from saelab.truth import Similarity, Truth
from saelab.units.bases import Projection

MINE, SCORED = np.arange(12), np.arange(12, 30)


def stand(kind: str = "neurons", classes: bool = True, host: type = Curved) -> tuple[Stand, torch.Tensor]:
    """30 pictures of 4 tokens, and every unit's activation, the maximum over tokens."""
    project = Projection()
    if kind == "sae":
        sae = SAE(draw(1, 9, 5), draw(2, 9), draw(3, 9, 5), draw(4, 5), Meta(rule="topk", k=3, input_norm="unit"))
        project = Projection(sae=sae)
    answers = host(draw(5, 30, 4, 5), draw(6, 5, 7))
    acts = project(answers.all.flatten(0, 1)).unflatten(0, (30, 4)).amax(1)
    own = np.arange(len(SCORED)) % 7 if classes else np.full(len(SCORED), -1)
    return Stand(answers, project, project.writes(5), MINE, SCORED, own), acts


@pytest.mark.parametrize("kind", ["neurons", "sae"])
@pytest.mark.parametrize("classes", [True, False])
def test_the_ends_are_exact(kind, classes):
    """The unit's own activation gives 1, its mean 0, to the bit; for a line of either too."""
    ground, acts = stand(kind, classes)
    firing = [unit for unit in range(acts.shape[1]) if (acts[MINE, unit] > 0).sum() > 1]
    for unit in firing[:4]:
        own = acts[:, unit].double()
        ideal = own.clone()
        slope, start = fit_line(own[MINE], own[MINE])
        assert slope == pytest.approx(1) and start == pytest.approx(0, abs=1e-9)
        found = score_unit(unit, ground, acts[:, unit], {"own": ideal, "mean": torch.ones(30), "line": 5 - 3 * ideal})
        assert found["scores"]["mean"] == 0 and found["scores"]["own"] == pytest.approx(1, abs=1e-4)
        assert found["scores"]["line"] == pytest.approx(1, abs=1e-4) and found["depends"] > 0


def test_the_score_is_the_authors_formula():
    """The twin: mode `norm` with mean, sd and r of validation images, every picture edited by hand."""
    ground, acts = stand()
    host, unit, v = ground.answers, 2, draw(9, 30).double()
    a = acts[:, unit].double()
    mine = (v[MINE] - v[MINE].mean()) / v[MINE].std(correction=0)
    r = np.corrcoef(v[MINE], a[MINE])[0, 1]
    slope, start = fit_line(v[MINE], a[MINE])
    assert torch.allclose(mine * r * a[MINE].std(correction=0) + a[MINE].mean(), slope * v[MINE] + start)
    wanted = (v[SCORED] - v[MINE].mean()) / v[MINE].std(correction=0) * r * a[MINE].std(correction=0) + a[MINE].mean()
    shape = np.mean([host.all[i, :, unit].clamp(min=0).double().mean() / a[i] for i in MINE if a[i] > 0])
    differences = []
    for replaced in (wanted.clamp(min=0), a[MINE].mean().expand(len(SCORED))):
        total = 0.0
        for n, i in enumerate(SCORED):
            tokens = host.all[i].clone().double()
            fires = tokens[:, unit].clamp(min=0)
            new = fires * replaced[n] / a[i] if a[i] > 0 else torch.full((4,), float(replaced[n] * shape))
            tokens[:, unit] += new - fires
            c = int(ground.classes[n])
            both = [host.logits(None, x[None].float())[0].double() for x in (host.all[i], tokens)]
            before, after = (-torch.log_softmax(x / 1.1, -1)[c] for x in both)
            total += abs(float(after - before))
        differences.append(total)
    found = score_unit(unit, ground, acts[:, unit], {"label": v})
    assert found["scores"]["label"] == pytest.approx(1 - differences[0] / differences[1], abs=1e-4)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_where_little_changes_the_score_is_the_variance_that_the_label_explains(seed, swapped, noise):
    """What the score must be, for a label of any quality and in every draw: no bound that a draw could miss.

    The host's own answer is where its loss is least, so a small change d of the activation costs d^2 times a constant,
    and 1 - sum / sum is 1 - sum (predicted - own)^2 / sum (mean - own)^2: R^2 about the mean of mining pictures.
    """
    rng = np.random.default_rng(seed)
    shown = rng.random(200) < 0.3
    own = np.abs(rng.normal(0, 0.1, 200)) + shown * (2 + 0.3 * rng.random(200))
    tokens = np.abs(rng.normal(0, 0.1, (200, 1, 4))).repeat(3, 1)  # a flat map: pooled by maximum or mean alike
    tokens[..., 0] = own[:, None]
    head = rng.normal(0, 0.005, (4, 5))
    head[0] = 0.01, -0.01, 0, 0, 0  # little, and above what counts as nothing
    answers = Planted(torch.from_numpy(tokens).float(), torch.from_numpy(head).float())
    mine, scored = np.arange(100), np.arange(100, 200)
    ground = Stand(answers, Projection(), torch.eye(4), mine, scored, np.full(100, -1))
    label = np.where(rng.random(200) < swapped, rng.permutation(shown), shown) + noise * rng.normal(size=200)
    said = {"right": torch.from_numpy(shown.astype(float)), "label": torch.from_numpy(label)}
    scores = score_unit(0, ground, answers.all[:, 0, 0], said)["scores"]
    for name, values in said.items():
        line = np.polynomial.Polynomial.fit(values[mine].numpy(), own[mine], 1)
        wanted = np.clip(line(values[scored].numpy()), 0, None)
        explained = 1 - ((wanted - own[scored]) ** 2).sum() / ((own[mine].mean() - own[scored]) ** 2).sum()
        assert scores[name] == pytest.approx(explained, abs=0.01)


@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
@settings(max_examples=15, deadline=None)
def test_half_way_to_the_mean_costs_at_most_half_however_much_depends_on_the_unit(seed, way):
    """Cross-entropy with the host's own answer is convex in an activation that logits are linear in, and least at it:
    `way` of the way to the mean costs no more than that share of the whole way, and more the farther it goes."""
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.random((40, 3, 4))).float()
    answers = Planted(tokens, torch.from_numpy(rng.normal(0, 2, (4, 5))).float())
    active, pooled = Active.of(Projection(), tokens), tokens.amax(1)[:, 0].double()
    shares = (0.0, way / 2, way, 1.0)
    wanted = [pooled + share * (pooled.mean() - pooled) for share in shares]
    edited = torch.stack([with_pooled(active, 0, torch.eye(4)[0], pooled, to, 1.0) for to in wanted])
    logits = answers.logits(np.arange(40), edited)
    losses = find_losses(logits, logits[0], np.full(40, -1))
    none, near, far, whole = (losses - losses[0]).numpy()
    assert (none == 0).all() and (near >= -1e-9).all() and (far >= near - 1e-6).all()
    assert (far <= way * whole + 1e-5).all() and whole.sum() > 0


def test_units_that_nothing_depends_on_get_no_score():
    ground, acts = stand()
    silent = Planted(ground.answers.all, torch.zeros(5, 7))
    found = score_unit(
        1, Stand(silent, Projection(), torch.eye(5), MINE, SCORED, ground.classes), acts[:, 1], {"x": acts[:, 1]}
    )
    assert found["scores"] == {"x": None} and found["depends"] == 0 and found["fires"] > 0
    dead = score_unit(1, ground, torch.zeros(30), {"x": acts[:, 1]})
    assert dead == {"unit": 1, "fires": 0, "depends": 0.0, "scores": {"x": None}}


def test_pictures_where_a_unit_is_silent_get_its_usual_spread():
    tokens = torch.tensor([[[2.0, 1.0], [4.0, 0.0]], [[-1.0, 5.0], [-3.0, 5.0]]])
    active = Active.of(Projection(), tokens)
    pooled, wanted = torch.tensor([4.0, 0.0]), torch.tensor([1.0, 2.0])
    found = with_pooled(active, 0, torch.tensor([1.0, 0.0]), pooled, wanted, 0.5)
    assert found.tolist() == [[[0.5, 1.0], [1.0, 0.0]], [[0.0, 5.0], [-2.0, 5.0]]]
    assert torch.equal(with_pooled(active, 0, torch.tensor([1.0, 0.0]), pooled, pooled, 0.5), tokens)


def test_losses_are_of_classes_or_of_the_hosts_own_answer():
    own = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    found = find_losses(own, own, np.array([0, -1]))
    assert found[0] == pytest.approx(float(torch.nn.functional.cross_entropy(own[:1] / 1.1, torch.tensor([0]))))
    shares = (own[1].double() / 1.1).softmax(-1)
    assert found[1] == pytest.approx(float(-(shares * shares.log()).sum()))
    assert (find_losses(own.flip(1), own, np.array([-1, -1])) >= find_losses(own, own, np.array([-1, -1]))).all()


def test_every_labeller_is_scored_beside_dealt_labels_and_truth(made):  # noqa: F811
    found = made.effects["neuron"].measure(units="all")
    table = found.ablation_scores().set_index("labeller")
    assert list(table.index) == ["pearson", "dealt", "truth", "best_truth"] and (table["basis"] == "neuron").all()
    assert table.loc["pearson", "mean"] > max(0.5, table.loc["dealt", "mean"]), "colours fire their own units"
    assert table.loc["pearson", "above_dealt"] == pytest.approx(
        table.loc["pearson", "mean"] - table.loc["dealt", "mean"], abs=1e-9
    )
    pair = table.loc["best_truth"]  # red, green and blue are classes; no unit has a better word
    assert pair["above_truth"] == pytest.approx(0, abs=1e-9) and np.isnan(pair["above_best_truth"])
    assert pair["above_dealt_low"] < pair["above_dealt"] < pair["above_dealt_high"]
    folder = next((made.root / "ablation_scores").glob("neuron-*[0-9a-f]"))
    rows = read_jsonl(folder / "ablation_scores.jsonl")
    assert [row["unit"] for row in rows] == list(range(9)) and rows[0]["labels"]["pearson"] == "red"
    assert all(row["scores"]["truth"] >= row["scores"]["dealt"] for row in rows[:3])
    again = made.measure_simulation(made.labelled[0], EffectsSettings(units="all"))
    assert again["units"] == 9 and EffectsSettings(simulate=True).facts == EffectsSettings().facts
    bent = made.measure_simulation(made.labelled[0], EffectsSettings(units="all", fit="optim"))
    assert bent["labellers"]["pearson"]["mean"]["mean"] > max(0.5, bent["labellers"]["dealt"]["mean"]["mean"])
    (other,) = {*(made.root / "ablation_scores").glob("neuron-*[0-9a-f]")} - {folder}  # kept apart from those of norm
    fits = read_jsonl(other / "ablation_scores.jsonl")[0]["fits"]
    assert {"pearson", "dealt", "truth"} <= set(fits) and all(len(fit) == 2 for fit in fits.values())
    with pytest.raises(UserError, match="fit=optimal: unknown; did you mean optim"):
        EffectsSettings(fit="optimal")
    text = simulation_lines("neuron", again)
    assert "pearson" in text and "above best truth: 95 %, units" in text and "nothing depends on" in text


def test_scores_far_below_the_mean_do_not_outweigh_others():
    rows = [{"unit": u, "scores": {"a": s, "dealt": 0.0}} for u, s in enumerate([0.5, -40.0, None])]
    found = summarise(rows, ["x", "y", "z"])
    assert found["labellers"]["a"]["mean"]["mean"] == -0.25 and found["labellers"]["a"]["mean"]["units"] == 2
    nothing = summarise([{"unit": 0, "scores": {"a": None}}], ["x"])
    text = simulation_lines("b", nothing | {"path": "rows.jsonl"})
    assert nothing["independent"] == 1 and "no unit could be scored" in text and text.endswith("rows.jsonl")


def test_differences_are_paired_and_clustered_by_label():
    """Twin: the mean of unit-by-unit differences; sums of labels give the error, a degree less than labels."""
    from scipy import stats

    rng = np.random.default_rng(3)
    scores = {name: rng.uniform(-1, 1, 12) for name in ("a", "dealt", "truth")}
    rows = [
        {"unit": u, "scores": {n: None if n == "truth" and u > 7 else float(v[u]) for n, v in scores.items()}}
        for u in range(12)
    ]
    labels = [f"label {u % 4}" for u in range(12)]
    found = summarise(rows, labels)["labellers"]
    for other, kept in (("dealt", 12), ("truth", 8)):
        gap = found["a"][f"above_{other}"]
        apart = (scores["a"] - scores[other])[:kept]
        sums = [(apart - apart.mean())[np.arange(kept) % 4 == label].sum() for label in range(4)]
        se = np.sqrt(np.sum(np.square(sums)) * 4 / 3) / kept
        assert gap["mean"] == pytest.approx(apart.mean()) and gap["units"] == kept and gap["se"] == pytest.approx(se)
        low, high = stats.t.interval(0.95, 3, apart.mean(), se)
        assert (gap["low"], gap["high"]) == pytest.approx((low, high))
    assert found["truth"]["above_dealt"]["units"] == 8 and "above_dealt" not in found["dealt"]


def test_the_best_word_is_chosen_on_mining_pictures_alone():
    member = torch.zeros(40, 3, dtype=torch.bool)
    member[:10, 0] = member[5:15, 1] = member[:4, 2] = True  # the third is true of too few
    truth = Truth(member, {}, ("a", "b", "c"), torch.ones(40, dtype=torch.bool), "mention")
    acts = member[:, 0].float()
    acts[20:] = torch.rand(20, generator=torch.Generator().manual_seed(0))
    member[20:, 1] = acts[20:] > 0.5  # what test pictures say has no say
    mine = torch.arange(20)
    assert best_concept(truth, acts, mine) == 0
    assert best_concept(truth, member[:, 1].float(), mine) == 1
    assert best_concept(truth, member[:, 2].float(), mine) in (0, 1), "four pictures choose nothing"
    assert best_concept(truth, torch.zeros(40), mine) is None
    against = 1.0 - member[:, :2].any(1).float()
    assert best_concept(truth, against, mine) is None, "where every word goes down with the unit, none is its best"
    assert best_concept(truth, against + member[:, 0].float(), mine) == 0, "above 0, however little"
    assert best_concept(replace(truth, known=torch.arange(40) < 3), acts, mine) is None


def test_a_unit_that_no_word_follows_has_no_best_word_and_is_counted():
    member = torch.zeros(20, 2, dtype=torch.bool)
    member[:8, 0] = member[8:15, 1] = True
    truth = Truth(member, {}, ("a", "b"), torch.ones(20, dtype=torch.bool), "mention")
    judge = Similarity.of("judge", torch.ones(20, 1), ["a"], torch.ones(1, 1))
    rows = [{"unit": u, "label": "a", "scores": {"csp": {"label": "a"}}} for u in range(2)]
    predictors = Predictors(rows, Judges(judge, None, truth), 0, np.arange(20))
    labels, values = predictors._of(0, (~member.any(1)).float())
    assert labels["best_truth"] is None and "best_truth" not in values
    assert predictors._of(1, member[:, 1].float())[0]["best_truth"] == "b"
    scored = [{"unit": 0, "scores": {"csp": 0.5}, "labels": labels}]
    found = summarise(scored, ["a", "a"]) | {"path": "rows.jsonl"}
    assert found["wordless"] == 1 and "no word of people's follows 1," in simulation_lines("neuron", found)
    scored += [{"unit": 1, "scores": {"csp": 0.5, "best_truth": 0.4}, "labels": {"csp": "a", "best_truth": "b"}}]
    assert summarise(scored, ["a", "a"])["labellers"]["csp"]["above_best_truth"]["units"] == 1


def test_a_linear_explanation_predicts_its_sum():
    words = torch.nn.functional.normalize(draw(1, 3, 8), dim=1)
    pictures = torch.nn.functional.normalize(draw(2, 5, 8), dim=1)
    judge = Similarity.of("judge", pictures, ["a", "b", "c"], words)
    entry = {"label": "a", "labels": [["a", 2.0], ["c", -1.0]], "bias": 0.5}
    rows = [{"unit": 0, "label": "b", "scores": {"linear_explanations": entry, "csp": {"label": None}}}]
    labels, values = Predictors(rows, Judges(judge, None, None), 0, np.arange(3))._of(0, torch.zeros(5))
    sims = (60 * (pictures @ words.T - 0.09)).sigmoid()
    torch.testing.assert_close(values["linear_explanations"], 2 * sims[:, 0] - sims[:, 2] + 0.5)
    assert labels == {"linear_explanations": "a", "dealt": "b"}
