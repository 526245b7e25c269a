"""The effects stage of a run: from a caller's own model to rows, a table and the command; stopped and gone on with."""

import dataclasses
import sys

import commands
import numpy as np
import pytest
import torch
from small_images import coloured
from torch import nn

import saelab
from saelab import effects
from saelab.artifacts import read_json, read_jsonl, write_json, write_jsonl
from saelab.cli.effects import COLUMNS, choose, group_line, notes, table
from saelab.compare import Settings as CompareSettings
from saelab.effects.amounts import usual_amounts
from saelab.report import what_it_does
from saelab.run.config import RunConfig
from saelab.run.making import Stages
from saelab.run.record import add_effects, renew, write
from saelab.run.stages import effects as stage
from saelab.run.stages.effects import EffectsSettings, read_effects
from saelab.units.bases import Projection

QUICK = {"label": {"nulls": 20, "mining": {"k": 4}}, "seeds": [0], "workers": 0, "device": "cpu"}
SMALL_SAE = {"latents": 24, "expansion": None, "k": 4, "train": {"batch_size": 32, "epochs": 2}}
WORDS_OF = ("answers", "cautions", "headline", "conclusion")  # of a comparison: what they say grows with effects
WORDS = ["red", "green", "blue", "grey"]


class Net(nn.Module):
    """Colours: three channels, each of which `head` calls by its name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 3, 2, stride=4), nn.Conv2d(3, 9, 2, 2), nn.Linear(9, 3)
        self.config = type("Config", (), {"id2label": {0: "red", 1: "green", 2: "blue"}})()
        with torch.no_grad():
            self.first.weight.zero_().add_(0.25 * torch.eye(3)[..., None, None])
            self.second.weight.normal_(0, 0.1)
            self.second.weight[:3] += 0.25 * torch.eye(3)[..., None, None]
            self.head.weight.copy_(torch.eye(3, 9) * 3)
            for layer in (self.first, self.second, self.head):
                layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("effects")
    pictures = coloured(folder / "pictures", 90)
    rng = np.random.default_rng(0)
    words = rng.normal(size=(4, 16))
    colour = [WORDS.index(pictures.classes[i][-1]) for i in range(len(pictures))]
    vectors = {"images": words[colour] + 0.1 * rng.normal(size=(len(pictures), 16)), "labels": words}
    return saelab.Pipeline(
        images=pictures,
        host=Net(),
        transform={"resize": [32, 32]},
        layers=["second"],
        sae=SMALL_SAE,
        embeddings=vectors,
        vocabulary=WORDS,
        scorer=["pearson"],
        root=str(folder / "runs"),
        **QUICK,
    )


def test_units_of_a_model_of_ones_own(made):
    found = made.effects["neuron"].measure(units="all", count=5, targets=["exact"])
    rows = {row["unit"]: row for row in found.rows()}
    assert len(rows) == 9 and [rows[u]["label"] for u in range(3)] == ["red", "green", "blue"]
    for unit in range(3):
        assert rows[unit]["causal_pct"] == pytest.approx(5 / 6) and rows[unit]["raised"][0][0] == rows[unit]["label"]
    assert all(abs(rows[u]["drop"]) < 1e-5 for u in range(3, 9) if rows[u]["why"] is None), "the head ignores them"
    line = found.table().iloc[0]
    assert line["basis"] == "neuron" and line["chosen"] == 9 and line["screen_r"] > 0.99
    assert set(made.effects) == {"neuron", "sae seed 0", "random rotation"}
    assert len(made.effects["sae"].measure(count=5).table()) == 1


def test_more_units_are_added_to_those_there(made, monkeypatch):
    some = made.effects["random rotation"].measure(units="2-4", count=6)
    assert [row["unit"] for row in some.rows()] == [2, 3, 4]
    calls, real = [], effects.measure

    def counted(unit, ground, settings):
        calls.append(unit)
        return real(unit, ground, settings)

    monkeypatch.setattr(effects, "measure", counted)
    assert len(some.measure(units="all").rows()) == 9 and sorted(calls) == [0, 1, 5, 6, 7, 8]
    alone = made.effects["random rotation"].measure(units="7", count=6, seed=0)
    assert next(r for r in alone.rows() if r["unit"] == 7) and len(calls) == 6
    assert [s["chosen"] for s in alone.summaries()] == [1]


def test_a_corrected_p_is_one_number_in_the_table_the_comparison_and_on_pages(made):
    """It is corrected over all units that were ever measured, whichever of them a call asks for."""
    whole = made.effects["random rotation"].measure(units="all", count=11)
    whole.rows()
    [folder] = {whole.make(basis, whole.settings) for basis in whole.bases}
    p = [0.001, 0.004, 0.012, 0.03, 0.04, 0.2, 0.4, 0.6, 0.9]
    write_jsonl(folder / stage.ROWS, [row | {"causal_p": x} for row, x in zip(read_jsonl(folder / stage.ROWS), p)])
    q = effects.summary.correct(np.array(p))
    part = whole.measure(units="2-4")
    assert np.isclose(p[2:5], effects.summary.correct(np.array(p[2:5])), atol=0.03).all() and (q[2:5] > 0.03).all()
    assert part.summaries()[0]["uses_corrected"] == pytest.approx((q[2:5] < 0.05).mean()) == pytest.approx(1 / 3)
    assert whole.summaries()[0]["uses_corrected"] == pytest.approx((q < 0.05).mean())
    basis = dataclasses.replace(part.bases[0], effects=folder)
    assert [row["causal_q"] for row in stage.chosen_rows(basis, part.settings)] == pytest.approx(q[2:5])
    assert [row["causal_q"] for row in what_it_does.read(folder).rows.values()] == pytest.approx(q)
    assert "causal_q" not in read_jsonl(folder / stage.ROWS)[0], "it depends on the other lines"


def test_a_budget_of_seconds_stops_and_the_next_call_goes_on(made, monkeypatch):
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr(stage.time, "monotonic", lambda: next(clock))
    short = made.effects["neuron"].measure(units="all", count=7, seconds=5.0)
    assert short.summaries()[0]["left"] > 0
    first = len(short.rows())
    assert len(short.rows()) > first or first == 9
    assert short.measure(seconds=None).summaries()[0]["left"] == 0 and len(short.rows()) == 9


def test_a_probe_gives_outputs_to_hosts_without_names(made):
    found = made.effects["neuron"].measure(units="all", head="probe", count=5)
    assert found.summaries()[0]["mean"]["causal_pct"]["mean"] > 0.5
    assert {name for row in found.rows() for name, _ in row.get("raised", [])} == {"red", "green", "blue"}


def test_passes_from_pictures_give_what_passes_from_the_cache_give(made):
    """A layer that doesn't cut the graph starts every pass from its picture."""
    basis = made.labelled[0]
    head = effects.host_head(made.host.model, 3)
    answers = effects.HostAnswers(made.host, made.store(basis), made.images, head)
    ids = made.images.ids("test")[:4]
    tokens = answers.tokens(ids)
    edited = torch.stack([tokens, tokens * 2, tokens.flip(2)])
    assert answers.resumed
    quick = answers.logits(ids, edited)
    gradient = answers.gradient(ids, tokens, torch.tensor([1.0, -1.0, 0.0]))
    how, made.host._cuts["second"] = made.host._cuts["second"], None
    try:
        assert not answers.resumed
        torch.testing.assert_close(answers.logits(ids, edited), quick, rtol=1e-5, atol=1e-6)
        slow = answers.gradient(ids, tokens, torch.tensor([1.0, -1.0, 0.0]))
        torch.testing.assert_close(slow, gradient, rtol=1e-5, atol=1e-6)
    finally:
        made.host._cuts["second"] = how
    plain = made.host.logits(made.host.load_images([made.images.load(int(i)) for i in ids]))
    torch.testing.assert_close(quick[0], plain, rtol=1e-2, atol=1e-2)  # the cache holds float16


def test_usual_amounts_are_of_mining_tokens(made):
    store = made.store(made.labelled[0])
    means, usual = usual_amounts(store, Projection(), [1, 4], 9)
    tokens = np.asarray(store.tokens[store.rows("mine")], np.float32)[:, [1, 4]].clip(0)
    np.testing.assert_allclose(means[[1, 4]], tokens.mean(0), rtol=1e-4)
    assert usual[1] == pytest.approx(np.quantile(tokens[:, 0][tokens[:, 0] > 0], 0.95), rel=1e-4)
    assert means[[0, 2, 3]].isnan().all() and usual[[0, 2, 3]].isnan().all()


def test_a_comparison_that_knows_effects_says_so_and_the_one_without_stays(made):
    config = dataclasses.replace(made.config, compare=CompareSettings(fewest=3, resamples=20))
    plain = Stages(config, made.given)
    before = read_json(plain.comparisons["second"].path / "comparison.json")
    asked = {"units": "all", "count": 5, "targets": ["exact"]}
    knows = Stages(dataclasses.replace(config, effects=asked), made.given)
    after = read_json(knows.comparisons["second"].path / "comparison.json")
    assert "causal" not in before and knows.comparisons["second"].path != plain.comparisons["second"].path
    assert {k: v for k, v in after.items() if k in before and k not in WORDS_OF} == {
        k: v for k, v in before.items() if k not in WORDS_OF
    }
    family = {basis["name"]: basis for basis in after["causal"]["bases"]}
    assert family["neuron"]["chosen"] == 9 and after["causal"]["how"]["count"] == 5
    assert "says both when its unit fires and what it does" in after["headline"]
    path = write(plain.outcome(), plain.root, "with_effects")
    kept = read_json(path)
    add_effects(path, knows.outcome(), "with_effects")
    now = read_json(path)
    assert now["timings"] == kept["timings"] and now["config"]["effects"] == asked
    assert now["comparisons"]["second"] != kept["comparisons"]["second"]
    folder = path.parent / now["bases"][0]["effects"]
    means = read_json(folder / "targets.json")
    assert (folder / "effects.jsonl").is_file() and means == {"outputs": 3, "labels": means["labels"]}
    assert means["labels"]["red"] == [["red", 1.0]] and "grey" not in means["labels"]
    assert RunConfig.of(now["config"]).effects == asked
    renew(plain.outcome(), plain.root, "with_effects")
    assert read_json(path) == now, "the same comparison takes no effects away"
    others = (dataclasses.replace(config, label=dataclasses.replace(config.label, final="cos_cubed")),)
    others += (dataclasses.replace(config, compare=CompareSettings(fewest=3, resamples=21)),)
    for other in others:
        write_json(path, now)
        own = Stages(dataclasses.replace(other, scorer=("pearson", "cos_cubed")), made.given)
        renew(own.outcome(), own.root, "with_effects")
        place = str(own.comparisons["second"].path.relative_to(own.root))
        assert read_json(path)["comparisons"] == {"second": place}, "another comparison is what the record tells of"


def test_all_units_of_a_label_are_taken_out_together(made):
    own = EffectsSettings(units="all", targets=("exact",), group="label", measure=effects.MeasureSettings(count=5))
    basis = next(b for b in made.labelled if b.kind == "neuron")
    found = made.measure_groups(basis, own)
    rows = read_jsonl(made.measure_effects(basis, own) / "groups.jsonl")
    labels, _ = stage.read_labels(read_jsonl(basis.labels.path / "labels.jsonl"), "final")
    assert rows and all(row["units"] == [u for u, x in enumerate(labels) if x == row["label"]] for row in rows)
    assert all(row["beyond"] == pytest.approx(0, abs=1e-4) for row in rows), "a linear rest"
    assert made.measure_groups(basis, own) == found and "one at a time" in group_line("neuron", found)
    assert EffectsSettings(group="label").facts == EffectsSettings().facts
    assert "no label of several units" in group_line("neuron", effects.summarise_groups([]))


def test_settings_of_effects_in_a_run(made):
    assert (
        RunConfig.of({"effects": "all"}).effects == {"units": "all"} and RunConfig.of({"effects": True}).effects == {}
    )
    assert RunConfig.of({"effects": False}).effects is None and RunConfig().effects is None
    with pytest.raises(saelab.UserError, match="unit"):
        RunConfig.of({"effects": {"unit": "all"}})
    other = Stages(dataclasses.replace(made.config, effects={"labels_of": "pearson"}), made.given)
    with pytest.raises(saelab.UserError, match="use final for both"):
        _ = other.measured


WRONG = {
    "units": ("usd:3", "pay for answers"),
    "labels_of": ("csp", "gave no labels"),
    "head": ("text", "the host answers with 3 numbers, the encoder's labels have 16"),
}


@pytest.mark.parametrize("setting", WRONG)
def test_what_a_run_can_not_give_is_one_line(made, setting):
    value, message = WRONG[setting]
    with pytest.raises(saelab.UserError, match=message):
        made.effects["neuron"].measure(**{setting: value}).rows()


@pytest.mark.parametrize(
    ("slip", "value"), [("unit", "all"), ("head", "hots"), ("targets", ["exakt"]), ("seconds", 0), ("group", "labels")]
)
def test_slips_are_refused_by_name(slip, value):
    with pytest.raises(saelab.UserError, match=slip):
        read_effects({slip: value})


def test_activations_alone_have_no_effects(tmp_path):
    acts = np.random.default_rng(0).random((60, 5)).astype(np.float32)
    vectors = {"images": np.random.default_rng(1).normal(size=(60, 8)), "labels": np.eye(4, 8)}
    settings = {"vocabulary": WORDS, "scorer": ["pearson"], "bases": ["neuron"], **QUICK}
    run = saelab.Pipeline(activations=acts, embeddings=vectors, root=str(tmp_path), **settings)
    with pytest.raises(saelab.UserError, match="no host whose outputs could change"):
        run.effects["neuron"].rows()


def test_the_command_prints_a_line_a_basis_and_what_it_leaves_out(made):
    found = [s for name in made.effects for s in made.effects[name].measure(count=5).summaries()]
    printed = table(found).splitlines()
    assert len(printed) == 4 and all(title in printed[0] for title in COLUMNS.values())
    text = notes(found)
    assert "both" in text and "pca" in text and "random_rotation" not in text.splitlines()[-1]
    assert [basis.kind for basis in choose("sae", made.labelled)] == ["sae"]
    with pytest.raises(saelab.UserError, match="did you mean neuron"):
        choose(["neurn"], made.labelled)
    assert dataclasses.asdict(EffectsSettings())["measure"]["count"] == 20


def test_the_command_without_a_run_is_one_line(tmp_path):
    command = [sys.executable, "-m", "saelab.cli.main", "effects", "run=nowhere.json"]
    done = commands.run(command, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "is not there" in done.stderr
