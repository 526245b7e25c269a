"""Truth of labels on images from what people wrote: matching of words, in the three rules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab import truth
from saelab.errors import UserError

CAPTIONS = ["A robin.", "a red apple", "Two ice-creams on a table", "A bird house", None, None]
CLASSES = [("animals", "birds"), ("food",), (), (), ("goldfish, Carassius auratus",), ()]


def holds(label: str, rule: str) -> list[int]:
    stated = truth.from_descriptions([label], CAPTIONS, CLASSES, rule)
    if label not in stated.column:
        return []
    return torch.nonzero(stated.member[:, stated.column[label]]).flatten().tolist()


@pytest.mark.parametrize(
    ("label", "exact", "mention", "head"),
    [
        ("robin", [0], [0], [0]),
        ("Robins", [0], [0], [0]),  # case and plural
        ("bird", [0], [0, 3], [0, 3]),  # a folder's name; the bird house mentions one
        ("apple", [], [1], [1]),
        ("red_apple", [1], [1], [1]),  # underscore; leading article of the caption
        ("apples and pears", [], [], []),
        ("ice cream", [], [2], [2]),  # hyphen and plural inside a caption
        ("cream ice", [], [], [2]),  # words in a row, in their order
        ("goldfish", [4], [4], [4]),  # one of a class's synonyms
        ("Carassius auratus", [4], [4], [4]),
        ("American robin", [], [], [0]),  # only its last word is there
        ("bird table", [], [], [2]),
        ("app", [], [], []),  # a part of a word is no word
    ],
)
def test_a_label_is_true_where_people_said_so(label, exact, mention, head):
    assert holds(label, "exact") == exact
    assert holds(label, "mention") == mention
    assert holds(label, "head") == head


def test_images_that_nobody_described_are_unknown_not_false():
    stated = truth.from_descriptions(["robin"], CAPTIONS, CLASSES)
    assert stated.known.tolist() == [True, True, True, True, True, False]


def test_a_label_without_any_image_has_no_truth_at_all():
    stated = truth.from_descriptions(["zebra", "robin"], CAPTIONS, CLASSES)
    assert set(stated.column) == {"robin"} and stated.member.shape == (6, 1)


def test_two_spellings_share_one_concept():
    stated = truth.from_descriptions(["robin", "Robins", "a robin"], CAPTIONS, CLASSES)
    assert len(stated.names) == 1 and set(stated.column.values()) == {0}


def test_a_concept_table_is_matched_by_name_and_every_image_is_known():
    member = torch.tensor([[True, False], [False, True]])
    stated = truth.from_concepts(["Pigment Network", "streaks", "blue veil"], ["pigment_network", "streak"], member)
    assert stated.column == {"Pigment Network": 0, "streaks": 1}
    assert stated.known.all() and torch.equal(stated.member, member)


def test_bad_input_is_told_in_one_line():
    with pytest.raises(UserError, match="truth=fuzzy: unknown rule; known: exact, mention, head"):
        truth.from_descriptions(["robin"], CAPTIONS, CLASSES, "fuzzy")
    with pytest.raises(UserError, match="there are 5 lists of classes"):
        truth.from_descriptions(["robin"], CAPTIONS, CLASSES[:5])
    with pytest.raises(UserError, match=r"expected \[images, 3\]"):
        truth.from_concepts(["a"], ["a", "b", "c"], torch.zeros(4, 2, dtype=torch.bool))
    with pytest.raises(UserError, match="embed images and labels with one encoder"):
        truth.Similarity.of("x", torch.zeros(3, 4), ["a"], torch.zeros(1, 5))


@given(
    st.lists(
        st.lists(
            st.sampled_from(["robin", "duck", "drake", "cardigan", "Cardigan corgi", "crane"]), min_size=1, max_size=3
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_concept_of_a_whole_name_goes_before_a_synonym_of_it(concepts):
    """A "Cardigan, Cardigan Welsh corgi" is a dog: the label "cardigan" is the garment where that is a concept."""
    names = [", ".join(own) for own in concepts]
    labels = sorted({one for own in concepts for one in own})
    stated = truth.from_concepts(labels, names, torch.eye(len(names), dtype=torch.bool))
    for label in labels:
        whole = [i for i, name in enumerate(names) if name == label]
        among = [i for i, own in enumerate(concepts) if label in own]
        assert stated.column[label] == (whole or among)[0]


def test_cardigans_and_ducks():
    for names in (["Cardigan, Cardigan Welsh corgi", "cardigan"], ["drake, duck", "Ducks"]):
        label = names[1].lower()
        assert truth.from_concepts([label], names, torch.eye(2, dtype=torch.bool)).column == {label: 1}
