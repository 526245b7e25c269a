"""A contrast for each positive: the image most like it that does not drive the unit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from saelab.acts import Acts, Columns, blocks, columns, shape
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.mine.rows import finite_rows, largest
from saelab.label.mine.status import column_means

RULES = ("below_mean", "below_quantile", "zero", "random", "host")
TABLE = 64  # neighbours looked up before an exact search over all images
FAR = torch.finfo(torch.float32).max  # what is subtracted from the score of an image that is no candidate
MASK_ELEMENTS = 1 << 30  # a bool for each image and unit: units beyond this many go in a second pass


@dataclass(frozen=True)
class ContrastRule:
    """How contrasts are chosen: the settings of `contrast_images`, to be kept beside what they gave."""

    rule: str = "below_mean"  # which images may be contrasts: below_mean, below_quantile, zero, random or host
    reuse: bool = True  # one image may be the contrast of several positives of a unit
    quantile: float = 0.5  # for below_quantile: candidates are at or below this quantile of the unit's activations
    host_similarity: float = 0.3  # for host: least cosine of a pair in the host's space
    host_limit: int = 10  # for host: pairs kept per unit
    seed: int = 0  # for random


@dataclass(frozen=True)
class Interval:
    """Which activations make an image a candidate: low <= activation <= high, for each unit (empty: low > high)."""

    low: Float[Tensor, "units"]
    high: Float[Tensor, "units"]


@takes_arrays
def contrast_images(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    positive_ids: Int[Tensor, "units k"],
    rule: str = "below_mean",
    reuse: bool = True,
    groups: Int[Tensor, "images"] | None = None,
    *,
    quantile: float = 0.5,
    host_emb: Float[Tensor, "images d_in"] | None = None,
    host_similarity: float = 0.3,
    host_limit: int = 10,
    seed: int = 0,
) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
    """For each positive, the candidate image with the largest cosine to it; ties go to the lower image id.

    Candidates of a unit, by `rule`:
    `below_mean`      activation strictly below the unit's mean over all images (CSP, arXiv 2604.22477);
    `below_quantile`  at or below the unit's `quantile`, and below its maximum;
    `zero`            exactly zero;
    `random`          a random one of those below the mean, drawn with `seed` (the uncontrolled contrast);
    `host`            below the mean and nearest in the host's own space, `host_emb` (rows need not have unit length),
                      with a cosine of at least `host_similarity` there; of a unit's pairs the `host_limit` closest
                      are kept (FALCON, ICML 2023).
    An image is never the contrast of itself or of one of its near-duplicates (equal number in `groups`). With
    `reuse=False` no image serves two positives of a unit: positives choose in the order given (strongest first).

    `acts`, `image_emb` (rows of unit length) and `groups` must hold the same images, those that may be mined: leave
    other splits out before. Positive ids of -1 get no contrast. Returns ids [units, k], -1 where there is no
    candidate, and similarity [units, k] = <positive, contrast> in `image_emb`, NaN where there is none.
    Eleven parameters: the tensors, and the settings of a ContrastRule by name, so that arrays are all a caller needs.
    Raises UserError for an unknown rule, sizes that do not fit and embeddings that are not finite.
    """
    settings = ContrastRule(rule, reuse, quantile, host_similarity, host_limit, seed)
    return choose_contrasts(acts, image_emb, positive_ids, settings, groups, host_emb)


def choose_contrasts(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    positive_ids: Int[Tensor, "units k"],
    rule: ContrastRule,
    groups: Int[Tensor, "images"] | None = None,
    host_emb: Float[Tensor, "images d_in"] | None = None,
    apart: bool = False,
) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
    """`contrast_images` by a ContrastRule. With `apart`, none of a unit's positives is ever its contrast.

    (A unit that fires very unevenly has positives below its own mean, which are candidates otherwise.)
    """
    acts = columns(acts)
    _check(acts, image_emb, positive_ids, rule.rule, groups, host_emb)
    space = image_emb.float()
    if rule.rule == "host" and host_emb is not None:
        space = normalize(host_emb.float(), dim=1)
    interval = candidate_interval(acts, rule.rule, rule.quantile)
    generator = torch.Generator(image_emb.device).manual_seed(rule.seed) if rule.rule == "random" else None
    scores = Scores(space, groups, generator)
    search = _search_shared if rule.reuse and rule.rule != "random" else _search_each
    ids = torch.full_like(positive_ids, -1)
    step = max(1, MASK_ELEMENTS // max(shape(acts)[0], 1))
    for first in range(0, len(ids), step):
        part = slice(first, first + step)
        mask = candidate_mask(acts, interval, part)
        if apart:
            leave_out(mask, positive_ids[part])
        ids[part] = search(scores, mask, positive_ids[part], rule.reuse)
    if rule.rule == "host":
        ids = _closest(space, positive_ids, ids, rule.host_similarity, rule.host_limit)
    return ids, pair_similarity(image_emb, positive_ids, ids)


def candidate_interval(acts: Acts, rule: str, quantile: float = 0.5) -> Interval:
    """The activations that make an image a candidate under `rule` (see `contrast_images`), exact in acts' own dtype."""
    acts = columns(acts)
    dtype = acts.values.dtype if isinstance(acts, Columns) else acts.dtype
    means = column_means(acts)
    if rule == "zero":
        zero = torch.zeros_like(means, dtype=dtype)
        return Interval(zero, torch.where(means.isfinite(), zero, torch.nan))
    if rule == "below_quantile":
        parts = [torch.minimum(_quantile(block, quantile), _next_below(block.amax(dim=0))) for _, block in blocks(acts)]
        high = torch.cat(parts)
    else:
        high = means.to(dtype)
        high = torch.where(high.double() < means, high, _next_below(high))  # the largest number below the mean
    return Interval(torch.full_like(high, -torch.inf), torch.where(means.isfinite(), high, torch.nan))


def candidate_mask(acts: Acts, interval: Interval, units: slice) -> Bool[Tensor, "some images"]:
    """For some units, which images are candidates."""
    acts = columns(acts)
    low, high = interval.low[units], interval.high[units]
    if isinstance(acts, Columns):
        first, last, _ = units.indices(acts.units)
        part = acts.part(first, last)
        owner = part.unit_of_entry
        mask = ((low <= 0) & (high >= 0))[:, None].repeat(1, acts.images)
        mask.view(-1)[owner * acts.images + part.rows] = (part.values >= low[owner]) & (part.values <= high[owner])
        return mask
    chosen = acts[:, units]
    mask = torch.empty(chosen.shape[1], chosen.shape[0], dtype=torch.bool, device=chosen.device)
    # Some images at a time: what is compared lies together, and is still in the cache when it is turned.
    for images, _ in _chunks(len(chosen), max(256, (1 << 18) // max(chosen.shape[1], 1))):
        mask[:, images] = ((chosen[images] >= low) & (chosen[images] <= high)).T
    return mask


def leave_out(mask: Bool[Tensor, "some images"], ids: Int[Tensor, "some k"]) -> None:
    """Strike these images (-1: none) from the candidates of their unit."""
    unit, place = (ids >= 0).nonzero(as_tuple=True)
    mask[unit, ids[unit, place]] = False


def pair_similarity(
    image_emb: Float[Tensor, "images d_text"], positive_ids: Int[Tensor, "units k"], ids: Int[Tensor, "units k"]
) -> Float[Tensor, "units k"]:
    """Cosine of each positive and its contrast (rows of unit length); NaN where either is -1."""
    out = torch.empty(ids.shape, device=image_emb.device)
    for rows, _ in _chunks(len(ids), max(1, (1 << 22) // max(ids.shape[1] * image_emb.shape[1], 1))):
        out[rows] = (image_emb[positive_ids[rows]].float() * image_emb[ids[rows]].float()).sum(dim=2)
    return out.masked_fill_((ids < 0) | (positive_ids < 0), torch.nan)


class Scores:
    """Rows of what is maximised: cosines to all images (or random numbers), -inf at the image's own group."""

    def __init__(self, space: Tensor, groups: Tensor | None, generator: torch.Generator | None) -> None:
        self.space, self.groups, self.generator = space, groups, generator
        if groups is not None:
            _, code, sizes = groups.unique(return_inverse=True, return_counts=True)
            self.groups, self.shares = code, sizes[code] > 1

    def rows(self, ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows images"]:
        if self.generator is None:
            out = self.space[ids] @ self.space.T
        else:
            out = torch.rand(len(ids), len(self.space), generator=self.generator, device=self.space.device)
        out[torch.arange(len(ids), device=out.device), ids] = -torch.inf
        if self.groups is not None:
            some = self.shares[ids].nonzero()[:, 0]
            if len(some):
                out[some] = out[some].masked_fill_(self.groups[ids[some], None] == self.groups, -torch.inf)
        return out


def _search_shared(scores: Scores, mask: Tensor, positives: Tensor, reuse: bool) -> Tensor:
    """Contrasts with reuse: a positive that several units share needs its cosines, and its neighbour table, once."""
    found = torch.full((positives.numel(),), -1, dtype=torch.long, device=mask.device)
    flat, order = positives.flatten().sort(stable=True)
    order, flat = order[flat >= 0], flat[flat >= 0]
    unit = order // positives.shape[1]
    image, row, counts = flat.unique_consecutive(return_inverse=True, return_counts=True)
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).tolist()
    for rows, (first, last) in _chunks(len(image), max(1, (1 << 23) // mask.shape[1])):
        table = scores.rows(image[rows])
        pairs = slice(ends[first], ends[last])
        found[order[pairs]] = _resolve(table, mask, row[pairs] - first, unit[pairs])
    return found.view(positives.shape)


def _resolve(table: Float[Tensor, "rows images"], mask: Tensor, row: Tensor, unit: Tensor) -> Int[Tensor, "pairs"]:
    """The best candidate of each (row, unit) pair: from the row's nearest neighbours, else from all images."""
    found = torch.full_like(row, -1)
    left = torch.arange(len(row), device=row.device)
    if table.shape[1] > TABLE:
        values, near = largest(table, TABLE)
        # A neighbour equal to the table's last may have been chosen over one of lower id: left to the exact search.
        usable = values > values[:, -1:]
        for width in (4, 16, TABLE):
            hit = mask[unit[left, None], near[row[left], :width]] & usable[row[left], :width]
            first = hit.int().argmax(dim=1)
            hits = hit.any(dim=1)
            found[left[hits]] = near[row[left[hits]], first[hits]]
            left = left[~hits]
    for part, _ in _chunks(len(left), max(1, (1 << 18) // table.shape[1])):
        pairs = left[part]
        out = (~mask[unit[pairs]]).to(table.dtype)
        # Adding takes a third of the time of masked_fill_; a cosine is as good as nothing beside FAR.
        best, index = table[row[pairs]].add_(out, alpha=-FAR).max(dim=1)
        found[pairs] = index.masked_fill_(best < -FAR / 2, -1)
    return found


def _search_each(scores: Scores, mask: Tensor, positives: Tensor, reuse: bool) -> Tensor:
    """Contrasts unit by unit: needed where a unit's earlier choices bind its later ones, or where chance chooses."""
    images, k = mask.shape[1], positives.shape[1]
    found = torch.full_like(positives, -1)
    for rows, _ in _chunks(len(positives), max(1, (1 << 22) // (images * k))):
        ids = positives[rows]
        table = scores.rows(ids.clamp(min=0).flatten()).view(len(ids), k, images)
        table.masked_fill_(~mask[rows][:, None, :] | (ids < 0)[:, :, None], -torch.inf)
        for i in range(k):
            best, index = table[:, i].max(dim=1)
            none = best == -torch.inf
            found[rows, i] = index.masked_fill(none, -1)
            if not reuse:
                taken = ~none
                table[taken, :, index[taken]] = -torch.inf
    return found


def _closest(space: Tensor, positives: Tensor, ids: Tensor, least: float, limit: int) -> Tensor:
    """FALCON's limits: pairs at least so similar, and of those the `limit` most similar of a unit."""
    similarity = pair_similarity(space, positives, ids).nan_to_num(nan=-torch.inf)
    rank = similarity.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ids.masked_fill((similarity < least) | (rank >= limit), -1)


def _next_below(values: Tensor) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, -torch.inf))


def _quantile(block: Float[Tensor, "images some"], q: float) -> Float[Tensor, "some"]:
    """The smallest activation that at least the share q of the images do not exceed (no interpolation)."""
    place = max(1, -int(-q * block.shape[0] // 1))
    return block.kthvalue(min(place, block.shape[0]), dim=0).values


def _chunks(total: int, size: int) -> Iterator[tuple[slice, tuple[int, int]]]:
    for first in range(0, total, size):
        last = min(first + size, total)
        yield slice(first, last), (first, last)


def _check(
    acts: Acts, image_emb: Tensor, positive_ids: Tensor, rule: str, groups: Tensor | None, host_emb: Tensor | None
) -> None:
    images, units = shape(acts)
    if rule not in RULES:
        raise UserError("rule", rule, f"expected one of {', '.join(RULES)}")
    if rule == "host" and host_emb is None:
        raise UserError("rule", rule, "needs the host's own image embeddings", "pass host_emb [images, d]")
    if positive_ids.ndim != 2 or len(positive_ids) != units:
        raise UserError("positive_ids", tuple(positive_ids.shape), f"expected [units, k] with {units} units")
    sizes: list[tuple[str, Tensor | None, Callable[[Tensor], bool]]] = [
        ("image_emb", image_emb, lambda t: t.ndim == 2),
        ("host_emb", host_emb, lambda t: t.ndim == 2),
        ("groups", groups, lambda t: t.ndim == 1),
    ]
    for name, tensor, fits in sizes:
        if tensor is not None and (not fits(tensor) or len(tensor) != images):
            raise UserError(name, tuple(tensor.shape), f"expected one row for each of the {images} images of acts")
    if not bool(finite_rows(image_emb).all()):
        raise UserError("image_emb", "not finite", "expected finite embeddings", "look for images that did not decode")
    if positive_ids.numel() and int(positive_ids.max()) >= images:
        raise UserError("positive_ids", int(positive_ids.max()), f"expected ids below {images}")
