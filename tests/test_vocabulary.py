"""Vocabularies: one label for all its spellings, every source kept, clear words for a bad file."""

import dataclasses

import pytest
from small_images import coloured

from saelab.errors import UserError
from saelab.label import vocabulary
from saelab.names import imagenet21k_names, imagenet_definitions, imagenet_names, imagenet_synsets


def test_spellings_of_one_label_share_a_key_and_different_labels_do_not():
    same = [("bicycle_wheel", "Bicycle wheels"), ("a berry", "berries"), ("fox", "foxes"), ("T-shirt", "t shirt")]
    for a, b in same:
        assert vocabulary.key(a) == vocabulary.key(b), (a, b)
    different = [("glass", "glas"), ("bus", "bu"), ("iris", "iri"), ("dog", "cat"), ("the end", "end game")]
    for a, b in different:
        assert vocabulary.key(a) != vocabulary.key(b), (a, b)


MEET = """
bus/buses lens/lenses tie/ties cookie/cookies mustache/mustaches potato/potatoes house/houses
horse/horses shoe/shoes gas/gases iris/irises cactus/cactuses blouse/blouses fuse/fuses toe/toes
hero/heroes box/boxes mattress/mattresses beach/beaches coach/coaches headache/headaches city/cities
berry/berries movie/movies pie/pies octopus/octopuses volcano/volcanoes photo/photos zoo/zoos
cache/caches necktie/neckties vase/vases rose/roses cause/causes canoe/canoes spinach/spinaches
hoopoe/hoopoes caddy/caddies mosquito/mosquitoes niche/niches canvas/canvases zombie/zombies
party/parties virus/viruses use/uses ache/aches
"""


@pytest.mark.parametrize(("one", "many"), [pair.split("/") for pair in MEET.split()])
def test_a_word_and_its_plural_meet(one, many):
    assert vocabulary.key(one) == vocabulary.key(many) == vocabulary.key(f"the {many.upper()}") == one
    assert vocabulary.key(f"red {one}") == vocabulary.key(f"red_{many}") == f"red {one}"


def test_no_two_names_of_imagenet_meet_that_are_no_spellings_of_one():
    for names, distinct in ((imagenet_names(), 998), (imagenet21k_names(), 20038)):
        assert len({vocabulary.key(name) for name in names}) == distinct


def test_pooling_keeps_the_first_spelling_and_all_sources():
    base = vocabulary.pool([("bicycle_wheel", ("file",)), ("fox", ("file",)), ("  ", ("file",))])
    joined = base.plus(["Foxes", "owl."], "tagger")
    assert joined.labels == ("bicycle wheel", "fox", "owl")
    assert joined.sources == (("file",), ("file", "tagger"), ("tagger",))
    assert vocabulary.pool([("bicycle_wheel", ("f",))], keep_underscores=True).labels == ("bicycle_wheel",)


def test_files_are_read_and_bad_ones_are_told_apart(tmp_path):
    good = tmp_path / "labels.csv"
    good.write_bytes('\ufefflabel,note\nowl,a\n"fox, red",b\nOwl,c\n'.encode())
    assert vocabulary.build([f"file:{good}"]).labels == ("owl", "fox, red")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café\n".encode("latin-1"))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    marks = tmp_path / "marks.txt"
    marks.write_text('...\n""\n')
    for source, word in [
        (f"file:{latin}", "UTF-8"),
        (f"file:{empty}", "no label"),
        (f"file:{marks}", "none of these sources holds a label"),
        ("file:nowhere.txt", "no such"),
        (f"file:{tmp_path}", "can't be read"),
        ("wikipedia", "unknown"),
    ]:
        with pytest.raises(UserError, match=word):
            vocabulary.build([source])

    with pytest.raises(UserError, match="keep_underscores=perhaps: expected true or false"):
        vocabulary.build([f"file:{good}"], keep_underscores="perhaps")


def test_pictures_without_classes_add_no_label_and_only_those_of_mine_do(tmp_path):
    flat = dataclasses.replace(coloured(tmp_path / "flat", 20), classes=((),) * 20, captions=(None,) * 20)
    assert vocabulary.build(["imagenet1k", "classes"], flat).labels == vocabulary.build(["imagenet1k"]).labels
    with pytest.raises(UserError, match="none of these sources holds a label"):
        vocabulary.build(["classes", "captions"], flat)
    classes = tuple((f"thing {i}",) for i in range(20))
    named = dataclasses.replace(flat, classes=classes)
    assert set(vocabulary.build(["classes"], named).labels) == {f"thing {i}" for i in named.ids("mine")}


def test_imagenet_names_stand_in_the_order_of_the_logits():
    assert (len(imagenet_names()), len(imagenet_synsets()), len(imagenet_definitions())) == (1000, 1000, 1000)
    assert imagenet_names()[1] == "goldfish" and imagenet_synsets()[1] == "n01443537"
    assert "fish" in imagenet_definitions()[1] or "carp" in imagenet_definitions()[1]
    assert imagenet_names()[999] == "toilet paper"
    assert len(imagenet21k_names()) > 21_000


def test_wordnet_is_read_where_it_lies_and_fetched_where_it_does_not(tmp_path, monkeypatch):
    lines = ["  1 This is the licence.", "bicycle_wheel n 1 2 @ ~ 1 0 02835829", "owl n 1 3 @ ~ #m 1 1 01621127", ""]
    (tmp_path / "index.noun").write_text("\n".join(lines))
    assert vocabulary.wordnet_nouns(tmp_path) == ["bicycle_wheel", "owl"]
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    try:
        nouns = vocabulary.wordnet_nouns(tmp_path / "nowhere")
    except UserError as error:
        assert "imagenet21k" in str(error)  # no apt here: the remedy is named
    else:
        assert len(nouns) > 117_000 and {"owl", "bicycle_wheel"} <= set(nouns) and not any(" " in n for n in nouns)
