"""Planted units: drawn as they say, found by a labeller that knows, and through the whole pipeline beside real ones."""

import dataclasses

import numpy as np
import pytest
import torch

import saelab
from saelab import truth
from saelab.cli.screens import planted_table
from saelab.errors import UserError
from saelab.label.planted import COMMONEST, FEWEST, KINDS, measure, plant
from saelab.label.proposal import Proposal
from saelab.run.stages.planted import find_seen

IMAGES, WORDS = 400, [f"word{i}" for i in range(8)]


def table(seed: int = 0) -> torch.Tensor:
    """Eight concepts: the first six on a tenth of the images each and apart, the last two mostly together."""
    rng = np.random.default_rng(seed)
    member = np.zeros((IMAGES, 8), bool)
    member[np.arange(IMAGES), rng.integers(0, 10, IMAGES).clip(max=6) % 7] = True
    member[:, 6] = rng.random(IMAGES) < 0.3
    member[:, 7] = member[:, 6] ^ (rng.random(IMAGES) < 0.4)
    return torch.from_numpy(member)


def test_a_unit_fires_for_what_it_was_planted_for_and_no_other_pair_is_drawn():
    member, mine = table(), torch.arange(0, IMAGES, 2)
    found = plant(WORDS, member, mine)
    assert found.acts.shape == (IMAGES, len(found.kinds)) and found.acts.dtype == torch.float32
    assert set(found.kinds) == set(KINDS) and list(found.kinds) == sorted(found.kinds, key=KINDS.index)
    for unit, (kind, own) in enumerate(zip(found.kinds, found.concepts)):
        assert len(own) == (1 if kind == "mono" else 2)
        columns = member[:, [WORDS.index(name) for name in own]]
        there = columns.any(1) if kind == "or" else columns.all(1)
        assert FEWEST <= int(there[mine].sum()) <= COMMONEST * len(mine)
        acts = found.acts[:, unit]
        assert float(acts[there].mean()) > 5 * float(acts[~there].mean())
        assert bool(there[torch.argsort(acts, descending=True)[: int(there.sum()) // 2]].all())
    together = [own for kind, own in zip(found.kinds, found.concepts) if kind == "and"]
    assert ("word6", "word7") in together
    assert torch.equal(plant(WORDS, member, mine).acts, found.acts)


def test_nothing_to_plant_is_one_line():
    with pytest.raises(UserError, match="bases=planted: no label of the vocabulary"):
        plant(WORDS[:1], torch.ones(40, 1, dtype=torch.bool), torch.arange(40))


def entry(*labels: str) -> dict:
    return {"label": labels[0], "runners_up": [[label, 0.1] for label in labels[1:]]}


def test_recall_and_precision_by_hand():
    """Four units; `b` is another name of `a`, `z` is nothing that anybody planted."""
    rows = [
        {
            "label": "b",
            "abstained": False,
            "scores": {"one": entry("b", "c"), "two": entry("z", "a")},
            "meanings": None,
        },
        {"label": "c", "abstained": True, "scores": {"one": entry("c", "a", "d")}, "meanings": [{"label": "a"}]},
        {"label": "d", "abstained": False, "scores": {"one": entry("d", "z")}, "meanings": [{"label": "d"}]},
        {"label": None, "abstained": True, "scores": {}, "meanings": []},
    ]
    kinds, concepts = ["mono", "or", "and", "mono"], [["a"], ["a", "c"], ["d", "c"], ["c"]]
    same = {"a": 0, "b": 0, "c": 1, "d": 2}.get
    found = {(row["labeller"], row["kind"]): row for row in measure(rows, kinds, concepts, same, seen={0, 2})}
    one = found["one", "all"]  # names b | c a | d z | nothing: right are b, c, a, d
    assert (one["units"], one["recall"], one["precision"]) == (4, 4 / 6, 4 / 5)
    # seen are a and d: planted a, a, d; of b (which is a), c a and d z all three are named
    assert (one["concepts"], one["seen"], one["recall_seen"]) == (6, 3, 1.0)
    assert (found["final", "all"]["recall_seen"], found["final", "mono"]["recall_seen"]) == (2 / 3, 1.0)
    # dealt out: b -> 2 of 4 units, c -> 3, a -> 2, d -> 1, z -> 0
    assert one["dealt"] == pytest.approx(8 / 4 / 5)
    assert found["one", "or"]["recall"] == 1 and found["one", "and"]["precision"] == 0.5
    assert (found["final", "all"]["recall"], found["final", "all"]["precision"]) == (2 / 6, 1.0)
    assert found["two", "mono"]["recall"] == 0 and found["two", "or"]["precision"] is None
    asked = Proposal(1, ("c", "z", "a"), "answered", "tagger", "contrast", (), ())
    more = [row | {"proposed": asked if unit == 1 else None} for unit, row in enumerate(rows)]
    proposer = {
        row["kind"]: row for row in measure(more, kinds, concepts, same) if row["labeller"] == "tagger (proposer)"
    }
    assert set(proposer) == {"all", "or"} and proposer["all"]["units"] == 1  # the one that it was asked about
    assert (proposer["all"]["recall"], proposer["all"]["precision"]) == (0.5, 0.5)
    assert (found["meanings", "all"]["recall"], found["meanings", "all"]["precision"]) == (2 / 6, 1.0)


def test_an_encoder_sees_a_concept_whose_word_is_near_its_photos():
    """Two concepts of three: one that the encoder has the photos of, and one whose word it has elsewhere."""
    member = torch.zeros(60, 3, dtype=torch.bool)
    member[:20, 0], member[20:40, 1], member[40:41, 2] = True, True, True
    images = torch.eye(4)[torch.where(member.any(1), member.int().argmax(1), 3)] + 0.1 * torch.randn(
        60, 4, generator=torch.Generator().manual_seed(0)
    )
    names = ("cat", "joy", "moon")
    columns = {name: i for i, name in enumerate(names)}
    stated = truth.Truth(member, columns, names, torch.ones(60).bool(), "exact")
    words = torch.eye(4)[[0, 3, 2]]
    judge = truth.Similarity.of("encoder", images, names, words)
    every = torch.arange(60)
    assert find_seen(["cat", "joy", "cat"], judge, stated, every) == {0}
    assert find_seen(names, judge, stated, every) == {0, 2}
    assert find_seen(names, judge, stated, every[:40]) == {0}, "of the moon there is no photo among these"
    flipped = dataclasses.replace(judge, images=-images)
    assert find_seen(["cat"], flipped, stated, every) == set()
    unknown = dataclasses.replace(stated, known=torch.arange(60) >= 20)
    assert find_seen(["cat"], judge, unknown, every) == set()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> saelab.Pipeline:
    """Arrays with six concepts, each with its own vector in the space of labels."""
    rng, member = np.random.default_rng(1), table(1).numpy()[:, :6]
    words = rng.normal(size=(6, 32))
    images = member @ words + 0.3 * rng.normal(size=(IMAGES, 32))
    acts = (member @ rng.random((6, 12)) + 0.2 * rng.random((IMAGES, 12))).astype(np.float32)
    return saelab.Pipeline(
        activations=acts,
        embeddings={"images": images, "labels": words},
        vocabulary=WORDS[:6],
        classes=[[WORDS[c] for c in np.flatnonzero(row)] for row in member],
        bases=["neuron", "random_rotation", "planted"],
        scorer=["pearson", "contrast_evidence", "semanticlens"],
        label={"nulls": 20, "mining": {"k": 8}, "final": "pearson"},
        root=str(tmp_path_factory.mktemp("planted")),
        workers=0,
        device="cpu",
    )


def test_planted_units_go_the_whole_way_and_are_compared_with_nothing(pipeline):
    (basis,) = [basis for basis in pipeline.evaluated if basis.kind == "planted"]
    rows = {(row["labeller"], row["kind"]): row for row in pipeline.measure_planted(basis)}
    assert {name for name, _ in rows} == {"final", "pearson", "contrast_evidence", "semanticlens", "meanings"}
    for scorer in ("pearson", "contrast_evidence"):
        assert rows[scorer, "mono"]["recall"] >= 0.8 and rows[scorer, "or"]["recall"] >= 0.6
        assert rows[scorer, "all"]["precision"] > rows[scorer, "all"]["dealt"] + 0.3
    assert any("planted units" in note for note in pipeline.notes)
    compared = pipeline.comparison.by_layer["arrays"]
    assert [b["name"] for b in compared["bases"]] == ["neuron", "random rotation"]
    assert "planted" not in pipeline.effects and "planted" in pipeline.labels
    with pytest.raises(UserError, match="read from no layer"):
        pipeline.tokens(basis)


def test_the_table_has_a_line_a_labeller_and_a_column_a_kind():
    rows = [
        {"labeller": name, "kind": kind, "units": n, "recall": 0.5, "precision": p, "dealt": p}
        for name, p in (("pearson", 0.25), ("final", None))
        for kind, n in (("all", 3), ("mono", 3))
    ]
    rows = [row | {"concepts": 4, "seen": 0, "recall_seen": None} for row in rows]
    lines = planted_table(rows).strip().splitlines()
    assert lines[0].split()[-4:] == ["all", "(3)", "mono", "(3)"] and len(lines) == 3
    assert lines[1].count("0.50 / 0.25 / 0.25") == 2 and lines[2].count("0.50 / - / -") == 2
    asked = {"labeller": "openai (proposer)", "kind": "all", "units": 2, "recall": 0.0, "precision": 0.0, "dealt": 0.0}
    asked |= {"seen": 0}
    lines = planted_table([*rows, asked]).strip().splitlines()
    assert lines[0].split()[-3] == "(3)" and " ".join(lines[3].split()) == "openai (proposer) 0.00 / 0.00 / 0.00 of 2 -"
    assert planted_table([]) == ""
    some = [row | {"seen": 3, "recall_seen": 1 / 3} for row in rows]
    lines = planted_table(some).strip().splitlines()
    assert lines[0].split(" / ")[-1].startswith("recall of seen") and lines[1].count("0.50 / 0.25 / 0.25 / 0.33") == 2
    assert lines[-1] == "seen: concepts whose words the encoder tells from others, all 3 of 4, mono 3 of 4"
