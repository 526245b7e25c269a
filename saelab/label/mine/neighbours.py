"""Contrasts of the same units again and again, while the pictures on the images change places."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, columns
from saelab.label.mine.candidates import Candidates, candidate_interval
from saelab.label.mine.cells import near_cells
from saelab.label.mine.contrast import ContrastRule
from saelab.label.mine.lookup import TABLE, Scores, best_of_all
from saelab.label.mine.rows import largest

AT_ONCE = 1 << 22  # cosines held together


class Neighbours:
    """The nearest other pictures of each picture and every unit's candidates: found once, for any number of deals.

    For rules whose candidates depend on activations alone, with reuse (`below_mean`, `below_quantile`, `zero`).
    """

    def __init__(
        self,
        acts: Acts,
        image_emb: Float[Tensor, "images d_text"],
        positive_ids: Int[Tensor, "units k"],
        rule: ContrastRule,
        groups: Int[Tensor, "images"] | None = None,
    ) -> None:
        acts = columns(acts)
        self.space, self.ids = image_emb.float(), positive_ids
        self.groups = torch.arange(len(image_emb), device=image_emb.device) if groups is None else groups
        self.candidates = Candidates(acts, candidate_interval(acts, rule.rule, rule.quantile), apart=positive_ids)
        scores, width = Scores(self.space, self.groups, None), min(TABLE, len(image_emb))
        pictures = torch.arange(len(image_emb), device=image_emb.device)
        if len(pictures) > rule.exact_below:
            values, near = near_cells(self.space, pictures, width, scores.strike, rule.seed)
            least = values.new_tensor(-torch.inf)
        else:
            tables = [largest(scores.rows(some), width) for some in pictures.split(max(1, AT_ONCE // len(pictures)))]
            values, near = (torch.cat(column) for column in zip(*tables, strict=True))
            # A picture as near as the last of the table may have been chosen over another: left to the exact search.
            least = values[:, -1:]
        self.near: Int[Tensor, "images near"] = near.clamp(min=0)
        self.usable: Bool[Tensor, "images near"] = values > least

    def contrasts(self, source: Int[Tensor, "images"]) -> Int[Tensor, "units k"]:
        """`contrast_images` where image i shows picture source[i]; of equally near pictures, any."""
        unit, place = (self.ids >= 0).nonzero(as_tuple=True)
        image = self.ids[unit, place]
        found = self._look_up(source, unit, image)
        left = (found < 0).nonzero()[:, 0]
        scores = Scores(self.space[source], self.groups[source], None)
        for some in left.split(max(1, AT_ONCE // len(source))):
            found[some] = best_of_all(scores.rows(image[some]), self.candidates.rows(unit[some]))
        contrasts = torch.full_like(self.ids, -1)
        contrasts[unit, place] = found
        return contrasts

    def _look_up(
        self, source: Int[Tensor, "images"], unit: Int[Tensor, "pairs"], image: Int[Tensor, "pairs"]
    ) -> Int[Tensor, "pairs"]:
        """The image of the nearest candidate picture, -1 where the table doesn't settle it."""
        images = len(source)
        everyone = torch.arange(images, device=source.device)
        shown = torch.full_like(source, images).scatter_reduce(0, source, everyone, "amin")
        times = torch.bincount(source, minlength=images)
        found, picture, left = torch.full_like(image, -1), source[image], torch.arange(len(image), device=source.device)
        for width in (4, 16, self.near.shape[1]):
            near, usable = self.near[picture[left], :width], self.usable[picture[left], :width]
            where = shown[near]
            allowed = self.candidates.of(unit[left, None].expand(where.shape), where.clamp(max=images - 1))
            hit = usable & (times[near] == 1) & allowed
            stop = hit | (usable & (times[near] > 1))  # which of the images that show it is a candidate?
            first = stop.int().argmax(dim=1, keepdim=True)
            settled = hit.gather(1, first)[:, 0]
            found[left[settled]] = where.gather(1, first)[settled, 0]
            left = left[~stop.any(dim=1)]
        return found
