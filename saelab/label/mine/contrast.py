"""A contrast for each positive: the image most like it that does not drive the unit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from saelab.acts import Acts, Columns, columns, runs, shape
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.mine.candidates import Candidates, candidate_interval
from saelab.label.mine.lookup import CellTable, Scores, search_each, search_shared
from saelab.label.mine.rows import finite_rows

RULES = ("below_mean", "below_quantile", "zero", "random", "host")
MASK_ELEMENTS = 1 << 30  # a bool for each image and dense unit: units beyond this many go in a second pass
MASK_ENTRIES = 1 << 26  # the same of sparse units, for which each stored entry takes nine bytes


@dataclass(frozen=True)
class ContrastRule:
    """How contrasts are chosen: the settings of `contrast_images`, to be kept beside what they gave."""

    rule: str = "below_mean"  # which images may be contrasts: below_mean, below_quantile, zero, random or host
    reuse: bool = True  # one image may be the contrast of several positives of a unit
    quantile: float = 0.5  # for below_quantile: candidates are at or below this quantile of the unit's activations
    host_similarity: float = 0.3  # for host: least cosine of a pair in the host's space
    host_limit: int = 10  # for host: pairs kept per unit
    seed: int = 0  # for random, and for the cells
    exact_below: int = 1 << 16  # with more images, neighbours are looked for in cells (`cells.py`), and recall logged

    @property
    def shared(self) -> bool:
        """Whether a positive's neighbours serve all units that it is a positive of."""
        return self.reuse and self.rule != "random"

    def in_cells(self, images: int) -> bool:
        """Whether the contrasts among so many images are looked for in cells."""
        return self.shared and images > self.exact_below


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
    exact_below: int = 1 << 16,
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
    With more than `exact_below` images, contrasts are looked for in near cells first (`cells.py`; not with `random` or
    without `reuse`) and may be less similar than the exact ones: the log says how often, and by how much.
    An image is never the contrast of itself or of one of its near-duplicates (equal number in `groups`). With
    `reuse=False` no image serves two positives of a unit: positives choose in the order given (strongest first).

    `acts`, `image_emb` (rows of unit length) and `groups` must hold the same images, those that may be mined: leave
    other splits out before. Positive ids of -1 get no contrast. Returns ids [units, k], -1 where there is no
    candidate, and similarity [units, k] = <positive, contrast> in `image_emb`, NaN where there is none.
    Twelve parameters: the tensors, and the settings of a ContrastRule by name, so that arrays are all a caller needs.
    Raises UserError for an unknown rule, sizes that do not fit and embeddings that are not finite.
    """
    settings = ContrastRule(rule, reuse, quantile, host_similarity, host_limit, seed, exact_below)
    return choose_contrasts(acts, image_emb, positive_ids, settings, groups, host_emb)


def choose_contrasts(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    positive_ids: Int[Tensor, "units k"],
    rule: ContrastRule,
    groups: Int[Tensor, "images"] | None = None,
    host_emb: Float[Tensor, "images d_in"] | None = None,
    apart: bool = False,
    check: bool = True,
) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
    """`contrast_images` by a ContrastRule. With `apart`, none of a unit's positives is ever its contrast.

    (A unit that fires very unevenly has positives below its own mean, which are candidates otherwise.) `check`: measure
    and log what cells miss; for those who mine again and again, once is enough. Eight parameters: what there is to
    choose from, and how.
    """
    acts = columns(acts)
    _check(acts, image_emb, positive_ids, rule.rule, groups, host_emb)
    space = image_emb.float()
    if rule.rule == "host" and host_emb is not None:
        space = normalize(host_emb.float(), dim=1)
    interval = candidate_interval(acts, rule.rule, rule.quantile)
    generator = torch.Generator(image_emb.device).manual_seed(rule.seed) if rule.rule == "random" else None
    scores = Scores(space, groups, generator)
    shared, cells = rule.shared, rule.in_cells(len(space))
    table = CellTable(scores, positive_ids, rule.seed, check) if cells else None
    ids = torch.full_like(positive_ids, -1)
    for part in _passes(acts):
        candidates = Candidates(acts, interval, part, positive_ids[part] if apart else None)
        if table is not None:
            ids[part] = table.search(scores, candidates, positive_ids[part])
        elif shared:
            ids[part] = search_shared(scores, candidates, positive_ids[part])
        else:
            ids[part] = search_each(scores, candidates, positive_ids[part], rule.reuse)
    if table is not None and check:
        table.tell()
    if rule.rule == "host":
        ids = _closest(space, positive_ids, ids, rule.host_similarity, rule.host_limit)
    return ids, pair_similarity(image_emb, positive_ids, ids)


def _passes(acts: Acts) -> Iterable[slice]:
    """Runs of units whose candidates are held together."""
    if isinstance(acts, Columns):
        return runs(acts, MASK_ENTRIES)
    images, units = shape(acts)
    step = max(1, MASK_ELEMENTS // max(images, 1))
    return (slice(first, min(first + step, units)) for first in range(0, units, step))


def pair_similarity(
    image_emb: Float[Tensor, "images d_text"], positive_ids: Int[Tensor, "units k"], ids: Int[Tensor, "units k"]
) -> Float[Tensor, "units k"]:
    """Cosine of each positive and its contrast (rows of unit length); NaN where either is -1."""
    out = torch.empty(ids.shape, device=image_emb.device)
    step = max(1, (1 << 22) // max(ids.shape[1] * image_emb.shape[1], 1))
    for first in range(0, len(ids), step):
        rows = slice(first, first + step)
        out[rows] = (image_emb[positive_ids[rows]].float() * image_emb[ids[rows]].float()).sum(dim=2)
    return out.masked_fill_((ids < 0) | (positive_ids < 0), torch.nan)


def _closest(space: Tensor, positives: Tensor, ids: Tensor, least: float, limit: int) -> Tensor:
    """FALCON's limits: pairs at least so similar, and of those the `limit` most similar of a unit."""
    similarity = pair_similarity(space, positives, ids).nan_to_num(nan=-torch.inf)
    rank = similarity.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ids.masked_fill((similarity < least) | (rank >= limit), -1)


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
