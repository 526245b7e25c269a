"""How well labels agree with their units: every number of label faithfulness, and what dealt-out labels reach.

Thresholds come from the `mine` split, every number from `test`. An undefined number is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab import metrics
from saelab.acts import Acts, Columns, blocks, pick, take_rows
from saelab.errors import UserError
from saelab.evaluate import similar
from saelab.metrics.faithfulness import typical_of
from saelab.metrics.items import Items, alike, of_blocks
from saelab.truth import Similarity, Truth

FAITHFULNESS = ("scs", "caption_r", "truth_r", "auprc", "f1", "iou", "auroc")
CHANCE = {name: f"{name}_chance" for name in ("scs", "caption_r", "truth_r")}  # what dealt-out labels reach, by metric
UNCONFIRMED = ("truth_images", "truth_r", "truth_r_chance", "auprc", "f1", "iou")  # 0 for a label known to be wrong
OF_TRUTH = ("truth_r", "auprc", "f1", "iou", "auroc")
FEWEST_IMAGES = 10  # test images that a judge knows, below which no number is computed


@dataclass(frozen=True)
class Splits:
    """Image ids of the two splits that an evaluation needs."""

    mine: np.ndarray  # [n] int64, where units were mined and labelled
    test: np.ndarray  # [n] int64, never seen by mining, proposers or SAEs

    def check(self) -> "Splits":
        """Itself. Raises UserError where the splits overlap or `test` is too small to say anything."""
        both = np.intersect1d(self.mine, self.test)
        if len(both):
            raise UserError("splits", f"image {both[0]}", f"{len(both)} images are in mine and test", "split anew")
        if len(self.test) < FEWEST_IMAGES:
            remedy = "give more images or a larger test share"
            raise UserError("splits", f"{len(self.test)} test images", f"at least {FEWEST_IMAGES} needed", remedy)
        return self


@dataclass(frozen=True)
class Judges:
    """Everything that labels are measured against."""

    judge: Similarity  # image-text encoder; another one than the labeller's where there is one
    captions: (
        Similarity | None
    )  # people's captions against labels in a sentence encoder: independent of any image encoder
    truth: Truth | None  # boolean truth of labels on images
    second: Similarity | None = None  # captions and labels in another sentence encoder, for comparisons


def faithfulness(
    mine: Acts, test: Acts, texts: Sequence[str | None], evidence: Judges, splits: Splits
) -> dict[str, Float[Tensor, "units"]]:
    """`FAITHFULNESS` of one label a unit, and `truth_images`; NaN where it is undefined.

    * `scs`: Pearson r of the activation with the judge's similarity of image and label, on test images.
    * `caption_r`: the same with the similarity of the image's caption and the label (captioned test images only).
    * `truth_r`, `auprc`, `f1`, `iou`, `auroc`: against boolean truth on described test images; F1 and IoU at the
      threshold with the best F1 on `mine` (NaN if the label holds on no described mine image). `truth_images`: test
      images on which the label is true; NaN for a label without truth. Where that is 0, or all, the five are NaN, and
      so they are where fewer than 10 test images are described.
      Where truth is complete (`Truth.complete`), a label that is no concept is true of no image: `truth_images`,
      `truth_r`, `auprc`, `f1` and `iou` are 0.

    * `scs_chance`, `caption_r_chance`, `truth_r_chance`: the mean of that correlation over the labels of all units
      (with truth, for the last): what the unit would reach on average if the same labels were dealt out anew.

    `mine`, `test`: activations on the splits' images. Raises UserError for a label without a vector.
    """
    test_ids = torch.as_tensor(splits.test)
    numbers = _simulated("scs", test, texts, evidence.judge, test_ids)
    if evidence.captions is not None:
        numbers |= _simulated("caption_r", test, texts, evidence.captions, test_ids)
    if evidence.truth is not None:
        numbers |= _against_truth(mine, test, texts, evidence.truth, torch.as_tensor(splits.mine), test_ids)
    names = (*FAITHFULNESS, *CHANCE.values(), "truth_images")
    return {name: numbers.get(name, _nothing(len(texts))) for name in names}


def _simulated(
    name: str, test: Acts, texts: Sequence[str | None], space: Similarity, ids: Int[Tensor, "images"]
) -> dict[str, Tensor]:
    """The correlation `name` with each unit's label in the given space, and what chance gives."""
    known = space.known[ids]
    images = space.images[ids[known]]
    missing = {text for text in texts if text is not None} - space.row.keys()
    if missing:
        raise UserError(
            "label", repr(min(missing)), f"has no vector in {space.name}", "embed every label that was given"
        )
    numbers = {name: _nothing(len(texts)), CHANCE[name]: _nothing(len(texts))}
    named = torch.tensor([u for u, text in enumerate(texts) if text is not None], dtype=torch.long)
    rows = torch.tensor([space.row[text] for text in texts if text is not None], dtype=torch.long)
    if len(named) == 0 or int(known.sum()) < FEWEST_IMAGES:
        return numbers
    distinct, label, times = rows.unique(return_inverse=True, return_counts=True)
    labels, acts = space.labels[distinct], known_rows(pick(test, named), known)
    numbers[name][named] = similar.correlate(acts, images, labels, label).double()
    typical = typical_of(similar.label_blocks(images, labels), times)
    numbers[CHANCE[name]][named] = metrics.chance_correlation(acts, typical).double()
    return numbers


def known_rows(acts: Acts, known: Bool[Tensor, "images"]) -> Acts:
    """The images that are known only."""
    return acts if bool(known.all()) else take_rows(acts, known.nonzero()[:, 0])


def _against_truth(
    mine: Acts, test: Acts, texts: Sequence[str | None], truth: Truth, mine_ids: Tensor, test_ids: Tensor
) -> dict[str, Tensor]:
    numbers = {name: _nothing(len(texts)) for name in (*OF_TRUTH, CHANCE["truth_r"], "truth_images")}
    have = [(u, truth.column[text]) for u, text in enumerate(texts) if text is not None and text in truth.column]
    named, columns = torch.tensor(have, dtype=torch.long).view(-1, 2).T
    seen_mine, seen_test = truth.known[mine_ids], truth.known[test_ids]
    on_mine, on_test = truth.member[mine_ids[seen_mine]], truth.member[test_ids[seen_test]]
    holds, holds_mine = on_test.sum(0), on_mine.sum(0)
    numbers["truth_images"][named] = holds[columns].double()
    if truth.complete:
        wrong = [u for u, text in enumerate(texts) if text is not None and text not in truth.column]
        for name in UNCONFIRMED:
            numbers[name][wrong] = 0.0
    usable = (holds[columns] > 0) & (holds[columns] < len(on_test))
    if len(on_test) < FEWEST_IMAGES or not bool(usable.any()):
        return numbers
    units, concepts = named[usable], columns[usable]
    distinct, label, times = concepts.unique(return_inverse=True, return_counts=True)
    typical = metrics.typical_column(on_test[:, distinct], times)
    seen = known_rows(pick(test, units), seen_test)
    numbers["truth_r"][units] = _truth_r(seen, on_test[:, distinct], label).double()
    numbers[CHANCE["truth_r"]][units] = metrics.chance_correlation(seen, typical).double()
    fitted, known = known_rows(pick(mine, units), seen_mine), holds_mine > 0
    for some in alike(seen):
        at, concept = units[some], concepts[some]
        items = Items.of(pick(seen, some), on_test, concept, holds)
        numbers["auprc"][at] = items.average_precision().float().double()
        numbers["auroc"][at] = items.area()
        threshold = best_thresholds(pick(fitted, some), on_mine, concept, holds_mine)
        both, either = items.agreement(threshold)
        numbers["f1"][at] = _where(known[concept], 2 * both / (both + either))
        numbers["iou"][at] = _where(known[concept], both / either)
    return numbers


def best_thresholds(
    mine: Acts,
    member: Bool[Tensor, "images concepts"],
    concept: Int[Tensor, "units"],
    holds: Int[Tensor, "concepts"] | None = None,
) -> Float[Tensor, "units"]:
    """`metrics.best_f1_threshold` of each unit against its concept. `holds`: on how many images each is true."""
    found = [(some, items.best_threshold()) for some, items in of_blocks(mine, member, concept, holds)]
    units, thresholds = (torch.cat(column) for column in zip(*found, strict=True))
    return thresholds[units.argsort()]


def _truth_r(
    acts: Acts, member: Bool[Tensor, "images concepts"], concept: Int[Tensor, "units"]
) -> Float[Tensor, "units"]:
    """Pearson r of each unit with its concept."""
    if isinstance(acts, Columns):
        spread = similar.spread_of(column.double() for column in member.split(max(1, (1 << 22) // len(member)), dim=1))
        return similar.correlate_entries(acts, member[acts.rows, concept[acts.unit_of_entry]].double(), spread, concept)
    parts = [
        metrics.simulation_correlation(part, member[:, concept[block]].float()) for block, part in blocks(acts, 1 << 22)
    ]
    return torch.cat(parts)


def _nothing(units: int) -> Float[Tensor, "units"]:
    return torch.full((units,), torch.nan, dtype=torch.float64)


def _where(valid: Tensor, numbers: Tensor) -> Tensor:
    return numbers.double().masked_fill(~valid, torch.nan)
