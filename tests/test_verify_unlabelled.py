"""The intruder test, framed regions, the embedding score: planted truth, judges that know, guess or favour a place."""

import io
import json
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Pictures
from PIL import Image
from servers import FaultServer

from saelab import verify
from saelab.errors import UserError
from saelab.label.proposal import Estimate
from saelab.label.propose import ShownExemplars, load_chat
from saelab.label.selection import Budget
from saelab.label.vlm.chat import Picture, Reply

COLOURS = [(220, 30, 30), (30, 220, 30)]
EMB = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))


class Plain:
    """Pictures 0-199 are red, the others green."""

    fingerprint = "plain"

    def load(self, i: int) -> Image.Image:
        return Image.new("RGB", (40, 40), COLOURS[i >= 200])


class Judge:
    """Answers a request by a function of its pictures; None: no answer."""

    name, recipe = "judge", {"name": "judge"}

    def __init__(self, says) -> None:
        self.says, self.asked = says, []

    def ask(self, requests):
        for request in requests:
            self.asked.append(request.name)
            text = self.says(request)
            yield request, Reply(text, None if text is not None else "down", request.digest, self.name)

    def estimate(self, request) -> Estimate:
        return Estimate(1, 10 * len(request.pictures), 0)


def image_of(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.jpeg)).convert("RGB"), dtype=int)


def knows(request) -> str:
    green = [image_of(p)[p.size[1] // 2, p.size[0] // 2, 1] > 125 for p in request.pictures]
    return json.dumps({"intruder": green.index(True) + 1})


def exemplars(units: int = 20, k: int = 8) -> ShownExemplars:
    """Positives are red pictures, contrasts green ones."""
    ids = torch.stack([torch.arange(k) + u for u in range(units)])
    return ShownExemplars(ids, ids + 200, torch.ones(units, k))


def find(judge, folder, trials=5, units=20, **more) -> list[verify.Intrusion]:
    made = verify.intruder_trials(exemplars(units), EMB, range(units), trials, seed=3)
    return verify.find_intruders(judge, made, Plain(), folder, part_px=32, progress=False, **more)


def test_a_judge_that_knows_gets_1_one_with_a_favourite_place_and_one_that_guesses_get_chance(tmp_path):
    found = verify.intruder_accuracy(find(Judge(knows), tmp_path / "knows"))
    assert (found.share, found.trials, found.chance) == (1.0, 100, pytest.approx(0.2)) and found.interval[0] > 0.95
    for place in range(1, 6):
        rows = find(Judge(lambda r, p=place: json.dumps({"intruder": p})), tmp_path / f"place {place}", units=3)
        assert verify.intruder_accuracy(rows).share == pytest.approx(0.2)
    draw = random.Random(0)
    rows = find(Judge(lambda r: json.dumps({"intruder": draw.randint(1, 5)})), tmp_path / "guesses")
    low, high = verify.intruder_accuracy(rows).interval
    assert low < 0.2 < high < 0.35
    summary = verify.intruder_summary(rows)
    assert (summary["units"], summary["trials"], summary["chance"]) == (20, 100, pytest.approx(0.2))
    floor = verify.intruder_accuracy(find(Judge(lambda r: '{"intruder": 0}'), tmp_path / "none", units=6))
    assert floor.share == 0.0 and floor.interval[1] < 0.2  # naming none is no answer that can be right


@pytest.mark.parametrize(("correct", "trials"), [(0, 5), (5, 5), (1, 5), (37, 100)])
def test_the_interval_is_the_exact_binomial_one(correct, trials):
    """Its ends are where so many or more, or so few or fewer, have probability .025."""
    from math import comb

    row = verify.Intrusion("", 0, 0, "answered", (1, 2, 3, 4, 5), 1, 1, 1, True, "", {})
    rows = [row if i < correct else verify.Intrusion(**{**vars(row), "correct": False}) for i in range(trials)]
    low, high = verify.intruder_accuracy(rows).interval

    def below(k: int, p: float) -> float:
        return sum(comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(k + 1))

    assert low == 0 if correct == 0 else 1 - below(correct - 1, low) == pytest.approx(0.025, abs=1e-9)
    assert high == 1 if correct == trials else below(correct, high) == pytest.approx(0.025, abs=1e-9)


@settings(max_examples=60)
@given(st.data())
def test_a_trial_shows_one_silent_photo_and_never_the_positive_that_it_resembles(data):
    k, photos = data.draw(st.integers(1, 12)), data.draw(st.integers(3, 6))
    positives = data.draw(st.lists(st.integers(0, 99), min_size=k, max_size=k, unique=True))
    contrasts = data.draw(st.lists(st.integers(-1, 5).map(lambda i: i if i < 0 else 100 + i), min_size=k, max_size=k))
    fires = data.draw(st.lists(st.booleans(), min_size=k, max_size=k))
    shown = ShownExemplars(torch.tensor([positives]), torch.tensor([contrasts]), torch.tensor([fires]).float())
    usable = {p: c for p, c, on in zip(positives, contrasts, fires, strict=True) if on}
    made = verify.intruder_trials(shown, EMB, [0], 9, photos, seed=k)
    distinct = {c for c in usable.values() if c >= 0}
    assert len(made) == (len(distinct) if len(usable) >= photos else 0)
    assert len({trial.images[trial.intruder - 1] for trial in made}) == len(made)
    for trial in made:
        intruder = trial.images[trial.intruder - 1]
        others = set(trial.images) - {intruder}
        assert intruder in distinct and others <= set(usable) and len(others) == photos - 1
        assert any(usable[p] == intruder and p not in others for p in usable)
        emb = torch.nn.functional.normalize(EMB[list(trial.images)], dim=1).double()
        likeness = [(emb[i] @ emb.T).sum() - emb[i] @ emb[i] for i in range(photos)]
        assert likeness[trial.odd - 1] <= min(likeness) + 1e-5
    for start in range(0, len(made) - photos + 1, photos):
        assert {trial.intruder for trial in made[start : start + photos]} == set(range(1, photos + 1))
    assert verify.intruder_trials(shown, EMB, [0], 2, photos, seed=k) == made[:2]  # more trials keep the first ones


def test_trials_are_kept_one_by_one_and_only_failed_ones_are_asked_again(tmp_path):
    answers = {
        "intruder/0/1": None,
        "intruder/1/0": "The second, or maybe the third.",
        "intruder/1/1": '{"intruder": 0}',
    }
    first = Judge(lambda r: answers.get(r.name, knows(r)))
    rows = find(first, tmp_path, trials=2, units=2)
    assert [row.status for row in rows] == ["answered", "failed", "unparsed", "none"]
    assert [row.correct for row in rows] == [True, None, False, False]
    again = Judge(knows)
    rows = find(again, tmp_path, trials=3, units=2)
    assert again.asked == ["intruder/0/1", "intruder/0/2", "intruder/1/2"]  # the failed one, and the third trials
    assert [(row.unit, row.trial) for row in rows] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert verify.intruder_accuracy(rows).correct == 4
    last = Judge(knows)
    assert find(last, tmp_path, trials=3, units=2) == rows and last.asked == []
    other = verify.intruder_trials(exemplars(2), EMB, range(2), 3, seed=4)
    with pytest.raises(UserError, match=r"of another recipe"):
        verify.find_intruders(last, other, Plain(), tmp_path, seed=4, part_px=32, progress=False)


def test_a_budget_counts_every_trial_of_a_unit(tmp_path):
    trials = verify.intruder_trials(exemplars(1), EMB, [0], 5)
    found: dict = {}
    admitted = Budget(tokens=35).admit(trials, lambda trial: Estimate(1, 10, 0), found, ())
    assert [trial.trial for trial in admitted] == [0, 1, 2]  # none has been answered yet
    judge = Judge(knows)
    assert str(verify.intruder_estimate(judge, trials)).startswith("5 requests, about 250")
    rows = find(judge, tmp_path, units=1, budget=Budget(tokens=150))  # the judge counts no tokens: estimates stand
    assert len(rows) <= 3


def test_a_server_that_fails_is_paid_once_for_each_trial(tmp_path):
    faults = {0: ("500", "cut"), 1: ("half",), 2: ("429",)}
    with FaultServer(answer=lambda question: '{"intruder": 1}', faults=lambda n: faults.get(n, ())) as server:
        chat = load_chat("openai", base_url=server.url, model="toy", backoff=0.01, concurrency=2)
        trials = verify.intruder_trials(exemplars(2), EMB, range(2), 5)

        def ask() -> list[verify.Intrusion]:
            return verify.find_intruders(chat, trials, Pictures(400), tmp_path, part_px=32, progress=False)

        rows = ask()
        assert [row.status for row in rows] == ["answered"] * 10 and set(server.paid.values()) == {1}
        assert len(server.paid) == 10 and sum(row.record["attempts"] for row in rows) > 10
        assert verify.intruder_accuracy(rows).share == pytest.approx(0.2)
        assert ask() == rows and len(server.paid) == 10 and set(server.paid.values()) == {1}


def test_settings_that_are_no_test_are_refused():
    with pytest.raises(UserError, match="photos=2: must be at least 3"):
        verify.intruder_trials(exemplars(), EMB, [0], photos=2)
    with pytest.raises(UserError, match="trials=0: must be at least 1"):
        verify.intruder_trials(exemplars(), EMB, [0], trials=0)


# ---- the embedding score ----


def scored(emb, acts, units=(0, 1), layout=torch.Tensor.clone) -> list[verify.EmbeddingScore]:
    ids = np.arange(100), np.arange(100, 200)
    top = acts[:100].topk(8, dim=0)
    shown = ShownExemplars(top.indices.T, top.indices.T, top.values.T)
    return verify.embedding_scores(shown, emb, (layout(acts[:100]), layout(acts[100:])), ids, list(units))


def test_the_embedding_score_is_1_for_a_planted_concept_and_chance_for_a_unit_without():
    generator = torch.Generator().manual_seed(0)
    concept = torch.rand(200, generator=generator) < 0.3
    emb = torch.randn(200, 32, generator=generator) + 8 * concept[:, None] * torch.eye(32)[0]
    luck = (torch.rand(200, generator=generator) < 0.3).float() * torch.rand(200, generator=generator)
    acts = torch.stack([concept * (1 + torch.rand(200, generator=generator)), luck], dim=1)
    planted, chance = scored(emb, acts)
    assert planted.auroc == 1.0 and planted.fires == int(concept[100:].sum()) and planted.silent == 100 - planted.fires
    assert abs(chance.auroc - 0.5) < 0.15 and planted.typical > 0.5
    assert [row.unit for row in scored(3 * emb, acts, (1, 0))] == [1, 0]
    assert scored(3 * emb, acts, layout=torch.Tensor.to_sparse_csr) == [planted, chance]
    fires, silent = acts[100:, 1] > acts[:100, 1].mean(), acts[100:, 1] < acts[:100, 1].mean()
    near = torch.nn.functional.normalize(emb.double(), dim=1)
    near = near[100:] @ near[acts[:100, 1].topk(8).indices].mean(0)
    pairs = [a > b for a in near[fires].tolist() for b in near[silent].tolist()]
    assert chance.auroc == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_a_unit_that_fires_nowhere_or_everywhere_has_no_embedding_score():
    acts = torch.zeros(200, 2)
    acts[:100, 1], acts[100:, 1] = torch.linspace(0, 1, 100), 2.0
    rows = scored(torch.randn(200, 8), acts)
    assert [row.status for row in rows] == ["undefined"] * 2 and rows[1].silent == 0
    assert verify.embedding_summary(rows) == {
        "units": 2, "status": {"scored": 0, "undefined": 2}, "auroc": None, "typical": None
    }  # fmt: skip


# ---- framed regions ----

CELLS = 4


class Patched:
    """Grey pictures with a blue patch in one cell of a grid of 4 by 4, another one each."""

    fingerprint = "patched"

    @staticmethod
    def cell(i: int) -> tuple[int, int]:
        return divmod(i % (CELLS * CELLS), CELLS)

    def load(self, i: int) -> Image.Image:
        picture = Image.new("RGB", (160, 160), (128, 128, 128))
        row, column = self.cell(i)
        picture.paste((20, 20, 230), (40 * column, 40 * row, 40 * column + 40, 40 * row + 40))
        return picture

    def heat(self, unit: int, i: int) -> np.ndarray | None:
        made = np.zeros((CELLS, CELLS), dtype=np.float32)
        made[self.cell(i)] = 0.0 if unit == 1 else 1.0
        return None if unit == 2 else made


def sees(request) -> str:
    """Whether the middle of the red frame is blue."""
    found = []
    for number, picture in enumerate(request.pictures, start=1):
        pixels = image_of(picture)
        red = (pixels[..., 0] > 180) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
        rows, columns = red.nonzero()
        middle = pixels[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
        found += [number] if middle[2] > 180 and middle[0] < 90 else []
    return json.dumps({"fits": found})


def framed(count: int = 40, per_side: int = 4) -> list[verify.FuzzingSet]:
    acts = torch.rand(count, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    acts[:, 3] = 0.0
    return verify.fuzzing_sets(acts, np.arange(count), dict.fromkeys(range(4), "blue"), Patched().heat, per_side, 5)


def test_half_of_the_frames_are_where_the_unit_fires_and_the_others_hold_no_hot_point():
    (own,) = framed()  # unit 1 has no heat, unit 2 no maps, unit 3 doesn't fire
    assert own.unit == 0 and len(set(own.images)) == 8 and sum(own.fires) == 4
    for image, (left, top, right, bottom), on in zip(own.images, own.boxes, own.fires, strict=True):
        assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000
        row, column = (250 * at for at in Patched.cell(image))
        inside = left <= column and column + 250 <= right and top <= row and row + 250 <= bottom
        outside = column >= right or column + 250 <= left or row >= bottom or row + 250 <= top
        assert inside if on else outside
    assert framed() == [own]


def test_a_judge_that_sees_the_frame_gets_1_and_one_that_says_all_or_none_gets_chance(tmp_path):
    def ask(says, name: str) -> verify.Fuzzing:
        (row,) = verify.find_regions(Judge(says), framed(), Patched(), tmp_path / name, part_px=224, progress=False)
        return row

    assert (right := ask(sees, "sees")).balanced_accuracy == 1.0 and right.f1 == 1.0 and right.label == "blue"
    assert ask(lambda r: json.dumps({"fits": list(range(1, 9))}), "all").balanced_accuracy == 0.5
    assert ask(lambda r: '{"fits": []}', "none").balanced_accuracy == 0.5
    assert ask(lambda r: "Most of them.", "prose").balanced_accuracy == 0.0
    again = Judge(lambda r: None)
    (kept,) = verify.find_regions(again, framed(), Patched(), tmp_path / "sees", part_px=224, progress=False)
    assert kept == right and again.asked == []


def test_the_request_names_the_label_once_and_shows_every_photo(tmp_path):
    asked: list = []
    judge = Judge(lambda r: asked.append(r) or '{"fits": []}')
    verify.find_regions(judge, framed(), Patched(), tmp_path, part_px=224, progress=False)
    assert len(re.findall("blue", asked[0].text)) == 1 and len(asked[0].pictures) == 8
