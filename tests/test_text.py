"""Text from outside: what looks alike is one label, what can't be seen is gone, and any file is read or refused."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import truth
from saelab.errors import UserError
from saelab.label import label_files, vocabulary
from saelab.text import fold, is_unspaced, visible, words

CALM = settings(max_examples=60)
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202e\u2066"
LABELS = ["owl", "fox, red", "café", "斑马线", "traffic light"]


@CALM
@given(st.text(max_size=40))
def test_any_text_takes_one_visible_form(text):
    shown = visible(text)
    assert visible(shown) == shown == unicodedata.normalize("NFC", shown)
    assert not any(unicodedata.category(c) in ("Cs", "Cc") and c not in "\t\n\r" for c in shown)
    shown.encode()


@CALM
@given(st.sampled_from(["café", "crème brûlée", "naïve owl", "Ångström", "bicycle wheel"]), st.data())
def test_spellings_that_look_alike_are_one_label(label, data):
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    text = unicodedata.normalize(form, label)
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + data.draw(st.sampled_from(INVISIBLE)) + text[place:]
    assert vocabulary.key(text) == vocabulary.key(label)
    assert vocabulary.pool([(label, ("a",)), (text, ("b",))]).labels == (vocabulary.clean(label),)
    stated = truth.from_descriptions([label], [None, f"A {text}."], [[text], []])
    assert stated.member[:, stated.column[label]].tolist() == [True, True]


def test_width_and_dashes_do_not_tell_labels_apart_but_joiners_that_shape_letters_stay():
    assert vocabulary.key("ＣＡＴ") == vocabulary.key("cat") and vocabulary.key("T‑shirt") == vocabulary.key("t shirt")
    persian = "می\u200cخواهم"
    assert vocabulary.clean(persian) == persian and vocabulary.key(persian) == vocabulary.key("میخواهم")
    assert fold("Straße") == fold("STRASSE")


@pytest.mark.parametrize("pair", ["glass glasses", "short shorts", "good goods", "scale scales", "new news"])
def test_a_plural_that_means_something_else_stays_apart(pair):
    assert len(vocabulary.pool([(word, ("a",)) for word in pair.split()])) == 2
    assert vocabulary.key("wine glass") != vocabulary.key("wine glasses")


@pytest.mark.parametrize("pair", ["dog dogs", "dress dresses", "box boxes", "berry berries", "class classes"])
def test_other_plurals_are_one_label(pair):
    assert len(vocabulary.pool([(word, ("a",)) for word in pair.split()])) == 1


@pytest.mark.parametrize(
    ("label", "images"),
    [("猫", [0]), ("桌子", [0, 1]), ("黑白相间的斑马线", [2]), ("狗", []), ("cat", [1]), ("แมว", [3])],
)
def test_captions_without_spaces_mention_labels(label, images):
    captions = ["一只猫在桌子上", "a cat 在桌子上", "照片里有黑白相间的斑马线。", "มีแมวบนโต๊ะ"]
    stated = truth.from_descriptions([label], captions, [()] * 4)
    found = stated.member[:, stated.column[label]].nonzero().flatten().tolist() if label in stated.column else []
    assert found == images
    assert all(name == label for name in stated.names)  # written without spaces
    exact = truth.from_descriptions([label], captions, [()] * 4, "exact")
    assert label not in exact.column


def test_a_character_is_no_head_and_combining_marks_stay_with_their_letter():
    stated = truth.from_descriptions(["斑马"], ["马"], [()], "head")
    assert "斑马" not in stated.column
    assert words("हिन्दी cat") == ["हिन्दी", "cat"]
    assert is_unspaced("猫") and not is_unspaced("cat")


def files() -> dict[str, str]:
    quoted = [f'"{label}"' for label in LABELS]
    rows = [{"id": i, "concept": label} for i, label in enumerate(LABELS)]
    return {
        "a.txt": "\n".join(LABELS),
        "bom.txt": "\ufeff" + "\r\n".join(LABELS),
        "plain.csv": "\n".join(quoted),
        "id.csv": "id,label\n" + "\n".join(f"{i},{q}" for i, q in enumerate(quoted)),
        "concept.csv": "concept,note\n" + "\n".join(f"{q},12" for q in quoted),
        "upper.csv": "ID,Class_Name\n" + "\n".join(f"{i},{q}" for i, q in enumerate(quoted)),
        "semicolon.csv": "id;label\n" + "\n".join(f"{i};{label}" for i, label in enumerate(LABELS)),
        "none.csv": "\n".join(f"{i},{q}" for i, q in enumerate(quoted)),
        "t.tsv": "id\tname\n" + "\n".join(f"{i}\t{label}" for i, label in enumerate(LABELS)),
        "wnid.txt": "\n".join(f"n{i:08d}\t{label}" for i, label in enumerate(LABELS)),
        "list.json": json.dumps(LABELS),
        "under.json": json.dumps({"version": 3, "labels": LABELS}),
        "rows.json": json.dumps(rows),
        "index.json": json.dumps({str(i): [f"n{i:08d}", label] for i, label in enumerate(LABELS)}),
        "map.json": json.dumps({str(i): label for i, label in enumerate(LABELS)}),
        "rows.jsonl": "\n".join(map(json.dumps, rows)),
    }


@pytest.mark.parametrize("name", files())
def test_the_column_of_labels_is_found(tmp_path, name):
    (tmp_path / name).write_text(files()[name], encoding="utf-8", newline="")
    assert vocabulary.build([f"file:{tmp_path / name}"]).labels == tuple(LABELS)


def test_utf16_is_read_where_it_says_so(tmp_path):
    (tmp_path / "a.tsv").write_bytes(files()["t.tsv"].encode("utf-16"))
    assert label_files.read(tmp_path / "a.tsv") == LABELS


def test_a_column_in_doubt_is_asked_for_and_can_be_named(tmp_path):
    file = tmp_path / "two.csv"
    file.write_text("animal,colour\nowl,brown\nfox,red\n")
    with pytest.raises(UserError, match=r"which of its columns.*file:PATH#COLUMN"):
        label_files.read(file)
    assert label_files.read(f"{file}#colour") == ["brown", "red"]
    assert label_files.read(f"{file}#2") == ["colour", "brown", "red"]
    with pytest.raises(UserError, match="no such column"):
        label_files.read(f"{file}#size")
    odd = tmp_path / "a#b.txt"
    odd.write_text("owl")
    assert label_files.read(odd) == ["owl"]


@CALM
@given(data=st.binary(max_size=300), kind=st.sampled_from(["txt", "csv", "tsv", "json", "jsonl"]))
def test_any_bytes_are_labels_or_one_line(tmp_path_factory, data, kind):
    file = tmp_path_factory.getbasetemp() / f"any.{kind}"
    file.write_bytes(data)
    try:
        found = label_files.read(file)
    except UserError as error:
        assert "\n" not in str(error) or b"\n" in data
    else:
        assert found and all(isinstance(label, str) and label.strip() for label in found)


@CALM
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    )
)
def test_any_json_is_labels_or_one_line(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(value))
    try:
        assert all(isinstance(label, str) for label in label_files.read(file))
    except UserError as error:
        assert str(error).startswith("vocabulary=file:")


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 5000 + "]", '{"labels": [1, 2]}', "3"])
def test_json_that_is_no_list_of_labels_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="vocabulary=file:"):
        label_files.read(tmp_path / "a.json")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.txt")
    for place in (tmp_path / "pipe.txt", "/dev/zero", "a\0b", tmp_path):
        with pytest.raises(UserError, match=r"can't be read|no such file"):
            label_files.read(place)


@CALM
@given(st.text(), st.text(), st.text(), st.text(alphabet="\n\r\x0b\x1c\x85\u2028a", max_size=9))
def test_an_error_is_one_line_whatever_names_and_values_hold(setting, value, expected, remedy):
    error = UserError(setting, value, expected, remedy)
    assert len(str(error).splitlines()) <= 1 and error.value == value
