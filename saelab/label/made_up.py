"""A null for words: how near made-up words, which mean nothing, come to a set of images.

An encoder gives every string a vector, so a search for "blorvex" finds something too. Words that are spelt like words
and are none show what that is worth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.errors import UserError

NEAREST = 5  # images that a text is held against: those of a rare thing, but no single odd one
TEXTS = 400  # made-up texts: a chance of .05 is then known to .01
BY_CHANCE = 0.05  # a text that made-up ones come as near as this often means nothing here
LONGEST = 18  # letters of a made-up word
TRIES = 100  # draws that may end in a known word


@dataclass(frozen=True)
class MadeUp:
    """What made-up texts reach on a set of images, as the null for texts that somebody asks for."""

    image_emb: Float[Tensor, "images d_text"]  # rows of unit length
    reached: Float[Tensor, "texts"]  # `nearness` of each made-up text

    @classmethod
    def drawn(
        cls,
        embed: Callable[[Sequence[str]], Float[Tensor, "texts d_text"]],
        labels: Sequence[str],
        image_emb: Float[Tensor, "images d_text"],
        n: int = TEXTS,
        seed: int = 0,
    ) -> "MadeUp":
        """Make up `n` texts after `labels`, embed them as labels are, and hold them against the images."""
        return cls(image_emb, nearness(embed(made_up_texts(labels, n, seed)), image_emb))

    def chance(self, text_emb: Float[Tensor, "d_text"]) -> float:
        """The chance that a text which means nothing comes as near: (1 + made-up texts as near) / (1 + all of them).

        For a text drawn as the made-up ones are it is uniform on 1/(n + 1), ..., 1 (Phipson & Smyth, 2010: the text
        itself counts, so that no chance is 0). It is small for a text whose meaning some images show; large for
        nonsense, and for a thing that is not in the images.
        """
        own = nearness(text_emb[None], self.image_emb)
        return float((1 + (self.reached >= own).sum()) / (1 + len(self.reached)))


def nearness(
    text_emb: Float[Tensor, "texts d_text"], image_emb: Float[Tensor, "images d_text"]
) -> Float[Tensor, "texts"]:
    """Mean cosine of each text with the `NEAREST` images nearest to it; images are rows of unit length."""
    cosines = normalize(text_emb, dim=1) @ image_emb.T
    return cosines.topk(min(NEAREST, len(image_emb)), dim=1).values.mean(dim=1)


def made_up_texts(labels: Sequence[str], n: int = TEXTS, seed: int = 0) -> list[str]:
    """`n` texts that mean nothing, spelt like `labels`: each has as many words as a label drawn at random.

    Each letter is drawn after the one before it, as often as it follows it in the labels' words (Shannon 1948, section
    3: digram structure); no word of the labels is among them. Raises UserError for labels of too few words to make up
    others.
    """
    rng = np.random.default_rng(seed)
    split = [words for label in labels if (words := label.lower().split())]
    known = {word for words in split for word in words}
    after: dict[str, list[str]] = {}
    for words in split:
        for word in words:
            for one, two in zip(" " + word, word + " "):
                after.setdefault(one, []).append(two)
    if not split:
        raise UserError("labels", list(labels)[:3], "hold no words", "give a vocabulary")
    lengths = rng.choice([len(words) for words in split], n)
    return [" ".join(_word(after, known, rng) for _ in range(length)) for length in lengths]


def _word(after: dict[str, list[str]], known: set[str], rng: np.random.Generator) -> str:
    for _ in range(TRIES):
        word = " "
        while len(word) <= LONGEST and (letter := after[word[-1]][rng.integers(len(after[word[-1]]))]) != " ":
            word += letter
        if word[1:] not in known:
            return word[1:]
    raise UserError("labels", sorted(known)[:3], "are too few to make up other words from", "give a vocabulary")
