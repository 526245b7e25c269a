"""Proposals: what a unit is shown, what the tagger answers, resume, choice and budget."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from pictures import Pictures, exemplars, mined
from PIL import Image

from saelab.errors import UserError
from saelab.label import propose, selection
from saelab.label.ledger import Ledger
from saelab.label.proposal import Case, Estimate, Proposal
from saelab.label.selection import Budget
from saelab.label.tagger import Tagger

IMAGES = Pictures()
CONF = Path(__file__).resolve().parent.parent / "conf"
NAMES = ["dog, domestic dog", "cat", "grass", "snow", "ball", "sky"]


def one_hot(*classes: int) -> torch.Tensor:
    """[images, classes]: image i is .8 class i of the arguments, the rest spread evenly."""
    rows = torch.full((len(classes), len(NAMES)), 0.2 / (len(NAMES) - 1))
    rows[torch.arange(len(classes)), torch.tensor(classes)] = 0.8
    return rows


class Scripted:
    """A proposer that answers from a list and remembers what it was asked: for the loop's own tests."""

    name, shown = "scripted", None

    def __init__(self, tokens: int = 10, fails: Iterable[int] = (), stops_at: int | None = None, cost=None) -> None:
        self.asked: list[int] = []
        self.recipe = {"name": self.name, "tokens": tokens}
        self.tokens, self.fails, self.stops_at, self.cost = tokens, set(fails), stops_at, cost

    def propose(self, cases: Iterable[Case], folder: Path) -> Iterator[Proposal]:
        for case in cases:
            if case.unit == self.stops_at:
                raise UserError("proposer.base_url", "http://x", "no server")
            self.asked.append(case.unit)
            status = "failed" if case.unit in self.fails else "answered"
            labels = () if status == "failed" else (f"label {case.unit}",)
            error = "boom" if status == "failed" else None
            shown = (self.name, case.mode, case.positives, case.contrasts)
            bill = {"prompt_tokens": self.tokens, "completion_tokens": 0, "cost": self.cost, "request": str(case.unit)}
            yield Proposal(case.unit, labels, status, *shown, error=error, **({} if error else bill))

    def estimate(self, case: Case) -> Estimate:
        return Estimate(1, self.tokens, 0, self.cost)


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_contrasts_stay_with_their_positives_under_the_shuffle():
    ex = exemplars()
    cases = [propose.build_case(ex, IMAGES, u, "contrast", 3, 3) for u in range(6)]
    for case in cases:
        assert all(c - p == 24 for p, c in zip(case.positives, case.contrasts, strict=True))
        assert set(case.positives) == set(ex.positives[case.unit, :3].tolist())  # the strongest, none else
    assert any(case.positives != tuple(sorted(case.positives)) for case in cases)
    assert cases == [propose.build_case(ex, IMAGES, u, "contrast", 3, 3) for u in range(6)]
    assert cases != [propose.build_case(ex, IMAGES, u, "contrast", 4, 3) for u in range(6)]


def test_shuffled_contrast_shows_the_same_positives_with_another_units_contrasts():
    ex = exemplars()
    for u in range(6):
        own = propose.build_case(ex, IMAGES, u, "contrast", 0, None)
        other = propose.build_case(ex, IMAGES, u, "shuffled_contrast", 0, None)
        assert other.positives == own.positives
        strangers = {(c - 24) // 4 for c in other.contrasts}
        assert len(strangers) == 1 and u not in strangers
    with pytest.raises(UserError, match="at least two units with contrasts"):
        alone = mined(ex.positives[:1], ex.contrasts[:1])
        propose.build_case(alone, IMAGES, 0, "shuffled_contrast", 0, None)


def test_a_borrowed_contrast_is_never_a_positive_of_the_unit():
    ex = mined(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5], [1, 6]]))
    case = propose.build_case(ex, IMAGES, 0, "shuffled_contrast", 0, None)
    assert sorted(case.contrasts) == [-1, 6]


def test_images_on_which_the_unit_does_not_fire_are_not_shown():
    ex = mined(torch.tensor([[5, 6, 7]]), torch.tensor([[1, 2, 3]]), torch.tensor([[2.0, 0.5, 0.0]]))
    assert set(propose.build_case(ex, IMAGES, 0, "positives", 0, None).positives) == {5, 6}


# ---- the tagger ----------------------------------------------------------------------------------------------------


def test_contrast_removes_the_scene_that_positives_and_contrasts_share():
    """Positives show a dog and, as strongly, grass; contrasts show grass alone."""
    positive = torch.tensor([0.45, 0.0, 0.50, 0.02, 0.02, 0.01])
    contrast = torch.tensor([0.02, 0.03, 0.90, 0.02, 0.02, 0.01])
    elsewhere = torch.tensor([0.01, 0.30, 0.05, 0.30, 0.17, 0.17])
    images = torch.stack([positive] * 4 + [contrast] * 4 + [elsewhere] * 12)
    ex = mined(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 5, 6, 7]]))
    tagger = Tagger(images, NAMES, top=3)

    def labels(mode: str) -> tuple[str, ...]:
        return next(tagger.propose([propose.build_case(ex, IMAGES, 0, mode, 0, None)], Path())).labels

    assert labels("positives")[:2] == ("dog", "grass")  # grass .5 - .28, dog .45 - .09
    assert labels("contrast") == ("dog",)


def test_tagger_scores_equal_a_plain_loop():
    generator = torch.Generator().manual_seed(5)
    p = torch.rand(40, 6, generator=generator).softmax(1)
    ex = mined(torch.randperm(20, generator=generator)[None, :8], 20 + torch.arange(8)[None])
    case = propose.build_case(ex, IMAGES, 0, "contrast", 0, None)
    expected = {}
    for c in range(6):

        def presence(image: int, c: int = c) -> float:
            return p[image, c].item() if c in p[image].topk(2).indices else 0.0

        support = sum(presence(i) > 0 for i in case.positives)
        difference = sum(map(presence, case.positives)) / 8 - sum(map(presence, case.contrasts)) / 8
        if support >= 2 and difference > 0:
            expected[c] = difference
    assert Tagger(p, NAMES, top=2, candidates=6).classes(case) == sorted(expected, key=lambda c: -expected[c])


def test_a_class_in_one_positive_alone_is_not_proposed_and_nothing_in_common_is_said():
    images = one_hot(0, 1, 3, 4, 2, 2, 2, 2)
    ex = mined(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 5, 6, 7]]))
    case = propose.build_case(ex, IMAGES, 0, "contrast", 0, None)
    (proposal,) = Tagger(images, NAMES, top=1).propose([case], Path())
    assert proposal.status == "none" and proposal.labels == ()


def test_the_base_rate_comes_from_the_ids_given():
    images = one_hot(0, 0, 1, 1, 0, 0, 0, 0)
    ex = mined(torch.tensor([[0, 1]]), torch.tensor([[2, 3]]))
    case = propose.build_case(ex, IMAGES, 0, "positives", 0, None)
    assert Tagger(images, NAMES, base=[2, 3], top=1).classes(case) == [0]
    assert Tagger(images, NAMES, base=[4, 5, 6, 7], top=1).classes(case) == []  # a dog is everywhere


def test_a_unit_without_contrasts_is_held_against_the_base_rate():
    images = one_hot(0, 0, 1, 2, 3, 4, 5, 1)
    ex = mined(torch.tensor([[0, 1]]), torch.tensor([[-1, -1]]))
    modes = [propose.build_case(ex, IMAGES, 0, mode, 0, None) for mode in ("contrast", "positives")]
    assert [Tagger(images, NAMES, top=1).classes(case) for case in modes] == [[0], [0]]


def test_the_tagger_counts_pictures_made_to_raise_the_unit_or_looks_at_them_alone():
    images = one_hot(0, 0, 2, 3)
    made = (Path("a.png"), Path("b.png"))
    case = Case(0, "positives", (0, 1), (), IMAGES, made=made)
    say = dict(zip(made, one_hot(1, 1)))
    for how, expected in (("none", [0]), ("beside", [1, 0]), ("alone", [1])):
        tagger = Tagger(images, NAMES, base=[2, 3], top=1, synthesised=how, look=say.__getitem__)
        assert sorted(tagger.classes(case)) == sorted(expected) and ("synthesised" in tagger.recipe) == (how != "none")
    alone = Tagger(images, NAMES, synthesised="alone", look=say.__getitem__)
    assert alone.classes(dataclasses.replace(case, made=())) == []
    with pytest.raises(UserError, match="did you mean beside"):
        Tagger(images, NAMES, synthesised="besides")


@pytest.mark.parametrize("rows", [torch.ones(4, 6), torch.full((4, 6), float("nan"))])
def test_tagger_refuses_what_are_no_probabilities(rows):
    with pytest.raises(UserError, match="sum to 1"):
        Tagger(rows, NAMES)
    with pytest.raises(UserError, match=r"tagger\.names=2"):
        Tagger(one_hot(0, 1), NAMES[:2])


# ---- the loop ------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_stopped_and_asks_nobody_twice(tmp_path):
    first = Scripted(stops_at=3)
    with pytest.raises(UserError, match="no server"):
        propose.run(first, exemplars(), IMAGES, range(6), tmp_path, progress=False)
    with (tmp_path / "proposals.jsonl").open("a") as file:
        file.write('{"unit": 3, "labels": ["cut o')  # the line that was being written when the power went
    second = Scripted()
    proposals = propose.run(second, exemplars(), IMAGES, range(6), tmp_path, progress=False)
    assert (first.asked, second.asked) == ([0, 1, 2], [3, 4, 5])
    assert [p.labels for p in proposals] == [(f"label {u}",) for u in range(6)]
    assert propose.read(tmp_path) == proposals
    lines = (tmp_path / "proposals.jsonl").read_text().splitlines()
    assert [json.loads(line)["unit"] for line in lines] == list(range(6))


def test_failed_units_are_listed_counted_and_asked_again(tmp_path):
    rows = propose.run(Scripted(fails=[2]), exemplars(), IMAGES, range(6), tmp_path, progress=False)
    assert [p.status for p in rows].count("failed") == 1 and rows[2].error == "boom"
    assert propose.summary(rows, range(6))["status"] == {"answered": 5, "failed": 1}
    again = Scripted()
    rows = propose.run(again, exemplars(), IMAGES, range(6), tmp_path, progress=False)
    assert again.asked == [2] and all(p.status == "answered" for p in rows)


def test_a_run_in_which_every_unit_failed_is_an_error(tmp_path):
    with pytest.raises(UserError, match="all 6 units failed, the first with: boom"):
        propose.run(Scripted(fails=range(6)), exemplars(), IMAGES, range(6), tmp_path, progress=False)


def test_a_model_sees_pictures_made_to_raise_the_unit_as_what_they_are(tmp_path):
    """Beside the photos, called no photos; or alone; without one a unit is judged by its photos, or not at all."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"unit": u, "raw": '{"concepts": ["fur"]}'}) + "\n" for u in range(2)))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "unit-00001-0.png")
    made = propose.MadePictures(tmp_path, {1: ("unit-00001-0.png",)})
    for how in ("beside", "alone"):
        asking = propose.load_proposer("recorded", answers=str(answers), synthesised=how, sheet_px=448, part_px=64)
        rows = propose.run(
            asking, exemplars(), IMAGES, [0, 1], tmp_path / how, mode="positives", made=made, progress=False
        )
        assert "no photos" in rows[1].prompt and "sheets/unit-00001-made-1.jpg" in rows[1].sheets
        assert (tmp_path / how / "sheets" / "unit-00001-made-1.jpg").is_file() and rows[1].labels == ("fur",)
        assert len(rows[1].sheets) == (2 if how == "beside" else 1) and ("trust" in rows[1].prompt) == (how == "beside")
        assert rows[0].status == ("answered" if how == "beside" else "no_positives")
        case = dataclasses.replace(propose.build_case(exemplars(), IMAGES, 1, "positives", 0, 9), made=made.of(1))
        request = asking.request(case)
        assert len(request.pictures) == len(rows[1].sheets)
    assert rows[0].prompt is None, "nothing was asked"


def test_another_recipe_is_refused_and_more_units_are_added(tmp_path):
    propose.run(Scripted(), exemplars(), IMAGES, [1], tmp_path, progress=False)
    with pytest.raises(UserError, match="another recipe"):
        propose.run(Scripted(), exemplars(), IMAGES, [1], tmp_path, mode="positives", progress=False)
    more = Scripted()
    rows = propose.run(more, exemplars(), IMAGES, [0, 1], tmp_path, progress=False)
    assert more.asked == [0] and [p.unit for p in rows] == [0, 1]


def test_pictures_made_to_raise_a_unit_belong_to_the_recipe_and_reach_the_proposer(tmp_path):
    asked = []

    class Seeing(Scripted):
        def propose(self, cases, folder):
            return super().propose((asked.append(case.made) or case for case in cases), folder)

    made = propose.MadePictures(tmp_path / "sae-0123456789", {1: ("unit-00001-0.png",)})
    propose.run(Seeing(), exemplars(), IMAGES, [0, 1], tmp_path / "rows", made=made, progress=False)
    assert asked == [(), (tmp_path / "sae-0123456789" / "unit-00001-0.png",)]
    with pytest.raises(UserError, match="another recipe"):
        propose.run(Seeing(), exemplars(), IMAGES, [0, 1], tmp_path / "rows", progress=False)


def test_a_unit_without_positives_gets_a_row_and_is_never_sent(tmp_path):
    ex = mined(torch.tensor([[0, 1], [-1, -1]]), torch.tensor([[2, 3], [-1, -1]]))
    proposer = Scripted()
    rows = propose.run(proposer, ex, IMAGES, [0, 1], tmp_path, progress=False)
    assert proposer.asked == [0] and [p.status for p in rows] == ["answered", "no_positives"]


def test_unknown_cost_is_unknown_and_never_zero(tmp_path):
    rows = propose.run(Scripted(), exemplars(), IMAGES, range(3), tmp_path / "a", progress=False)
    assert propose.summary(rows, range(3))["cost"] is None
    assert "cost unknown" in propose.summary(rows, range(3))["text"]
    rows = propose.run(Scripted(cost=0.5), exemplars(), IMAGES, range(3), tmp_path / "b", progress=False)
    assert propose.summary(rows, range(3))["cost"] == 1.5
    assert propose.estimate(Scripted(), exemplars(), IMAGES, range(3)).cost is None
    assert propose.estimate(Scripted(cost=0.5), exemplars(), IMAGES, range(3)) == Estimate(3, 30, 0, 1.5)


# ---- choice and budget ---------------------------------------------------------------------------------------------


def test_terms_narrow_from_left_to_right():
    status = ["ok", "dead", "ok", "rare", "ok", "ok"]
    strength = [1.0, 9.0, 5.0, 7.0, float("nan"), 5.0]

    def units(spec) -> list[int]:
        return selection.choose(spec, 6, status=status, strength=strength)[0]

    assert units("all") == list(range(6))
    assert units("0,3-5") == [0, 3, 4, 5] and units([4, 2]) == [2, 4] and units(3) == [3]
    assert units("status:ok,rare") == [0, 2, 3, 4, 5]
    assert units("status:ok top:2") == [2, 5]  # a tie goes to the lower number
    assert units("top:3 status:ok") == [2]  # the same terms the other way round
    assert units("status:ok top:4")[-1] == 4  # NaN is weakest
    assert units("random:3") == units("random:3") and len(set(units("random:3"))) == 3
    assert selection.choose("all tokens:5e3 usd:2.5", 6)[1] == selection.Budget(5000, 2.5)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("best", "is not a term"),
        ("7", "go from 0 to 5"),
        ("random:", "number above 0"),
        ("usd:-1", "number above 0"),
        ("status:fine", "needs unit statuses"),
        ("status:dead", "no unit of 6 is left"),
        ("top:3", "strengths"),
    ],
)
def test_a_choice_that_can_not_be_made_says_why(spec, message):
    with pytest.raises(UserError, match=message):
        selection.choose(spec, 6, status=["ok"] * 6)


def test_a_budget_is_never_passed_and_what_is_left_out_is_counted(tmp_path):
    proposer = Scripted(tokens=10)
    rows = propose.run(
        proposer, exemplars(), IMAGES, range(6), tmp_path, budget=selection.Budget(tokens=35), progress=False
    )
    assert proposer.asked == [0, 1, 2] and propose.summary(rows, range(6))["unsent"] == 3
    more = Scripted(tokens=10)  # what the first run spent counts
    propose.run(more, exemplars(), IMAGES, range(6), tmp_path, budget=selection.Budget(tokens=45), progress=False)
    assert more.asked == [3]


def test_what_is_left_of_a_budget_is_what_was_not_bought():
    bought = Proposal(0, ("x",), "answered", "p", "contrast", (), (), prompt_tokens=70, completion_tokens=20, cost=0.4)
    again = dataclasses.replace(bought, unit=1, cached=True)
    failed = Proposal(2, (), "failed", "p", "contrast", (), ())
    assert Budget(tokens=100, usd=1.0).less([bought, again, failed]) == Budget(10, pytest.approx(0.6))
    assert Budget(tokens=100).less([bought, bought]) == Budget(0)


def test_a_budget_in_money_needs_prices(tmp_path):
    with pytest.raises(UserError, match="a price is missing"):
        propose.run(Scripted(), exemplars(), IMAGES, [0], tmp_path, budget=selection.Budget(usd=1.0), progress=False)
    priced = Scripted(cost=0.4)
    propose.run(priced, exemplars(), IMAGES, range(6), tmp_path, budget=selection.Budget(usd=1.0), progress=False)
    assert priced.asked == [0, 1]


def test_an_unknown_proposer_names_those_that_there_are():
    with pytest.raises(UserError, match=r"none, .*tagger"):
        propose.load_proposer("gpt")
    with pytest.raises(UserError, match="probabilities"):
        propose.load_proposer("tagger")
    assert propose.load_proposer("none") is None


@pytest.mark.parametrize("rule", ["top", "random", "tokens", "usd"])
@pytest.mark.parametrize("value", ["inf", "-inf", "1e400", "nan", "0", "-1", "", "x", "²"])
def test_amounts_that_are_none_are_told_in_one_line(rule, value):
    with pytest.raises(UserError, match="needs a finite number above 0"):
        selection.choose(f"{rule}:{value}", 6, strength=[1.0] * 6)


@pytest.mark.parametrize("spec", ["²", "1-²", "²-3", "1,²", "٣", "1-٣", "9" * 5000, "1-" + "9" * 5000])
def test_ids_that_are_none_are_told_in_one_line(spec):
    with pytest.raises(UserError, match="units="):
        selection.choose(spec, 6)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "proposer").glob("*.yaml")))
def test_every_shipped_config_loads_and_names_only_settings_that_there_are(name, tmp_path):
    pytest.importorskip("openai")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    (tmp_path / "answers.jsonl").write_text('{"unit": 0, "raw": "none"}\n')
    given = {"recorded": [f"proposer.answers={tmp_path}/answers.jsonl"], "openai": ["proposer.model=toy"]}
    given["describe_dissect"] = ["proposer.chat.model=toy"]
    given |= {"agent": ["proposer.model=toy"], "command": [f"proposer.command={sys.executable}"]}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(overrides=[f"+proposer={name}", f"+root={tmp_path}", *given.get(name, [])])
    settings = OmegaConf.to_container(cfg.proposer, resolve=True)
    of_the_run = {key: settings.pop(key) for key in ("mode", "units", "seed", "dry_run") if key in settings}
    if name == "tagger":
        settings |= {"probabilities": one_hot(*range(6)), "names": NAMES}
    if name == "agent":
        settings["sight"] = None
    proposer = propose.load_proposer(**settings)
    if name == "none":
        assert proposer is None
        return
    assert of_the_run["mode"] in ("positives", "contrast", "shuffled_contrast") and of_the_run["seed"] == 0
    with pytest.raises(UserError, match="colour"):
        propose.load_proposer(**settings, colour="red")
    if name == "csp_paper":
        assert "separated by commas" in proposer.templates["contrast"] and proposer.schema is None


def test_a_row_is_on_disk_when_it_has_been_added(tmp_path, monkeypatch):
    """On the disk itself, not in the system's buffers: the last sync sees the whole row."""
    seen: list[str] = []
    sync = os.fsync
    file = tmp_path / "proposals.jsonl"
    monkeypatch.setattr(
        os, "fsync", lambda number: (seen.append(file.read_text() if file.exists() else ""), sync(number))
    )
    ledger = Ledger(tmp_path, "proposals", {})
    for unit in range(3):
        ledger.add(Proposal(unit, ("dog",), "answered", "p", "contrast", (), ()))
        assert len(seen[-1].splitlines()) == unit + 1 and seen[-1] == file.read_text()


@pytest.mark.parametrize(("instant", "there"), [(False, [0, 1, 2, 3, 4, 5]), (True, [0, 0, 0, 0, 4, 4])])
def test_only_free_answers_wait_for_one_another(tmp_path, monkeypatch, instant, there):
    """A bought answer is on the disk before the next one is asked for; free ones are written together."""
    seen = []

    class Watched(Scripted):
        def propose(self, cases, folder):
            for proposal in super().propose(cases, folder):
                seen.append(len((tmp_path / "proposals.jsonl").read_text().splitlines()))
                yield proposal

    proposer = Watched()
    proposer.instant = instant
    monkeypatch.setattr(propose, "AT_ONCE", 4)
    rows = propose.run(proposer, exemplars(), IMAGES, range(6), tmp_path)
    assert seen == there
    assert [row.unit for row in rows] == list(range(6)) and propose.read(tmp_path) == rows


@pytest.mark.parametrize(
    "line", ["[1]", "5", "null", '{"unit": "3", "status": "answered"}', '{"unit": true, "status": ""}', '{"unit": 1}']
)
def test_a_file_with_other_lines_is_refused(tmp_path, line):
    Ledger(tmp_path, "proposals", {})
    (tmp_path / "proposals.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1 is no row of proposals"):
        Ledger(tmp_path, "proposals", {})


def test_a_budget_counts_the_cases_under_way():
    cases = [propose.build_case(exemplars(), IMAGES, unit, "contrast", 0, None) for unit in range(6)]
    found: dict[int, Proposal] = {}
    admitted = Budget(tokens=35).admit(cases, lambda case: Estimate(1, 10, 0), found, ())
    assert [next(admitted).unit for _ in range(3)] == [0, 1, 2]  # none has been answered yet
    assert next(admitted, None) is None
    admitted = Budget(tokens=35).admit(cases, lambda case: Estimate(1, 10, 0), found, ())
    for case in admitted:  # each is answered at once, for half of what was expected
        found[case.unit] = Proposal(
            case.unit, (), "none", "p", "contrast", (), (), prompt_tokens=5, completion_tokens=0
        )
    assert list(found) == [0, 1, 2, 3, 4, 5]
