"""What goes into a comparison: evaluated bases, the ground they share, and the rule that selects their units."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from saelab.acts import Acts
from saelab.compare.glossary import METRICS
from saelab.errors import UserError
from saelab.evaluate import over_all
from saelab.evaluate.faithfulness import CHANCE

STATUSES = ("ok", "dead", "rare", "dense", "constant", "invalid", "no_contrast")
NEEDED = {
    "status",
    "label",
    "abstained",
    "firing_rate",
    "strength",
    "by_scorer",
    "final",
    "named",
    "shuffled",
}  # of a row
Counting = Literal["named", "all", "labelled"]  # every unit named; abstained ones at 0; without them
COUNTINGS: tuple[Counting, ...] = ("named", "all", "labelled")
Index = Int[np.ndarray, "some"]  # of units


@dataclass(frozen=True)
class Setup:
    """The ground that all bases of a comparison must share."""

    host: str  # model name
    layer: str  # dotted name
    images: str  # the image set's fingerprint (contents, truth)
    splits: str  # digest of which image is in which split
    pooling: str  # tokens to one number an image
    signed: str  # positive | split
    k: int  # positives a unit was labelled from
    encoder: str  # labelling encoder
    judge: str  # encoder that SCS is measured with
    labels: str  # digest of the label set


@dataclass(frozen=True)
class ComparedBasis:
    """One evaluated basis."""

    name: str  # as shown; unique
    group: str  # bases that differ only by their seed share it
    kind: str  # neuron | sae | pca | random_rotation
    seed: int | None  # None where nothing was drawn
    weights: str  # digest of the host's weights: may differ between bases for controls only
    control: bool  # a basis that a real one has to beat
    setup: Setup
    rows: Sequence[dict[str, Any]] = field(repr=False)  # of evaluation.jsonl
    scorer: str = "final"  # whose labels are compared: the label given (`final`) or a scorer's
    acts: Callable[[], Acts] | None = field(default=None, repr=False, compare=False)  # on the test images, when asked
    _known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # columns already read from rows

    def entries(self, scorer: str | None = None, counting: Counting = "all") -> list[dict[str, Any]]:
        """Every unit's entry of a scorer, of the `final` label or of the `shuffled` control.

        Counting `named`: with the label of units that abstain; else they have none.
        """
        scorer = scorer or self.scorer
        if scorer not in ("final", "shuffled"):
            return [row["by_scorer"].get(scorer) or {"label": None} for row in self.rows]
        if counting == "named":
            return [row["named" if scorer == "final" else scorer] for row in self.rows]
        return [row[scorer] if row["final"]["label"] is not None else {"label": None} for row in self.rows]

    def named(self, scorer: str | None = None) -> list[str | None]:
        """Every unit's label, abstained or not."""
        return [entry["label"] for entry in self.entries(scorer, "named")]

    def given(self, scorer: str | None = None) -> list[str | None]:
        """Every unit's label, None where it abstains."""
        return [entry["label"] for entry in self.entries(scorer)]

    @cached_property
    def statuses(self) -> list[str]:
        """Every unit's status."""
        return [row["status"] for row in self.rows]

    def faithfulness(self, metric: str, counting: Counting, scorer: str | None = None) -> Float[np.ndarray, "units"]:
        """A metric of the labels of every unit, NaN where it doesn't count (`evaluate.over_all`).

        Correlations are `above_chance`, where a unit without a label is at 0.
        """
        wanted = (scorer or self.scorer, metric, counting)
        if wanted not in self._known:
            entries = self.entries(wanted[0], counting)
            if METRICS[metric].above_chance:
                entries = above_chance(entries, metric)
            values = [e.get(metric) for e in entries] if counting == "labelled" else over_all(entries, metric)
            if counting == "named":
                values = [None if entry["label"] is None else value for entry, value in zip(entries, values)]
            self._known[wanted] = _floats(values)
        return self._known[wanted]

    def column(self, name: str) -> Float[np.ndarray, "units"]:
        """A number of the units themselves (coherence, firing_rate, strength), NaN where there is none."""
        if name not in self._known:
            self._known[name] = _floats([row.get(name) for row in self.rows])
        return self._known[name]


@dataclass(frozen=True)
class Settings:
    """How bases are compared."""

    keep: tuple[str, ...] = ("ok", "dense")  # statuses of the units that are compared
    strongest: int | None = (
        None  # of those, only so many with the largest mean of strongest activations (csp_paper: 200)
    )
    scorer: str = "final"  # whose labels: `final` (with abstentions) or a scorer's name
    alpha: float = 0.05  # corrected p below which a difference is called
    resamples: int = 2000  # of the bootstrap over units that compares scorers
    parts: int = 200  # parts of the test images that are left out in turn, at most
    bins: int = 10  # of matching
    fewest: int = 20  # units a side below which nothing is compared
    seed: int = 0  # of bootstrap, matching and the dealing of images into parts


def above_chance(entries: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The entries with the correlation `metric` less its chance level, over the share of deals that chance leaves.

    Labels dealt out anew bring a unit its own label back in a share sum(p^2) of deals, p being the shares of the labels
    of the basis: so much of a label's worth is in its chance level. Divided by 1 - sum(p^2), as Cohen's kappa (1960) is
    by 1 less its chance, a basis of few labels counts like one of many; the mean over deals stays 0. With one label
    for all units nothing is above chance.
    """
    labelled = [entry for entry in entries if entry["label"] is not None]
    if metric == "truth_r":  # only labels with truth are dealt out; AUPRC tells them on units silent on test too
        labelled = [entry for entry in labelled if entry.get("auprc") is not None]
    dealt = Counter(entry["label"] for entry in labelled)
    left = 1 - sum(n * n for n in dealt.values()) / max(1, dealt.total()) ** 2
    return [
        entry
        if entry.get(metric) is None
        else entry | {metric: (entry[metric] - (entry[CHANCE[metric]] or 0.0)) / (left or 1.0)}
        for entry in entries
    ]


def check(bases: Sequence[ComparedBasis]) -> None:
    """Raise UserError unless the bases can be compared: at least two, distinct names, one setup, equal weights.

    A control may have other weights (an SAE on a randomly initialised host).
    """
    if len(bases) < 2:
        raise UserError("bases", [b.name for b in bases], "at least two are needed", "name two runs or bases")
    names = Counter(basis.name for basis in bases)
    if names.most_common(1)[0][1] > 1:
        raise UserError("bases", names.most_common(1)[0][0], "is there twice", "give every basis a name of its own")
    for basis in bases:
        missing = set[str]().union(*map(_missing, basis.rows)) if basis.rows else {"units"}
        if missing:
            lacks = f"its evaluation lacks {', '.join(sorted(missing))}: made by another version, or not whole"
            raise UserError("bases", basis.name, lacks, "evaluate it again")
    first = bases[0]
    for basis in bases[1:]:
        for fact in dataclasses.fields(Setup):
            ours, theirs = getattr(first.setup, fact.name), getattr(basis.setup, fact.name)
            if ours != theirs:
                what = f"{basis.name} has {fact.name} {_short(theirs)}, {first.name} has {_short(ours)}"
                raise UserError("bases", basis.name, f"can't be compared: {what}", f"use the same {fact.name} for all")
    real = [basis for basis in bases if not basis.control]
    if not real:
        raise UserError("bases", [b.name for b in bases], "are all controls", "add neurons or an SAE")
    for basis in real[1:]:
        if basis.weights != real[0].weights:
            what = (
                f"{basis.name} has host weights {_short(basis.weights)}, {real[0].name} has {_short(real[0].weights)}"
            )
            raise UserError("bases", basis.name, f"can't be compared: {what}", "mark it as a control, or use one host")
    for group in {basis.group for basis in bases}:
        members = [basis for basis in bases if basis.group == group]
        seeds = [basis.seed for basis in members]
        if len(members) > 1 and (None in seeds or len(set(seeds)) < len(seeds)):
            raise UserError("group", group, f"has seeds {seeds}", "give each basis of a group a seed of its own")
        if len({(basis.kind, basis.control) for basis in members}) > 1:
            raise UserError("group", group, "mixes kinds of bases", "a group is the seeds of one recipe")


def _missing(row: dict[str, Any]) -> set[str]:
    """What a row of evaluation.jsonl lacks."""
    entries = [row[name] for name in ("final", "named", "shuffled") if name in row] + list(
        row.get("by_scorer", {}).values()
    )
    return NEEDED - row.keys() | {name for entry in entries for name in CHANCE.values() if name not in entry}


def check_settings(settings: Settings, bases: Sequence[ComparedBasis]) -> None:
    """Raise UserError for statuses that don't exist and for a scorer that labelled none of the bases."""
    unknown = [status for status in settings.keep if status not in STATUSES]
    if unknown or not settings.keep:
        raise UserError("keep", list(settings.keep), "expected statuses", f"known: {', '.join(STATUSES)}")
    known = ["final", "shuffled", *scorers_of(bases)]
    if settings.scorer not in known:
        raise UserError("scorer", settings.scorer, "labelled none of these bases", f"known: {', '.join(known)}")


def selected(basis: ComparedBasis, settings: Settings) -> Index:
    """Indices of the units that pass the rule, ascending (int64)."""
    keep = np.flatnonzero(np.isin(basis.statuses, settings.keep))
    if settings.strongest is None or len(keep) <= settings.strongest:
        return keep
    strength = np.nan_to_num(basis.column("strength")[keep], nan=-np.inf)
    return np.sort(keep[np.argsort(-strength, kind="stable")[: settings.strongest]])


def rule(settings: Settings) -> str:
    """The selection rule as a sentence."""
    text = f"Units with status {' or '.join(settings.keep)} are compared"
    if settings.strongest is None:
        return text + "; all others are counted and left out."
    return (
        text
        + f", of those the {settings.strongest} with the strongest activations; all others are counted and left out."
    )


def values_of(
    group: Sequence[ComparedBasis], units: Sequence[Index], metric: str, counting: Counting, scorer: str | None = None
) -> list[Float[np.ndarray, "units"]]:
    """A metric on the chosen units of each basis, units without a number left out."""
    found = []
    for basis, index in zip(group, units):
        faithful = METRICS[metric].family == "faithfulness"
        values = (basis.faithfulness(metric, counting, scorer) if faithful else basis.column(metric))[index]
        found.append(values[np.isfinite(values)])
    return found


def mean_of(values: np.ndarray) -> float | None:
    """Mean of the finite values; None where there is none."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else None


def scorers_of(bases: Sequence[ComparedBasis]) -> list[str]:
    """Names of all scorers whose labels were evaluated, sorted."""
    return sorted({name for basis in bases for row in basis.rows for name in row["by_scorer"]})


def _floats(values: Sequence[float | None]) -> Float[np.ndarray, "units"]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12] + "…"
