"""NetDissect (Bau et al., CVPR 2017): overlap of a unit's strongest places with pixel-labelled concepts."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.scorers.scorer import Citation, Scorer, of_all


def top_threshold(maps: Float[Tensor, "images units height width"], share: float = 0.005) -> Float[Tensor, "units"]:
    """Each unit's activation that the share `share` of all its places in all images exceeds (at most).

    The smallest stored activation such that at most that share of places is above it.
    """
    if not 0 < share < 1:
        raise UserError("share", share, "expected a share between 0 and 1")
    places = maps.transpose(0, 1).flatten(1)
    above = int(share * places.shape[1])
    return places.topk(above + 1, dim=1).values[:, -1]


@takes_arrays
def netdissect(
    maps: Float[Tensor, "images units height width"],
    masks: Bool[Tensor, "images labels Height Width"],
    share: float = 0.005,
) -> Float[Tensor, "units labels"]:
    """IoU over all images of (upsampled map > unit's threshold) with each label's pixels; 0 to 1.

    The threshold is exceeded by the top `share` of the unit's activations (0.005 in the paper); maps are upsampled
    bilinearly to the masks' size. NaN for labels without a pixel and for units that are not finite.
    """
    return netdissect_stream(
        ((maps[i : i + 1], masks[i : i + 1]) for i in range(len(maps))), top_threshold(maps, share)
    )


def netdissect_stream(
    pairs: Iterable[tuple[Float[Tensor, "some units height width"], Bool[Tensor, "some labels Height Width"]]],
    threshold: Float[Tensor, "units"],
) -> Float[Tensor, "units labels"]:
    """`netdissect` for maps and masks that come a few images at a time, given the units' thresholds."""
    sums: list[Tensor] = []
    for maps, masks in pairs:
        if len(maps) != len(masks) or maps.shape[1] != len(threshold):
            raise UserError("maps", tuple(maps.shape), f"expected {len(masks)} images and {len(threshold)} units")
        up = interpolate(maps.float(), size=masks.shape[2:], mode="bilinear", align_corners=False)
        on = (up > threshold[:, None, None]).transpose(0, 1).flatten(1).float()
        inside = masks.transpose(0, 1).flatten(1).float()
        found = [(on @ inside.T).double(), on.sum(dim=1).double(), inside.sum(dim=1).double()]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    if not sums:
        raise UserError("maps", "none", "expected at least one image with maps and masks")
    both, called, true = sums
    iou = both / (called[:, None] + true - both)
    lost = (true == 0)[None, :] | ~threshold.isfinite()[:, None]
    return iou.masked_fill(lost, torch.nan).float()


BAU = Citation(
    "Bau et al., CVPR 2017",
    """@inproceedings{bau2017dissection,
  title = {Network Dissection: Quantifying Interpretability of Deep Visual Representations},
  author = {Bau, David and Zhou, Bolei and Khosla, Aditya and Oliva, Aude and Torralba, Antonio},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2017}
}""",
)
SCORERS = (
    Scorer(
        "netdissect",
        "maps",
        "NetDissect",
        "Overlap (IoU) of where the unit fires strongest with where people marked the concept.",
        of_all(lambda e: netdissect(e.need("maps"), e.need("masks").bool())),
        None,
        BAU,
    ),
)
