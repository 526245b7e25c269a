"""A proposer whose candidates are put in order by what the pictures say for them (MILAN's rule, `label.rerank`).

The model is asked which of a unit's candidates, A, B or C, fits best, once with the pictures and once without. The
log-probabilities of the letters are those of the candidates; without pictures they also hold what the model thinks of
letters and places, which the rule takes off with the rest.
"""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.label.proposal import Case, Estimate, Proposal
from saelab.label.rerank import WEIGHT, Candidate, order_by_information
from saelab.label.vlm import prompts
from saelab.label.vlm.chat import Picture, Reply, Request
from saelab.label.vlm.proposer import VLMProposer, buyer
from saelab.label.vlm.text import one_line

log = logging.getLogger("saelab")
LETTERS = "ABCDEFGHIJ"
AT_ONCE = 8  # units whose candidates are put in order together
SPENT = ("prompt_tokens", "completion_tokens", "cost")


class RerankedProposer:
    """Asks `inner`, then the same model which of each unit's candidates fits, and puts them in order."""

    def __init__(self, inner: VLMProposer, weight: float = WEIGHT) -> None:
        order_by_information([], weight)  # refuses a weight that is none
        self.inner, self.weight = inner, weight
        self.name, self.shown = inner.name, inner.shown
        self.template = prompts.load("which")
        own = {"rule": "pmi", "weight": weight, "prompt": hashlib.sha256(self.template.encode()).hexdigest()}
        self.recipe: dict[str, Any] = inner.recipe | {"rerank": own}

    def estimate(self, case: Case) -> Estimate:
        """What asking takes, with both further questions of as many candidates as are asked for."""
        contrasts = sum(image >= 0 for image in case.contrasts)
        shown = (
            self.inner.look.outline(len(case.positives), "positives"),
            self.inner.look.outline(contrasts, "contrasts"),
        )
        asked = [self._request(case.unit, ("four words of text",) * 3, *groups) for groups in (shown, ((), ()))]
        return sum((self.inner.chat.estimate(request) for request in asked), self.inner.estimate(case))

    def propose(self, cases: Iterable[Case], folder: Path) -> Iterator[Proposal]:
        """As `inner` proposes, labels in the order of information. A unit that gets no second answer keeps its order.

        Raises UserError where the server names no log-probabilities, and as `inner` does.
        """
        rest = iter(cases)
        while some := list(islice(rest, AT_ONCE)):
            found = list(
                self.inner.propose(some, folder)
            )  # to its end: a chat answers one round of questions at a time
            yield from self._order(found, {case.unit: case for case in some}, folder)

    def _order(self, some: Sequence[Proposal], of: Mapping[int, Case], folder: Path) -> Iterator[Proposal]:
        several = {p.unit: p for p in some if len(p.labels) > 1}
        requests = [r for p in several.values() for r in self._questions(p, of[p.unit], folder)]
        replies: dict[int, dict[str, Reply]] = {unit: {} for unit in several}
        for request, reply in self.inner.chat.ask(requests):
            word, _, unit = request.name.partition("/")
            replies[int(unit)][word] = reply
        for proposal in some:
            yield self._ordered(proposal, replies[proposal.unit]) if proposal.unit in several else proposal

    def _questions(self, proposal: Proposal, case: Case, folder: Path) -> list[Request]:
        """With the unit's pictures, and without any."""
        look, labels = self.inner.look, proposal.labels[: len(LETTERS)]
        seen = self._request(case.unit, labels, look.positives(case), look.contrasts(case))
        blind = dataclasses.replace(self._request(case.unit, labels, (), ()), name=f"blind/{case.unit}")
        return [dataclasses.replace(own, buyer=buyer(folder)) for own in (seen, blind)]

    def _request(
        self, unit: int, labels: Sequence[str], positives: Sequence[str | Picture], contrasts: Sequence[str | Picture]
    ) -> Request:
        listed = "\n".join(f"{letter}. {label}" for letter, label in zip(LETTERS, labels, strict=False))
        groups = {"positives": positives, "contrasts": contrasts}
        parts = prompts.fill(self.template, groups, candidates=listed)
        return Request(f"which/{unit}", parts, max_tokens=1, likely=True)

    def _ordered(self, proposal: Proposal, replies: Mapping[str, Reply]) -> Proposal:
        seen, blind = replies["which"], replies["blind"]
        proposal = _charge(proposal, (seen, blind))
        refused = next((r.error for r in (seen, blind) if r.text is None and "logprobs" in (r.error or "")), None)
        if refused is None and (seen.text is None or blind.text is None):
            log.warning("unit %d keeps its order: %s", proposal.unit, seen.error or blind.error)
            return proposal
        if seen.likely is None or blind.likely is None:
            words = f" ({one_line(refused, 200)})" if refused is not None else ""
            what = f"{proposal.model or self.name} names no log-probabilities{words}"
            raise UserError("proposer.rerank", "pmi", what, "use proposer.rerank=null, or a server that knows logprobs")
        candidates = [
            Candidate(label, letter_log_p(seen.likely, letter), letter_log_p(blind.likely, letter))
            for letter, label in zip(LETTERS, proposal.labels, strict=False)
        ]
        order = [own.text for own in order_by_information(candidates, self.weight)]
        return dataclasses.replace(proposal, labels=(*order, *proposal.labels[len(LETTERS) :]))


def letter_log_p(likely: Mapping[str, float], letter: str) -> float:
    """The log-probability that an answer starts with this letter, however it is spelt ("A", " a", "A.").

    A letter that isn't listed has at most the probability of the last that is: that is taken.
    """
    own = [p for token, p in likely.items() if token.strip().strip(".):").upper() == letter]
    if not own:
        return min(likely.values())
    top = max(own)
    return min(0.0, top + math.log(sum(math.exp(p - top) for p in own))) if top > -math.inf else top


def _charge(proposal: Proposal, replies: Sequence[Reply]) -> Proposal:
    """The proposal with what these answers took, too; a number that is not known stays so."""
    changed: dict[str, Any] = {}
    for name in SPENT:
        numbers = [getattr(proposal, name), *(0 if reply.cached else getattr(reply, name) for reply in replies)]
        changed[name] = None if None in numbers else sum(numbers)
    for name in ("attempts", "uncertain"):
        changed[name] = getattr(proposal, name) + sum(getattr(reply, name) for reply in replies)
    return dataclasses.replace(proposal, **changed)
