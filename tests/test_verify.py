"""The detection test and the second look, by a judge that really looks at the pixels it is sent."""

import io
import json
import re

import numpy as np
import pytest
import torch
from pictures import exemplars
from PIL import Image

from saelab import verify
from saelab.errors import UserError
from saelab.label.propose import build_case
from saelab.label.vlm.chat import Picture, Reply

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


class Plain:
    """Picture i is of one colour: red, green, blue, red, ..."""

    fingerprint = "plain"

    def load(self, i: int) -> Image.Image:
        return Image.new("RGB", (40, 40), list(COLOURS.values())[i % 3])


class Judge:
    """Finds the colour that the prompt names among the numbered photos, unless it is told what to say."""

    name, recipe = "judge", {"name": "judge"}

    def __init__(self, says=None) -> None:
        self.says, self.asked = says, []

    def ask(self, requests):
        for request in requests:
            self.asked.append(request.name)
            text = self.says(request) if self.says else json.dumps({"fits": self.found(request)})
            yield request, Reply(text, None if text is not None else "down", request.digest)

    def found(self, request) -> list[int]:
        wanted = re.search(r"Which of them show this: (\w+)\?", request.text)[1]
        numbers = [int(n) for n in re.findall(r"Photo (\d+): \[", request.text)]
        colours = [colour_of(part) for part in request.parts if isinstance(part, Picture)]
        return [n for n, colour in zip(numbers, colours, strict=True) if colour == wanted]


def colour_of(picture: Picture) -> str:
    pixel = Image.open(io.BytesIO(picture.jpeg)).getpixel((picture.size[0] // 2, picture.size[1] // 2))
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(pixel, COLOURS[name], strict=True)))


def one_set(label: str = "red") -> verify.DetectionSet:
    return verify.DetectionSet(3, label, positives=(0, 3, 6), contrasts=(1, 4), others=(2,))


def test_a_judge_that_sees_is_right_and_one_that_sees_the_reverse_is_wrong(tmp_path):
    (right,) = verify.detect(Judge(), [one_set()], Plain(), tmp_path / "a", part_px=64, progress=False)
    assert (right.status, right.balanced_accuracy, right.f1) == ("answered", 1.0, 1.0)
    assert sorted(right.images) == [0, 1, 2, 3, 4, 6] and right.images != (0, 3, 6, 1, 4, 2)
    assert [image % 3 == 0 for image in right.images] == list(right.fires)

    def reverse(request) -> str:
        return json.dumps({"fits": sorted(set(range(1, 7)) - set(Judge().found(request)))})

    (wrong,) = verify.detect(Judge(reverse), [one_set()], Plain(), tmp_path / "b", part_px=64, progress=False)
    assert (wrong.balanced_accuracy, wrong.f1) == (0.0, 0.0)


def test_scores_are_those_of_scikit_learn(tmp_path):
    from sklearn.metrics import balanced_accuracy_score, f1_score

    for count in range(7):
        says = list(range(1, count + 1))
        judge = Judge(lambda request, says=says: json.dumps({"fits": says}))
        (row,) = verify.detect(judge, [one_set()], Plain(), tmp_path / str(count), part_px=64, progress=False)
        said = [number in says for number in range(1, 7)]
        assert row.balanced_accuracy == pytest.approx(balanced_accuracy_score(row.fires, said))
        assert row.f1 == pytest.approx(f1_score(row.fires, said))


def test_unparsed_is_all_wrong_failed_is_nothing_and_asked_again(tmp_path):
    sets = [verify.DetectionSet(unit, "red", (0, 3), (1,), (2,)) for unit in range(4)]
    answers = {"detect/0": '{"fits": []}', "detect/1": "All of them, I think.", "detect/2": None}

    def says(request):
        return answers.get(request.name, json.dumps({"fits": Judge().found(request)}))

    rows = verify.detect(Judge(says), sets, Plain(), tmp_path, part_px=64, progress=False)
    assert [row.status for row in rows] == ["answered", "unparsed", "failed", "answered"]
    assert [row.balanced_accuracy for row in rows] == [0.5, 0.0, None, 1.0]
    found = verify.detection_summary(rows)
    assert found["balanced_accuracy"] == 0.5 and found["status"] == {"answered": 2, "failed": 1, "unparsed": 1}
    again = Judge()
    rows = verify.detect(again, sets, Plain(), tmp_path, part_px=64, progress=False)
    assert again.asked == ["detect/2"] and rows[2].balanced_accuracy == 1.0 and rows[1].raw == "All of them, I think."


def test_detection_sets_hold_images_of_the_split_alone_and_no_positive_among_the_negatives():
    generator = torch.Generator().manual_seed(0)
    ids = np.arange(100, 160)
    acts = torch.rand(60, 5, generator=generator).pow(3)
    acts[:, 3] = 0.0  # dead on this split
    acts[:, 4] = 0.0
    acts[7, 4] = 1.0  # fires once
    emb = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=1)
    sets = verify.detection_sets(acts, emb, ids, {0: "a", 2: "b", 3: "c", 4: "d"}, per_side=4, seed=1)
    assert [own.unit for own in sets] == [0, 2, 4]
    for own in sets[:2]:
        column = acts[:, own.unit]
        strongest = (100 + column.argsort(descending=True)[:4]).tolist()
        assert list(own.positives) == strongest and (len(own.contrasts), len(own.others)) == (2, 2)
        assert len({*own.positives, *own.contrasts, *own.others}) == 8
        assert all(column[image - 100] < column.mean() for image in own.contrasts + own.others)
        quiet = [i for i in range(60) if column[i] < column.mean()]
        nearest = max(quiet, key=lambda i: float(emb[strongest[0] - 100] @ emb[i]))
        assert own.contrasts[0] == 100 + nearest
    assert sets[2].positives == (107,) and len(sets[2].contrasts) == 1
    assert sets == verify.detection_sets(acts, emb, ids, {0: "a", 2: "b", 3: "c", 4: "d"}, per_side=4, seed=1)
    with pytest.raises(UserError, match=r"per_side=40: needs 80 images, the split has 60"):
        verify.detection_sets(acts, emb, ids, {0: "a"}, per_side=40)


def test_the_second_look_takes_the_candidate_that_was_meant_wherever_it_stood(tmp_path):
    ex = exemplars(8, 3)
    cases = [build_case(ex, Plain(), unit, "contrast", 0, 3) for unit in range(8)]
    names = ["red", "green", "blue", "grey"]

    def wants_blue(request) -> str:
        number = re.search(r"(\d+)\. blue", request.text)[1]
        return {"choose/5": '{"choice": 0}', "choose/6": '{"choice": 9}'}.get(request.name, f'{{"choice": {number}}}')

    judge = Judge(wants_blue)
    rows = verify.second_look(judge, cases, dict.fromkeys(range(8), names), tmp_path, progress=False)
    assert [row.label for row in rows] == ["blue"] * 5 + [None, None, "blue"]
    assert [row.status for row in rows[4:]] == ["answered", "none", "unparsed", "answered"]
    assert len({row.candidates.index("blue") for row in rows}) > 1  # not always at the same place
    assert sorted(rows[0].candidates) == sorted(names)
    again = Judge(wants_blue)
    kept = verify.second_look(again, cases, dict.fromkeys(range(8), names), tmp_path, progress=False)
    assert again.asked == [] and kept == rows
