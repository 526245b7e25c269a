"""Choice before cost: which units are put to a proposer, and how much may be spent on them.

A choice is text (or a list of unit numbers): terms in a row, each narrowing what the terms before it left.

    all                       every unit
    3,17,20-29                these units
    status:ok  status:ok,rare units of these statuses
    top:100                   the 100 strongest
    random:100                100 drawn by seed
    tokens:200000  usd:2.50   a budget: units are sent in their order while it lasts
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from saelab.errors import UserError
from saelab.label.proposal import Estimate

TERMS = "all, ids such as 3,17,20-29, status:ok, top:100, random:100, tokens:200000, usd:2.50"


class OfUnit(Protocol):
    """Whatever is asked about a unit."""

    @property
    def unit(self) -> int: ...


class Paid(Protocol):
    """An answer with what it took: a Proposal, a Reply."""

    @property
    def prompt_tokens(self) -> int | None: ...
    @property
    def completion_tokens(self) -> int | None: ...
    @property
    def cost(self) -> float | None: ...
    @property
    def cached(self) -> bool: ...
    @property
    def model(self) -> str | None: ...
    @property
    def uncertain(self) -> int: ...


Item = TypeVar("Item", bound=OfUnit)


def key_of(item: OfUnit) -> Any:
    """What an answer about this is found by: its unit, or (unit, trial) of something asked several times a unit."""
    trial = getattr(item, "trial", None)
    return item.unit if trial is None else (item.unit, trial)


@dataclass(frozen=True)
class Budget:
    """What may be spent on answers. At least one limit is set."""

    tokens: int | None = None  # prompt and completion together
    usd: float | None = None  # US dollars

    def admit(
        self,
        cases: Iterable[Item],
        estimate: Callable[[Item], Estimate],
        found: Mapping[Any, Paid],
        earlier: Iterable[Paid],
    ) -> Iterator[Item]:
        """The cases, in order, while the budget lasts; `found` is filled by the caller, by `key_of`, as answers come.

        A case is let through if what was spent (in the rows of an earlier run too) and what the cases under way and
        this one are estimated to take fit the budget. The estimate goes on standing for an answer whose server counts
        no tokens, and for attempts without an answer that may have been charged. Raises UserError for a limit in money
        where a price is missing.
        """
        earlier = list(earlier)
        under_way: dict[Any, Estimate] = {}
        for case in cases:
            under_way = {key: e for key, e in under_way.items() if key not in found or _uncounted(found[key])}
            planned = sum(under_way.values(), estimate(case))
            if self.usd is not None and planned.cost is None:
                raise UserError("units", f"usd:{self.usd}", "a price is missing", "set proposer.prices or use tokens:N")
            tokens, usd = _add_up((*earlier, *found.values()))
            if self.tokens is not None and tokens + planned.tokens > self.tokens:
                return
            if self.usd is not None and usd + (planned.cost or 0.0) > self.usd:
                return
            under_way[key_of(case)] = estimate(case)
            yield case

    def less(self, answers: Iterable[Paid]) -> "Budget":
        """What is left of it after these answers; never below 0."""
        tokens, usd = _add_up(answers)
        left = None if self.tokens is None else max(0, self.tokens - tokens)
        return Budget(left, None if self.usd is None else max(0.0, self.usd - usd))


def _uncounted(answer: Paid) -> bool:
    """Whether it was or may have been bought, but nobody says what it took."""
    counts = answer.prompt_tokens, answer.completion_tokens
    return not answer.cached and None in counts and (answer.model is not None or answer.uncertain > 0)


def _add_up(answers: Iterable[Paid]) -> tuple[int, float]:
    """(tokens, dollars) of the answers that were bought, not found in a cache."""
    bought = [answer for answer in answers if not answer.cached]
    tokens = sum((answer.prompt_tokens or 0) + (answer.completion_tokens or 0) for answer in bought)
    return tokens, sum(answer.cost or 0.0 for answer in bought)


def choose(
    spec: str | int | Sequence[int],
    n_units: int,
    *,
    status: Sequence[str] | None = None,
    strength: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[list[int], Budget | None]:
    """The unit numbers that `spec` (see the module) names, in the order in which they are sent, and the budget if any.

    status: of each unit, for `status:`. strength: of each unit, for `top:` (NaN counts as weakest; ties to the lower
    number). Raises UserError for a term that is unknown, malformed or lacks what it needs, for a unit number out of
    range, and where no unit is left.
    """
    units, limits = list(range(n_units)), {}
    terms = str(spec).split() if isinstance(spec, str | int) else [",".join(str(int(u)) for u in spec)]
    for term in terms:
        rule, _, value = term.partition(":")
        if rule in ("tokens", "usd"):
            limits[rule] = _number(term, value)
        elif rule == "status":
            wanted = set(value.split(","))
            if status is None or not wanted <= _STATUSES:
                raise UserError("units", term, f"needs unit statuses, from {', '.join(sorted(_STATUSES))}")
            units = [u for u in units if status[u] in wanted]
        elif rule == "top":
            if strength is None:
                raise UserError("units", term, "needs the units' strengths, which are not known here")
            keys = {u: strength[u] if strength[u] == strength[u] else float("-inf") for u in units}
            units = sorted(units, key=lambda u: (-keys[u], u))[: int(_number(term, value))]
        elif rule == "random":
            units = random.Random(seed).sample(units, min(int(_number(term, value)), len(units)))
        elif term != "all":
            listed = set(_ids(term, n_units))
            units = [u for u in units if u in listed]
    if not units:
        raise UserError("units", spec, f"no unit of {n_units} is left", f"terms are: {TERMS}")
    budget = Budget(int(limits["tokens"]) if "tokens" in limits else None, limits.get("usd")) if limits else None
    return units, budget


_STATUSES = {"ok", "dead", "rare", "dense", "constant", "invalid", "no_contrast"}


def _number(term: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise UserError("units", term, "needs a finite number above 0 after the colon")
    return number


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19  # "²" is a digit too, of which int makes nothing


def _ids(term: str, n_units: int) -> Iterator[int]:
    for part in term.split(","):
        first, dash, last = part.partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise UserError("units", term, f"is not a term; terms are {TERMS}")
        low, high = int(first), int(last or first)
        if high >= n_units or low > high:
            raise UserError("units", part, f"unit numbers go from 0 to {n_units - 1}")
        yield from range(low, high + 1)
