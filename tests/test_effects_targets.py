"""Which outputs a label means: names and synonyms, WordNet's tree, a sentence encoder; heads where a host has none."""

import numpy as np
import pytest
import torch

from saelab.effects import fit_probe, host_head, imagenet_outputs, text_head, wordnet
from saelab.effects.targets import Outputs, find_targets
from saelab.errors import UserError

ANIMALS = Outputs(
    ("tabby", "tiger cat", "beagle", "crane", "construction crane"),
    (("tabby", "tabby cat"), ("tiger cat",), ("beagle",), ("crane",), ("crane",)),
    ("n00000004", "n00000004", "n00000005", "n00000006", "n00000007"),
)
INDEX = """  1 a licence
cat n 1 1 @ 1 1 00000002
dog n 2 1 @ 2 1 00000009 00000003
animal n 1 1 ~ 1 1 00000001
"""
DATA = """  1 a licence
00000001 05 n 01 animal 0 000 | a living thing | with a bar
00000002 05 n 01 cat 0 001 @ 00000001 n 0000 | feline
00000003 05 n 01 dog 0 001 @ 00000001 n 0000 | canine
00000004 05 n 02 tabby 0 tabby_cat 0 002 @ 00000002 n 0000 ~ 00000008 n 0000 | a cat
00000005 05 n 01 beagle 0 001 @i 00000003 n 0000 | a dog
00000009 05 n 01 hot_dog 0 000 | a frankfurter
"""


@pytest.fixture
def small_wordnet(tmp_path, monkeypatch):
    (tmp_path / "index.noun").write_text(INDEX)
    (tmp_path / "data.noun").write_text(DATA)
    monkeypatch.setattr(wordnet, "folder", lambda: tmp_path)


def of(targets, label):
    places, shares = targets.weights[label]
    assert shares.sum() == pytest.approx(1)
    return dict(zip(places.tolist(), shares.tolist()))


def test_names_before_synonyms():
    found = find_targets(["Tabby cats", "crane", "the Beagle", "red"], ANIMALS, ["exact"])
    assert of(found, "Tabby cats") == {0: 1.0} and of(found, "crane") == {3: 1.0} and of(found, "the Beagle") == {2: 1}
    assert found.how["red"] == "none" and "red" not in found and found.counts == {"exact": 3, "none": 1}
    shared = Outputs(("a", "b"), (("crane",), ("crane", "hoist")))
    assert of(find_targets(["cranes"], shared, ["exact"]), "cranes") == {0: 0.5, 1: 0.5}


def test_hypernyms_cover_what_lies_below_the_first_sense_that_has_any(small_wordnet):
    found = find_targets(["Cats", "dog", "animal", "tabby", "red"], ANIMALS, ["exact", "hypernym"])
    assert of(found, "Cats") == {0: 0.5, 1: 0.5}
    assert of(found, "dog") == {2: 1.0}  # its first sense has no output below it
    assert of(found, "animal") == {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}
    assert found.how == {"Cats": "hypernym", "dog": "hypernym", "animal": "hypernym", "tabby": "exact", "red": "none"}


def test_without_wordnet_the_rule_finds_nothing(monkeypatch):
    monkeypatch.setattr(wordnet, "folder", lambda: None)
    assert find_targets(["cat"], ANIMALS, ["hypernym"]).how == {"cat": "none"}


def test_real_wordnet_has_the_dogs_of_imagenet():
    if wordnet.folder() is None:
        pytest.skip("WordNet is not installed")
    found = of(find_targets(["dog"], imagenet_outputs(), ["hypernym"]), "dog")
    assert set(range(151, 269)) <= set(found) and len(found) < 125


def test_texts_near_an_output_share_it():
    vectors = {"kitten": [0.9, 0.1, 0], "sky": [0, 0, 1.0], "tabby": [1.0, 0, 0], "beagle": [0, 1.0, 0]}
    embed = lambda texts: torch.nn.functional.normalize(torch.tensor([vectors[t] for t in texts]), dim=1)  # noqa: E731
    found = find_targets(["kitten", "sky"], Outputs(("tabby", "beagle")), ["text"], embed)
    assert of(found, "kitten")[0] > 0.99 and found.how == {"kitten": "text", "sky": "none"}
    assert find_targets(["kitten"], ANIMALS, ["text"]).how == {"kitten": "none"}, "no encoder, no guess"


def test_rows_of_the_matrix_are_distributions():
    found = find_targets(["crane", "red", "tabby"], ANIMALS, ["exact"])
    np.testing.assert_array_equal(found.matrix(["tabby", "red", "crane", "tabby"]).toarray().sum(1), [1, 0, 1, 1])
    assert find_targets([], ANIMALS).matrix([]).shape == (0, 5)


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(UserError, match="did you mean hypernym"):
        find_targets(["cat"], ANIMALS, ["hypernim"])


def test_imagenet_is_known_by_its_names_and_synonyms():
    outputs = imagenet_outputs()
    assert len(outputs) == len(outputs.synonyms) == len(outputs.synsets) == 1000
    found = find_targets(["ocarina", "sweet potato", "tiger cat"], outputs, ["exact"])
    assert list(of(found, "ocarina")) == [684] and list(of(found, "tiger cat")) == [282]  # ocarina, sweet potato: 684
    assert list(of(found, "sweet potato")) == [684]


# ---- heads -------------------------------------------------------------------------------------------------------


def test_a_host_names_its_own_outputs():
    class Named:
        config = type("Config", (), {"id2label": {0: "cat", 1: "dog"}})

    class Numbered:
        config = type("Config", (), {"id2label": {0: "LABEL_0", 1: "LABEL_1"}})

    class Read:
        """As a config's JSON has it: numbers as text, in any order."""

        config = type("Config", (), {"id2label": {"1": "dog", "0": "cat"}})

    assert host_head(Named(), 2).outputs.names == host_head(Read(), 2).outputs.names == ("cat", "dog")
    assert len(host_head(object(), 1000).outputs) == 1000
    for model in (Numbered(), Named(), object()):
        with pytest.raises(UserError, match="have no names; use head=probe"):
            host_head(model, 7 if isinstance(model, Named) else 2)


def classes(count: int, generator: torch.Generator):
    truth = torch.randint(3, (count,), generator=generator)
    x = torch.randn(count, 5, generator=generator) + 3 * torch.nn.functional.one_hot(truth, 5)
    return 100 * x + 7, [(f"class {c}", "thing") if c else (f"class {c}",) for c in truth.tolist()]


def test_a_probe_learns_what_can_be_told_and_refuses_what_can_not():
    generator = torch.Generator().manual_seed(0)
    mine, test = classes(150, generator), classes(60, generator)
    head = fit_probe(*mine, *test)
    assert head.outputs.names == ("class 0", "class 1", "class 2", "thing") and head.accuracy > 0.9 > head.chance
    assert torch.equal(head(test[0]), head(test[0])) and head(test[0]).shape == (60, 4)
    noise = torch.randn(150, 5, generator=generator), torch.randn(60, 5, generator=generator)
    with pytest.raises(UserError, match="commonest class"):
        fit_probe(noise[0], [c[:1] for c in mine[1]], noise[1], [c[:1] for c in test[1]])
    with pytest.raises(UserError, match="1 classes"):
        fit_probe(mine[0], [("one",)] * 150, *test)


def test_a_text_head_gives_cosines():
    head = text_head(["a", "b"], torch.tensor([[2.0, 0], [0, 3.0]]), 2)
    torch.testing.assert_close(head(torch.tensor([[5.0, 0]])), torch.tensor([[100.0, 0]]))
    with pytest.raises(UserError, match="answers with 7 numbers"):
        text_head(["a"], torch.ones(1, 2), 7)
