"""How a stream mixes superblocks: by formula and by counting."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import ordered

from saelab.cache.decks import REACH, Decks, count_superblocks

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=15).map(lambda more: np.array([30 + own for own in more]))


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 3), st.integers(0, 2**40))
def test_each_token_of_an_epoch_is_dealt_to_one_deck_nearby(tokens, epoch, seed):
    decks, count = Decks(tokens, seed), len(tokens)
    got = {}
    for number in range(epoch * count, (epoch + 1) * count):
        dealt = decks.deal(number)
        assert np.array_equal(np.sort(np.concatenate(list(dealt.values()))), np.arange(tokens[number % count]))
        for deck, places in dealt.items():
            assert abs(deck - number) <= REACH and number in decks.drawn_from(deck)
            got.setdefault(deck, {})[number] = places
    assert sorted(got) == list(range(epoch * count, (epoch + 1) * count)), "none of another epoch"
    for deck, hand in got.items():
        assert list(hand) == list(decks.drawn_from(deck)) and sum(map(len, hand.values())) == decks.sizes[deck % count]
        for (number, places), (other, own) in zip(hand.items(), decks.hand(deck), strict=True):
            assert number == other and np.array_equal(places, own)


def test_a_deck_in_the_middle_has_a_fifth_of_each_of_five_superblocks_and_all_are_of_a_size():
    decks = Decks(np.full(9, 1000), 0)
    assert [len(places) for _, places in decks.hand(4)] == [200] * 5
    assert [len(places) for _, places in decks.hand(0)] == [400, 400, 200], "at an edge, of three"
    assert (decks.sizes == 1000).all()


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 20))
def test_what_is_held_at_once_is_what_comes_less_what_is_gone(tokens, seed):
    decks, count = Decks(tokens, seed), len(tokens)
    held, most = 0, 0
    came = itertools.count()
    for deck in range(3 * count):
        if count == 1:
            most = int(tokens.sum())
            break
        for number in came:  # those that the deck needs, and the one that is made meanwhile
            held += tokens[number % count]
            if number == deck + REACH + 1:
                break
        most = max(most, held)
        held -= decks.sizes[deck % count]
    assert decks.most_held == most


@pytest.mark.parametrize(("images", "pictures"), [(348, 44), (1_281_167, 4096), (100_000, 511), (21, 10)])
def test_twice_the_pictures_are_held(images, pictures):
    count = count_superblocks(images, pictures)
    each = np.diff(np.arange(count + 1) * images // count)
    assert each.max() <= pictures // 2
    assert Decks(each * 49, 0).most_held <= 2 * pictures * 49 + 2 * REACH  # shares are rounded to tokens


def test_where_twice_the_pictures_are_all_one_superblock_holds_them():
    assert count_superblocks(20, 10) == 1 and count_superblocks(21, 10) == 5
    assert Decks(np.array([980]), 0).most_held == 980


@pytest.mark.parametrize(("pictures", "most"), [(400, 100), (400, 200), (60, 10)])
def test_pairs_of_one_picture_are_as_many_as_counted(pictures, most):
    """Over all batches of an epoch; those of a deck in the middle mix 2.5 M pictures where one superblock mixes M."""
    tokens, batch = 49, 245
    made = ordered(pictures, tokens, most, batch, 0)
    shares = []
    for step in range(20 * made.steps_per_epoch):
        found = np.unique(made.rows_of(step) // tokens, return_counts=True)[1]
        shares.append((found * (found - 1)).sum() / (batch * (batch - 1)))
    error = np.std(shares) / np.sqrt(len(shares))
    assert made.same_picture_pairs == pytest.approx(np.mean(shares), abs=4 * error)
    assert error < 0.02 * made.same_picture_pairs
    if pictures > 2 * most:
        alone = (tokens - 1) / (most * tokens - 1)  # of a batch from one superblock of `most`, as large in memory
        middle = made.blocks.count // 2
        inside = [shares[step] for step in made.steps_of(middle)]
        assert np.mean(inside) == pytest.approx(alone / 2.5, rel=0.15)
    else:
        assert made.same_picture_pairs == (tokens - 1) / (pictures * tokens - 1), "a full shuffle"
