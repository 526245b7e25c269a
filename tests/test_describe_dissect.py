"""Describe-and-Dissect: crops that fire a unit more come first, captions become candidates, photos give the order."""

import dataclasses
import json

import describe_dissect as study
import numpy as np
import pytest
import torch
from pictures import Pictures, exemplars
from PIL import Image
from servers import FaultServer
from test_effects_stage import made  # noqa: F401  (a fixture)

from saelab import truth
from saelab.errors import UserError
from saelab.label import propose
from saelab.label.describe.captions import CAPTIONS, TaggerCaptioner
from saelab.label.describe.proposer import clean_candidates
from saelab.label.exemplars import Exemplars
from saelab.label.proposal import Estimate
from saelab.label.vlm.chat import Picture
from saelab.run.config import ProposerSettings
from saelab.run.stages.proposals import propose_labels
from saelab.run.stages.unit_bench import UnitBench

IMAGES = Pictures()


class RedBench:
    """A unit that measures red, and photos of two labels: those of `red things` fire it, those of `cats` do not."""

    recipe = {"truth": "exact"}  # noqa: RUF012

    def fire(self, unit, pictures):
        return torch.tensor([float(np.asarray(p)[..., 0].mean()) for p in pictures])

    def described(self, unit, label):
        photos = {"red things": ([9.0, 8.0], 0.5), "cats": ([7.0, 1.0], 0.4), "dogs": ([0.5], 0.3)}
        acts, alike = photos.get(label, ([], 0.0))
        return torch.tensor(acts), torch.full((len(acts),), alike)


def answers(folder, labels=("cats", "Dogs.", '"red things"', "cats", "red design"), units=(0, 1), captions=20):
    rows = []
    for unit in units:
        rows += [{"name": f"caption/{unit}/{i}", "raw": f"caption {i}"} for i in range(captions)]
        rows += [{"name": f"shorten/{unit}/{i}", "raw": f"short {i}"} for i in range(captions)]
        rows += [{"name": f"summarise/{unit}/{i}", "raw": label} for i, label in enumerate(labels)]
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "recorded", "answers": str(path)}


def shown(bench=None, units=2, k=3):
    return dataclasses.replace(exemplars(units, k), bench=bench or RedBench())


def spot(unit, image):
    """Fires in the upper left quarter."""
    heat = np.zeros((8, 8), np.float32)
    heat[:4, :4] = 1
    return heat


def test_a_unit_goes_all_the_way(tmp_path):
    asking = propose.load_proposer("describe_dissect", chat=answers(tmp_path), captions="chat")
    rows = propose.run(asking, shown(), IMAGES, [0], tmp_path / "rows", mode="positives", heat=spot, progress=False)
    found = json.loads(rows[0].raw)
    assert found["candidates"] == ["cats", "dogs", "red things", "red design", "red design background"]
    assert rows[0].labels[0] == "red things" and rows[0].labels[1] == "cats" and len(rows[0].labels) == 3
    assert found["photos"] == [2, 1, 2, 0, 0] and found["R"][2] == 5  # ranks: red 0 1, cats 2 3, dogs 4
    assert found["A"][:3] == pytest.approx([(4 + 9) / 2, 16.0, 1 / 2])
    assert len(found["captions"]) == len(found["short"]) == 6 == len(rows[0].sheets)  # three photos, a crop of each
    red = [np.asarray(Image.open(tmp_path / "rows" / name))[..., 0].mean() for name in rows[0].sheets]
    assert all((tmp_path / "rows" / name).is_file() for name in rows[0].sheets) and max(red[:2]) > min(red)
    assert "short 0; short 1" in rows[0].prompt and rows[0].cached


def test_the_strongest_ten_of_photos_and_crops_are_captioned(tmp_path):
    class First(RedBench):
        def fire(self, unit, pictures):
            self.seen = [p.size for p in pictures]
            return torch.arange(len(pictures)).float()

    bench = First()
    asking = propose.load_proposer("describe_dissect", chat=answers(tmp_path), captions="chat")
    rows = propose.run(asking, shown(bench, 2, 8), IMAGES, [0], tmp_path / "rows", mode="positives", heat=spot)
    assert len(bench.seen) == 16 and bench.seen[0] == (96, 64) and bench.seen[1] != (96, 64)
    assert len(rows[0].sheets) == 10


def test_captions_in_another_order_for_each_summary(tmp_path):
    asked = []

    class Listening:
        name, recipe = "recorded", {"name": "listening"}

        def ask(self, requests):
            from saelab.label.vlm.chat import Reply

            for request in requests:
                asked.append(request)
                yield request, Reply(request.name, request=request.digest)

        def estimate(self, request):
            return Estimate(1, 10, 5, 0.0)

    from saelab.label.describe.captions import ChatCaptioner
    from saelab.label.describe.proposer import DescribeDissect

    proposer = DescribeDissect(ChatCaptioner(Listening()), Listening(), summaries=3)
    propose.run(proposer, shown(k=5), IMAGES, [0], tmp_path, mode="positives", progress=False)
    texts = [request.text.split("Descriptions: ")[-1] for request in asked if request.name.startswith("summarise")]
    assert len(set(texts)) == 3 and len({tuple(sorted(t.splitlines()[0].split("; "))) for t in texts}) == 1
    case = propose.build_case(shown(), IMAGES, 0, "positives", 0, 10)
    assert proposer.estimate(case).requests == 10 + 10 + 3  # of three photos and their crops ten are kept
    assert all(request.pictures for request in asked[:5]) and not any(request.pictures for request in asked[5:])


def test_without_photos_of_any_candidate_they_stay_in_their_order(tmp_path):
    class Blind(RedBench):
        def described(self, unit, label):
            return torch.zeros(0), torch.zeros(0)

    asking = propose.load_proposer("describe_dissect", chat=answers(tmp_path), captions="chat")
    rows = propose.run(asking, shown(Blind()), IMAGES, [0], tmp_path / "rows", mode="positives", progress=False)
    assert rows[0].labels == ("cats", "dogs", "red things") and "A" not in json.loads(rows[0].raw)


@pytest.mark.parametrize(
    ("answers_given", "expected"),
    [
        (["A Red Car.", "a red car", "label: tree"], ["a red car", "tree"]),
        (["nice graphics"], ["nice graphics", "nice graphics background"]),
        (["one two three four five six", "", " . "], []),
    ],
)
def test_candidates_are_cleaned_as_in_the_original(answers_given, expected):
    assert clean_candidates(answers_given) == expected


def test_a_unit_without_an_answer_fails_alone(tmp_path):
    asking = propose.load_proposer("describe_dissect", chat=answers(tmp_path, units=(1,)), captions="chat")
    rows = propose.run(asking, shown(), IMAGES, [0, 1], tmp_path / "rows", mode="positives", progress=False)
    assert [row.status for row in rows] == ["failed", "answered"] and "caption/0/0" in rows[0].error
    unreadable = answers(tmp_path, labels=["."] * 5)
    asking = propose.load_proposer("describe_dissect", chat=unreadable, captions="chat")
    rows = propose.run(asking, shown(), IMAGES, [0], tmp_path / "again", mode="positives", progress=False)
    assert rows[0].status == "unparsed" and rows[0].labels == ()


def test_what_was_bought_is_not_bought_again(tmp_path):
    """Killed after its answers came and before its row was written: the second run sends nothing."""
    with FaultServer(answer=lambda question: f"thing {question[:4]}") as server:
        chat = {"name": "openai", "base_url": server.url, "model": "toy", "cache": str(tmp_path / "answers")}
        asking = propose.load_proposer("describe_dissect", chat=chat, captions="chat", summaries=2)
        first = propose.run(asking, shown(), IMAGES, [0], tmp_path / "rows", mode="positives", progress=False)
        sent = len(server.bodies)
        assert sent >= 3 + 3 + 2 and first[0].prompt_tokens > 0 and not first[0].cached
        (tmp_path / "rows" / "proposals.jsonl").unlink()
        again = propose.run(asking, shown(), IMAGES, [0], tmp_path / "rows", mode="positives", progress=False)
        assert len(server.bodies) == sent and again[0].labels == first[0].labels


def test_equal_captions_are_shortened_and_counted_once(tmp_path):
    with FaultServer(answer=lambda question: "a cat") as server:
        chat = {"name": "openai", "base_url": server.url, "model": "toy", "cache": str(tmp_path / "answers")}
        asking = propose.load_proposer("describe_dissect", chat=chat | {"concurrency": 1}, captions="chat")
        run = {"mode": "positives", "progress": False}
        rows = propose.run(asking, shown(), IMAGES, [0, 1], tmp_path / "rows", **run)
        texts = [body for body in server.bodies if "image_url" not in json.dumps(body)]
        assert sum(row.completion_tokens for row in rows) == 7 * (len(server.bodies) - sees(texts)) and len(texts) < 6


def sees(texts) -> int:
    """Questions whether pictures are seen."""
    return sum(body["max_tokens"] == 1 for body in texts)


def test_bad_settings_are_one_line(tmp_path):
    chat = answers(tmp_path)
    for given, words in (
        ({"captions": "tager"}, "did you mean tagger"),
        ({"captions": "tagger"}, "gives no class probabilities"),
        ({"captions": "chat", "summaries": 0}, "at least 1"),
        ({"captions": "chat", "colour": 1}, "colour"),
        ({"captions": "chat", "chat": {"name": "parrot"}}, "must be one of"),
    ):
        with pytest.raises(UserError, match=words) as found:
            propose.load_proposer("describe_dissect", **{"chat": chat} | given)
        assert "\n" not in str(found.value)
    asking = propose.load_proposer("describe_dissect", chat=chat, captions="chat")
    with pytest.raises(UserError, match="use it within a run"):
        propose.run(asking, exemplars(2, 3), IMAGES, [0], tmp_path / "rows", mode="positives", progress=False)
    assert CAPTIONS == ("tagger", "chat")


def test_the_classifiers_sentence_names_its_likeliest_classes():
    captioner = TaggerCaptioner(lambda picture: torch.tensor([0.1, 0.6, 0.3]), ["cat, kitty", "dog, hound", "sky"])
    jpeg = Picture(b"", (8, 8), "x")
    from saelab.label.sheets import jpeg as packed

    jpeg = dataclasses.replace(jpeg, jpeg=packed(Image.new("RGB", (8, 8))))
    assert captioner.caption(0, [jpeg], None)[0].text == "a photo of a dog or a photo of a sky"
    assert captioner.estimate() == Estimate()


def test_a_run_gives_it_real_activations_and_held_out_photos(made, tmp_path):  # noqa: F811
    """Candidates red and blue for the unit that sees red: the photos called red fire it most."""
    basis = next(basis for basis in made.mined if basis.name == "neuron")
    bench = made._bench(basis)
    some = made.images.ids("mine")[:5]
    acts = made.units["neuron"].acts.to_dense()
    photos = [made.images.load(int(i)) for i in some]
    torch.testing.assert_close(bench.fire(0, photos), acts[torch.as_tensor(some), 0], rtol=1e-2, atol=1e-2)
    on, alike = bench.described(0, "red")
    ids = made.images.ids("show")
    stated = truth.from_descriptions(["red"], [None] * len(ids), [made.images.classes[i] for i in ids])
    assert len(on) == int(stated.member[:, stated.column["red"]].sum()) > 0 and float(alike.min()) > 0.5
    assert len(bench.described(0, "zebra")[0]) == 0
    chat = answers(tmp_path, labels=("blue", "green", "red", "blue", "grey"), units=(0,))
    asking = propose.load_proposer("describe_dissect", chat=chat, captions="chat")
    settings = ProposerSettings("describe_dissect", mode="positives", units="0")
    made_aids = ((), None, bench)
    _, rows, text = propose_labels(basis, asking, settings, made.images, made.store(basis), tmp_path, *made_aids)
    assert rows[0].labels[0] == "red" and "describe_dissect" in text


def test_another_truth_or_other_made_pictures_start_proposals_anew(made, tmp_path):  # noqa: F811
    """The order of candidates hangs on which photos a label stands for, and what is shown on how it was made."""
    basis = next(basis for basis in made.mined if basis.name == "neuron")
    chat = answers(tmp_path, labels=("blue", "green", "red", "blue", "grey"), units=(0,))
    asking = propose.load_proposer("describe_dissect", chat=chat, captions="chat")
    settings = ProposerSettings("describe_dissect", mode="positives", units="0")

    def ask(settings=settings, **aids):
        given = (basis, asking, settings, made.images, made.store(basis), tmp_path)
        return propose_labels(*given, **aids)[0]

    bench = made._bench(basis)
    strict = dataclasses.replace(bench, rule="exact")
    assert bench.rule != "exact" and ask(bench=bench) == ask(bench=bench) != ask(bench=strict)

    beside = dataclasses.replace(settings, options={"synthesised": "beside"})
    made_so = [lambda units, name=name: propose.MadePictures(tmp_path / name, {}) for name in ("fourier-1", "maco-2")]
    first, second = (ask(beside, bench=bench, make=make) for make in made_so)
    assert first != second and ask(beside, bench=bench, make=made_so[0]) == first
    assert ask(bench=bench, make=made_so[0]) == ask(bench=bench), "nothing made is shown, so nothing hangs on it"


def test_the_study_counts_what_crops_and_the_new_order_do(made, monkeypatch):  # noqa: F811
    """A bench that small pictures fire, and one for which only photos of blue fire a unit that sees red."""
    monkeypatch.setattr(study, "SCORER", "pearson")
    basis = next(basis for basis in made.labelled if basis.name == "neuron")
    bench, mined = made._bench(basis), Exemplars.load(basis.exemplars.path)

    class Small(UnitBench):
        def fire(self, unit, pictures):
            return torch.tensor([-float(picture.width) for picture in pictures])

    small = Small(**{field.name: getattr(bench, field.name) for field in dataclasses.fields(bench)})
    heat = np.zeros((8, 8), np.float32)
    heat[:4, :4] = 1
    monkeypatch.setattr(study, "HeatMaps", lambda *given: lambda unit, image: heat)
    assert study.try_crops(made, basis, small, mined, [0, 1]).tolist() == [[1, 1]] * 2
    monkeypatch.setattr(study, "HeatMaps", lambda *given: lambda unit, image: None)
    assert study.try_crops(made, basis, small, mined, [0, 1]).shape == (0, 2)

    assert study.try_order(made, basis, bench, [0]).tolist() == [[1, 1]]  # red is first by both

    class Contrary(UnitBench):
        def described(self, unit, label):
            return torch.tensor([9.0 if label == "blue" else 1.0]), torch.tensor([0.5])

    contrary = Contrary(**{field.name: getattr(bench, field.name) for field in dataclasses.fields(bench)})
    found = study.try_order(made, basis, contrary, [0])
    assert found.tolist() == [[0, 1]]
    assert "0.000 [0.000, 0.000], by CSP in 1.000" in study.say_order(found.repeat(3, 1))
    assert "of no unit" in study.say_order(found[:0])
