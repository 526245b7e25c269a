"""A unit's positives and their contrasts, mined together: what every stage and every null distribution goes by."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts, columns
from saelab.arrays import takes_arrays
from saelab.label.mine.contrast import ContrastRule, choose_contrasts
from saelab.label.mine.top import positive_images


class Pairs(NamedTuple):
    """Positives and contrasts of every unit; no image is both for one unit."""

    positive_ids: Int[Tensor, "units k"]  # images that fire the unit, strongest first; -1 where there are none left
    positive_values: Float[Tensor, "units k"]  # their activations; 0 where there are none left, NaN for such units
    contrast_ids: Int[Tensor, "units k"]  # each positive's contrast; -1 where there is none
    similarity: Float[Tensor, "units k"]  # cosine of the two; NaN where either is missing


@takes_arrays
def mine_pairs(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    k: int,
    rule: ContrastRule | None = None,
    groups: Int[Tensor, "images"] | None = None,
    host_emb: Float[Tensor, "images d_in"] | None = None,
) -> Pairs:
    """Each unit's k strongest images among those that fire it, and a contrast for each that is none of them.

    A unit that fires on fewer than k images has fewer pairs: silent images are nobody's positives. Tensors and errors
    are those of `positive_images` and `contrast_images`.
    """
    acts = columns(acts)
    ids, values = positive_images(acts, k)
    return Pairs(ids, values, *choose_contrasts(acts, image_emb, ids, rule or ContrastRule(), groups, host_emb, True))
