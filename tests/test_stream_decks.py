"""How a stream mixes superblocks: by formula and by counting."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import ordered

from saelab.cache.decks import REACH, Decks, count_superblocks

pictures = st.lists(st.integers(1, 5), min_size=1, max_size=40).map(np.array)


@settings(max_examples=60, deadline=None)
@given(pictures, st.integers(1, 40), st.integers(0, 3), st.integers(0, 2**40))
def test_each_token_of_an_epoch_is_dealt_to_one_deck_nearby(pictures, tokens, epoch, seed):
    decks, count = Decks(pictures, tokens, seed), len(pictures)
    got = {}
    for number in range(epoch * count, (epoch + 1) * count):
        dealt = decks.deal(number)
        assert np.array_equal(
            np.sort(np.concatenate(list(dealt.values()))), np.arange(pictures[number % count] * tokens)
        )
        for deck, places in dealt.items():
            assert abs(deck - number) <= REACH and number in decks.drawn_from(deck)
            got.setdefault(deck, {})[number] = places
    assert set(got) <= set(range(epoch * count, (epoch + 1) * count)), "none of another epoch"
    for deck, hand in got.items():
        assert list(hand) == list(decks.drawn_from(deck)) and sum(map(len, hand.values())) == decks.sizes[deck % count]
        for (number, places), (other, own) in zip(hand.items(), decks.hand(deck), strict=True):
            assert number == other and np.array_equal(places, own)


def test_a_deck_has_a_thirteenth_of_each_picture_of_thirteen_superblocks():
    decks = Decks(np.full(30, 13), 39, 0)
    hand = list(decks.hand(15))
    assert [number for number, _ in hand] == list(range(9, 22))
    for _, places in hand:
        assert (np.unique(places // 39, return_counts=True)[1] == 3).all() and len(places) == 39
    assert [len(places) // 39 for _, places in decks.hand(0)] == [2, 2, 2, 2, 2, 2, 1], "at an edge, of seven"
    assert (decks.sizes == 13 * 39).all()
    other = dict(Decks(np.full(30, 13), 39, 0).hand(15)), dict(Decks(np.full(30, 13), 39, 1).hand(15))
    assert all(np.array_equal(places, other[0][number]) for number, places in hand)
    assert not any(np.array_equal(places, other[1][number]) for number, places in hand)


@settings(max_examples=60, deadline=None)
@given(pictures, st.integers(1, 40))
def test_what_is_held_at_once_is_what_comes_less_what_is_gone(pictures, tokens):
    decks, count = Decks(pictures, tokens, 0), len(pictures)
    held, most = 0, 0
    came = itertools.count()
    for deck in range(3 * count):
        if count == 1:
            most = int(pictures.sum()) * tokens
            break
        for number in came:  # those that the deck needs, and the one that is made meanwhile
            held += pictures[number % count] * tokens
            if number == deck + REACH + 1:
                break
        most = max(most, held)
        held -= decks.sizes[deck % count]
    assert decks.most_held == most


@pytest.mark.parametrize(("images", "pictures"), [(348, 44), (1_281_167, 4096), (100_000, 511), (9, 4)])
def test_twice_the_pictures_are_held(images, pictures):
    count = count_superblocks(images, pictures)
    each = np.diff(np.arange(count + 1) * images // count)
    assert each.max() <= pictures // 4 and count > REACH
    assert Decks(each, 49, 0).most_held <= 2 * pictures * 49 + 4 * REACH  # shares are rounded to tokens


def test_where_twice_the_pictures_are_all_one_superblock_holds_them():
    assert count_superblocks(20, 10) == 1 and count_superblocks(21, 10) == 11
    assert Decks(np.array([20]), 49, 0).most_held == 980


@pytest.mark.parametrize(
    ("pictures", "most", "tokens", "batch"),
    [(131, 40, 49, 256), (60, 10, 49, 98), (60, 10, 49, 300), (301, 60, 5, 200), (90, 50, 49, 256), (31, 4, 30, 200)],
)
def test_pairs_of_one_picture_are_as_many_as_counted(pictures, most, tokens, batch):
    made = ordered(pictures, tokens, most, batch, 0)
    epochs = []
    for epoch in range(20):
        shares = []
        for step in range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch):
            found = np.unique(made.rows_of(step) // tokens, return_counts=True)[1]
            shares.append((found * (found - 1)).sum() / (batch * (batch - 1)))
        epochs.append(np.mean(shares))
    error = np.std(epochs, ddof=1) / np.sqrt(len(epochs))
    assert error < 0.03 * made.same_picture_pairs
    assert made.same_picture_pairs == pytest.approx(np.mean(epochs), abs=4 * error)


def test_a_large_set_has_pairs_of_one_picture_as_of_three_times_the_pictures():
    """By the formula of docs/scale.md, where edges matter little; and exactly, where one superblock holds all."""
    made = ordered(40_000, 257, 1000, 512, 0)
    assert made.same_picture_pairs == pytest.approx((257 - 13) / (3.25 * 1000 * 257), rel=0.06)
    assert ordered(90, 49, 50, 256, 0).same_picture_pairs == pytest.approx(48 / (90 * 49 - 1), rel=1e-12)
