"""Test images as a comparison needs them, and the units of a group measured on them, metric by metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, pick, take_rows
from saelab.compare.glossary import METRICS
from saelab.compare.inputs import ComparedBasis, Counting, Index
from saelab.compare.left_out import Measured, Parts, measure
from saelab.compare.sides import Side, Target, check_groups, typical
from saelab.errors import UserError
from saelab.evaluate import Judges, judging_metric
from saelab.truth import Similarity

CORRELATIONS = ("caption_r", "truth_r", "scs")


@dataclass(frozen=True)
class TestImages:
    """The images of the `test` split: what judges labels on them, and which of them belong together."""

    __test__ = False  # no test class, for all its name

    judges: Judges
    ids: Int[np.ndarray, "images"]  # of the image set; every basis has its activations on these, in this order
    groups: Sequence[object] | np.ndarray | None = None  # a group for each: near-duplicates, one caption, one series

    def primary(self) -> str | None:
        """The metric that decides."""
        return judging_metric(self.judges)

    def known(self, metric: str) -> Bool[Tensor, "images"] | None:
        """The images that the metric is measured on; None where nothing was given for it."""
        source = {"scs": self.judges.judge, "caption_r": self.judges.captions, "truth_r": self.judges.truth}[metric]
        return None if source is None else source.known[torch.as_tensor(self.ids)]

    def target(self, metric: str, labels: Sequence[str | None]) -> Target:
        """What each label says of the known images. No label: 0 throughout. No truth on them: NaN, unless complete."""
        ids = torch.as_tensor(self.ids)[self.known(metric)]
        if metric == "truth_r":
            return self._truth(ids, labels)
        space = self.judges.judge if metric == "scs" else self.judges.captions
        assert isinstance(space, Similarity)
        missing = {text for text in labels if text is not None} - space.row.keys()
        if missing:
            what = f"has no vector in {space.name}"
            raise UserError("label", repr(min(missing)), what, "embed every label that was given")
        images = space.images[ids]
        named = torch.tensor([text is not None for text in labels])
        rows = torch.tensor([0 if text is None else space.row[text] for text in labels])
        return lambda block: (images @ space.labels[rows[block]].T) * named[block]

    def _truth(self, ids: Tensor, labels: Sequence[str | None]) -> Target:
        truth = self.judges.truth
        assert truth is not None
        member = truth.member[ids]
        count = member.sum(0).tolist()
        column = torch.zeros(len(labels), dtype=torch.long)
        scale = torch.zeros(len(labels), dtype=torch.float64)  # 0: true of no image, NaN: truth has nothing to say
        for u, text in enumerate(labels):
            if text is not None and text in truth.column:
                column[u] = truth.column[text]
                scale[u] = 1.0 if 0 < count[truth.column[text]] < len(ids) else torch.nan
            elif text is not None and not truth.complete:
                scale[u] = torch.nan
        if not member.shape[1]:
            return lambda block: scale[block].expand(len(ids), -1)
        return lambda block: member[:, column[block]] * scale[block]


Kept = Mapping[str, Index]


class Ground:
    """Groups of bases measured on the same test images (or, without them, from their rows alone)."""

    def __init__(self, images: TestImages | None, kept: Kept, resamples: int, seed: int) -> None:
        self.images, self.kept, self.resamples, self.seed = images, kept, resamples, seed
        self._acts: dict[str, Acts] = {}
        self._parts: dict[str, Parts] = {}

    def parts(self, metric: str, bases: Sequence[ComparedBasis]) -> Parts | None:
        """Parts of the images that the metric is measured on; None where it can only be read from rows."""
        if self.images is None or metric not in CORRELATIONS or any(basis.acts is None for basis in bases):
            return None
        known = self.images.known(metric)
        if known is None or int(known.sum()) < 2:
            return None
        if metric not in self._parts:
            self._parts[metric] = Parts.deal(self.groups(metric), self.resamples, self.seed)
        return self._parts[metric]

    def groups(self, metric: str) -> Int[np.ndarray, "images"]:
        """Group of each image that the metric is measured on, from 0."""
        assert self.images is not None
        known = self.images.known(metric)
        assert known is not None
        groups = check_groups(self.images.groups, len(self.images.ids))[known.numpy()]
        return np.unique(groups, return_inverse=True)[1].astype(np.int64)

    def judged_by_second(self) -> "Ground | None":
        """The same ground where the second reader of captions judges; None without one."""
        if self.images is None or self.images.judges.second is None:
            return None
        judges = replace(self.images.judges, captions=self.images.judges.second)
        return Ground(replace(self.images, judges=judges), self.kept, self.resamples, self.seed)

    def anew(self) -> "Ground":
        """The same ground for other activations of bases of these names."""
        return Ground(self.images, self.kept, self.resamples, self.seed)

    def sides(
        self, a: Sequence[ComparedBasis], b: Sequence[ComparedBasis], metric: str, scorer: str | None = None
    ) -> tuple[Measured, Measured, Parts | None]:
        """Both groups, every named unit of those kept; correlations above a reference that both share."""
        parts = self.parts(metric, [*a, *b])
        if parts is None:
            return self.of_rows(a, metric, "named", scorer), self.of_rows(b, metric, "named", scorer), None
        side_a, side_b = self.side(a, metric, scorer), self.side(b, metric, scorer)
        reference = (typical(side_a) + typical(side_b)) / 2
        return measure(side_a, parts, "pearson", reference), measure(side_b, parts, "pearson", reference), parts

    def of_rows(
        self, group: Sequence[ComparedBasis], metric: str, counting: Counting, scorer: str | None = None
    ) -> Measured:
        """A group's numbers as its rows have them; units without a number left out."""
        values, cluster, seeds, units, dropped = [], [], [], [], 0
        place: dict[object, int] = {}
        for seed, basis in enumerate(group):
            index = self.kept[basis.name]
            faithful = METRICS[metric].family == "faithfulness"
            found = (basis.faithfulness(metric, counting, scorer) if faithful else basis.column(metric))[index]
            labels = basis.named(scorer)
            for place_, (u, value) in enumerate(zip(index.tolist(), found.tolist())):
                if value != value:
                    dropped += 1
                    continue
                name = labels[u] if labels[u] is not None else (seed, u)
                cluster.append(place.setdefault(name, len(place)))
                values.append(value)
                seeds.append(seed)
                units.append(place_)
        numbers = np.array(values, dtype=float)
        own, drawn, where = (np.array(x, dtype=np.int64) for x in (cluster, seeds, units))
        return Measured(numbers, numbers, np.zeros((0, len(numbers))), own, drawn, where, len(group), dropped)

    def side(self, group: Sequence[ComparedBasis], metric: str, scorer: str | None = None) -> Side:
        """A group's kept units on the images that the metric is measured on."""
        assert self.images is not None
        known = self.images.known(metric)
        assert known is not None
        acts, target, labels = [], [], []
        for basis in group:
            index = self.kept[basis.name]
            named = basis.named(scorer)
            names = [named[u] for u in index]
            acts.append(take_rows(pick(self._loaded(basis), torch.as_tensor(index)), known.nonzero()[:, 0]))
            target.append(self.images.target(metric, names))
            labels.append(names)
        return Side(acts, target, labels)

    def _loaded(self, basis: ComparedBasis) -> Acts:
        assert basis.acts is not None and self.images is not None
        if basis.name not in self._acts:
            from saelab.acts import columns, shape

            acts = columns(basis.acts())
            if shape(acts) != (len(self.images.ids), len(basis.rows)):
                expected = f"expected {(len(self.images.ids), len(basis.rows))}: its units on the test images"
                raise UserError("acts", f"{shape(acts)} of {basis.name}", expected)
            self._acts[basis.name] = acts
        return self._acts[basis.name]


def counted(
    side: Measured, group: Sequence[ComparedBasis], kept: Kept, counting: Counting, scorer: str | None
) -> Measured:
    """A measured group in another counting: `labelled` without units that abstain, `all` with 0 for them."""
    given = [np.array([x is not None for x in basis.given(scorer)])[kept[basis.name]] for basis in group]
    named = [np.array([x is not None for x in basis.named(scorer)])[kept[basis.name]] for basis in group]
    here = named if counting == "named" else given
    keep = np.array([here[s][u] for s, u in zip(side.seed, side.unit)], dtype=bool)
    return side.zero(~keep) if counting == "all" else side.only(keep)


def restricted(side: Measured, index: Sequence[Int[np.ndarray, "some"]]) -> Measured:
    """Only the units at the given places of each seed."""
    chosen = [set(places.tolist()) for places in index]
    return side.only(np.array([u in chosen[s] for s, u in zip(side.seed, side.unit)], dtype=bool))


def cliffs_delta(values: Float[np.ndarray, "a"], others: Float[np.ndarray, "b"]) -> float:
    """Cliff's delta: P(a > b) - P(a < b), seeds pooled."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([values, others]))[: len(values)]
    u = ranks.sum() - len(values) * (len(values) + 1) / 2
    return float(2 * u / (len(values) * len(others)) - 1)
