"""Label sets: which labels might have been a unit's best, had other images been drawn?

A unit's label is the best of a vocabulary on one set of images. Where labels are nearly equal (synonyms, a class and
its parent), another draw of images names another one. The set holds every label that the images can't rule out as the
best: "cat, or kitten, or tabby".

Labels that win 90 % of the bootstrap resamples together would be simpler, and too few: the label that won by luck wins
most resamples too, and among ten near-equal labels such sets hold the true best in 80 % (docs/scorers.md). So each
label is tested instead, as in a model confidence set: is any rival ahead of it by more than the draw of images
explains?
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab import bars
from saelab.acts import Acts, Columns, blocks, columns
from saelab.errors import UserError
from saelab.label.mine import firing_threshold, positive_images
from saelab.label.mine.contrast import choose_contrasts
from saelab.label.mine.status import extremes
from saelab.label.scorers import registry
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.scorer import Scorer

RESAMPLES = 200
CANDIDATES = 32  # labels of a unit that may be in its set: those with the highest scores
FEWEST = 5  # series of images that fire a unit, below which a bootstrap of them says nothing
PRETEST = 0.1  # part of the error that is spent on finding rivals too far behind to matter
ELEMENTS = 1 << 23  # numbers held at once while labels are compared


def check(scorer: str, share: float) -> None:
    """Raise UserError for a share that is none, and for a scorer that images drawn anew would leave as it is."""
    if not 0 < share < 1:
        raise UserError("label.sets", share, "expected a share above 0 and below 1", "0.9 is usual; 0 makes no sets")
    if registry.chosen([scorer])[0].null is None:
        expected = f"{scorer} does not look at pooled activations, so resampling images tells nothing of it"
        raise UserError("label.sets", share, expected, "set label.sets=0 or choose another label.final")


def label_sets(
    evidence: Evidence,
    scorer: str,
    share: float = 0.9,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> list[list[int] | None]:
    """Per unit the labels (indices, best first) that `scorer` might call best on another draw of as many images.

    The label with the highest expected score on such a draw is in the set with a probability of at least about `share`
    (0.9), more where its lead is clear. The best label on these images is always in it.

    Whole series of images (`Evidence.series`, else near-duplicates) are drawn with replacement, `resamples` times from
    `seed`, each time all is mined and scored anew. A label leaves the set if a rival's lead over it, in standard errors
    of that lead, exceeds the quantile over resamples of the largest lead that chance gives; rivals that are clearly
    behind are not counted among those who might lead by chance (Romano, Shaikh and Wolf, Econometrica 2014, two steps;
    the set is the inverted test, as in Hansen, Lunde and Nason's model confidence set, Econometrica 2011).

    Only the 32 labels of highest score are looked at: a set of 32 says that the images single out no label. None for a
    unit without scores and for one that fires in fewer than 5 series. Time: `resamples` times the scorer and its
    mining. Raises UserError for an unknown scorer, one that does not look at pooled activations, and a wrong share.
    """
    check(scorer, share)
    if resamples < 2:
        raise UserError("resamples", resamples, "expected at least two", "200 are usual")
    row = registry.chosen([scorer])[0]
    own, labels = _candidates(row, evidence)
    there = own > -torch.inf
    lowest = own.masked_fill(~there, torch.inf).amin(dim=1, keepdim=True)
    of = _series(evidence)
    low, high = extremes(evidence.acts)
    found = there.any(dim=1) & (low < high) & (_spread(evidence.acts, of) >= FEWEST)  # NaN is in no order
    filled = torch.where(there, own, lowest)
    made = torch.empty(resamples, *own.shape, device=own.device)
    for place, counts in enumerate(_draws(of, resamples, seed, progress)):
        seen = resample(evidence, counts, contrasts=row.needs == "pairs")
        for units, scores in registry.blocks(row, seen):
            made[place, units] = _scores(scores.gather(1, labels[units]), filled[units], there[units])
    sets: list[list[int] | None] = [None] * len(own)
    some_at_once = max(1, ELEMENTS // (resamples * own.shape[1] ** 2))
    for some in found.nonzero()[:, 0].split(some_at_once) if bool(found.any()) else ():
        kept = in_set(filled[some].double(), made[:, some].double(), share) & there[some]  # scores may be huge
        for unit, ids, keep in zip(some.tolist(), labels[some], kept, strict=True):
            sets[unit] = ids[keep].tolist()
    return sets


def in_set(
    own: Float[Tensor, "units labels"], made: Float[Tensor, "resamples units labels"], share: float = 0.9
) -> Bool[Tensor, "units labels"]:
    """Which labels can't be ruled out as the best, from their scores `own` and those on each resample.

    For `label` and `rival`: leads are in standard errors; `chance` holds what resamples add to them.
    """
    noise = made - made.mean(dim=0)
    chance = noise[:, :, None, :] - noise[:, :, :, None]  # [resamples, units, label, rival]
    tiny = 1e-6 * own.abs().amax(dim=1)[:, None, None].clamp(min=1e-30)  # equal labels differ by rounding
    error = torch.maximum(chance.std(dim=0), tiny)
    lead = (own[:, None, :] - own[:, :, None]) / error
    chance /= error
    spent = PRETEST * (1 - share)
    slack = (-chance).amax(dim=3).quantile(1 - spent, dim=0, interpolation="higher")
    behind = (lead + slack[:, :, None]).clamp(max=0)  # how far behind a rival is at least; 0 where it may be level
    limit = (chance + behind).amax(dim=3).quantile(share + spent, dim=0, interpolation="higher")
    return lead.amax(dim=2) <= limit


def resample(evidence: Evidence, counts: Int[Tensor, "images"], contrasts: bool = True) -> Evidence:
    """The evidence in which each image is there `counts` times, mined anew (contrasts where anyone asks for them).

    Copies of an image are near-duplicates of each other, so that none is the contrast of another.
    """
    e = evidence
    ids = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    fields = {name: getattr(e, name) for name in ("image_emb", "series", "host_emb", "concepts")}
    seen = {name: None if x is None else x[ids] for name, x in fields.items()}
    acts, groups = repeat_rows(e.acts, counts), ids if e.groups is None else e.groups[ids]
    positives, values = positive_images(acts, min(e.positive_ids.shape[1], len(ids)))
    chosen = torch.full_like(positives, -1)
    if contrasts:
        given = (acts, e.image_emb[ids], positives, e.rule, groups, seen["host_emb"])
        chosen = choose_contrasts(*given, apart=True, check=False)[0]
    mined = {"positive_ids": positives, "positive_values": values, "contrast_ids": chosen}
    made = e.but(acts=acts, groups=groups, **mined, **seen)
    made.__dict__["sims"] = e.sims[ids]  # the cached property: no product anew
    return made


def repeat_rows(acts: Acts, counts: Int[Tensor, "images"]) -> Acts:
    """Each image's activations `counts` times, in the layout they came in; copies stand side by side."""
    acts = columns(acts)
    if not isinstance(acts, Columns):
        return acts.repeat_interleave(counts, dim=0)
    times = counts[acts.rows]
    entry = torch.arange(len(times), device=times.device).repeat_interleave(times)
    copy = torch.arange(len(entry), device=times.device) - (times.cumsum(0) - times)[entry]
    kept = torch.bincount(acts.unit_of_entry[entry], minlength=acts.units)
    starts = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    first = counts.cumsum(0) - counts  # of each image's copies
    return Columns(starts, first[acts.rows[entry]] + copy, acts.values[entry], int(counts.sum()))


def _candidates(scorer: Scorer, evidence: Evidence) -> tuple[Float[Tensor, "units m"], Int[Tensor, "units m"]]:
    """The highest scores of each unit, -inf where there are no more, and their labels; ties to the lower index."""
    parts = []
    for _, scores in registry.blocks(scorer, evidence):
        best = scores.float().nan_to_num(nan=-torch.inf, neginf=-torch.inf).sort(dim=1, descending=True, stable=True)
        parts.append((best.values[:, :CANDIDATES], best.indices[:, :CANDIDATES]))
    values, labels = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(labels)


def _scores(scores: Tensor, own: Tensor, there: Tensor) -> Float[Tensor, "some m"]:
    """A resample's scores: a label that has none there is as low as the lowest; a unit that has none says nothing."""
    known = scores > -torch.inf
    low = scores.masked_fill(~known, torch.inf).amin(dim=1, keepdim=True)
    filled = torch.where(known, scores, low).float().nan_to_num()
    return torch.where(there & known.any(dim=1, keepdim=True), filled, own)


def _series(evidence: Evidence) -> Int[Tensor, "images"]:
    """The series of each image, from 0 on; by default each its own."""
    groups = evidence.groups if evidence.series is None else evidence.series
    if groups is None:
        return torch.arange(evidence.n_images, device=evidence.image_emb.device)
    return groups.unique(return_inverse=True)[1]


def _spread(acts: Acts, of: Int[Tensor, "images"]) -> Int[Tensor, "units"]:
    """In how many series each unit fires."""
    least, found = firing_threshold(acts), []
    for units, some in blocks(acts):
        fires = (some > least[units]).float()
        found.append((fires.new_zeros(int(of.max()) + 1, fires.shape[1]).index_add_(0, of, fires) > 0).sum(dim=0))
    return torch.cat(found)


def _draws(of: Int[Tensor, "images"], n: int, seed: int, progress: bool) -> Iterator[Int[Tensor, "images"]]:
    """How often each image is in a resample, n times: series are drawn with replacement."""
    generator, series = torch.Generator().manual_seed(seed), int(of.max()) + 1
    for _ in bars.show(range(n), what="resamples", hidden=not progress):
        drawn = torch.randint(series, (series,), generator=generator).to(of.device)
        yield torch.bincount(drawn, minlength=series)[of]
