"""The second look: the model sees the unit's images again and chooses among the best candidates of a scorer."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.label.proposal import Case, Estimate
from saelab.label.selection import Budget
from saelab.label.vlm import parse, prompts
from saelab.label.vlm.chat import Chat, Picture, Reply, Request
from saelab.label.vlm.show import Look
from saelab.verify.asking import Question, ask, open_ledger, sum_spending

PROMPT, MAX_TOKENS = "second_look", 50
CHOICE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"choice": {"type": "integer"}},
    "required": ["choice"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Choice:
    """One line of second_look.jsonl."""

    name: str  # of the request; a file of recorded answers finds them by it
    unit: int  # row number, as in the exemplars
    status: str  # answered | none (no candidate fits) | unparsed | failed (is asked again)
    label: str | None  # the candidate chosen
    candidates: tuple[str, ...]  # in the order shown
    positives: tuple[int, ...]  # image ids in the order shown
    contrasts: tuple[int, ...]  # paired with the positives, -1 = none
    raw: str | None  # the answer, verbatim
    record: dict[str, Any]  # request, model, tokens, cost, attempts, seconds, error


def second_look(
    chat: Chat,
    cases: Sequence[Case],
    candidates: Mapping[int, Sequence[str]],
    folder: Path | str,
    *,
    seed: int = 0,
    look: Look | None = None,
    budget: Budget | None = None,
    progress: bool = True,
) -> list[Choice]:
    """Let the model choose, for each case, among the unit's candidates (the top labels of a scorer, such as CSP).

    Candidates are shown in an order shuffled by seed, so that a liking for the first place favours none. Rows go to
    `<folder>/second_look.jsonl` as they come; those that are there are not asked again, failed ones are. Units that the
    budget holds back have no row. Raises UserError for a folder with rows of another recipe or case, for tiles that
    need heat maps where there are none, and where every unit failed.
    Eight parameters: who is asked about what, where it is written, and four with defaults.
    """
    folder, template, look = Path(folder), prompts.load(PROMPT), look or Look()
    fingerprint = cases[0].images.fingerprint if cases else None
    facts = {"seed": seed, "look": asdict(look), "max_tokens": MAX_TOKENS}
    ledger = open_ledger(chat, folder, "second_look", template, fingerprint, **facts)
    shown = {case.unit: _shuffle(candidates[case.unit], case.unit, seed) for case in cases}
    for case in cases:
        look.check(case)
        kept = ledger.kept.get(case.unit)
        asked = [shown[case.unit], case.positives, case.contrasts]
        if kept and [tuple(kept[name]) for name in ("candidates", "positives", "contrasts")] != asked:
            found = f"holds unit {case.unit} with other candidates or photos"
            raise UserError("folder", folder, found, "give these a folder of their own")

    def request(case: Case) -> Request:
        return _request(case, shown[case.unit], look.positives(case), look.contrasts(case), template, look)

    def outline(case: Case) -> Request:
        return _outline(case, shown[case.unit], template, look)

    def row(case: Case, reply: Reply) -> Choice:
        return _choice(case, shown[case.unit], reply)

    kept_rows = ask(chat, ledger, cases, Question(request, outline, row), budget, progress)
    rows = [_choice_from(kept) for kept in kept_rows]
    ledger.close(choice_summary([_choice_from(kept) for kept in ledger.rows()]))
    return rows


def choice_estimate(
    chat: Chat, cases: Sequence[Case], candidates: Mapping[int, Sequence[str]], *, look: Look | None = None
) -> Estimate:
    """What `second_look` would take; nothing is drawn or sent."""
    template, own = prompts.load(PROMPT), look or Look()
    outlines = (_outline(case, candidates[case.unit], template, own) for case in cases)
    return sum((chat.estimate(outline) for outline in outlines), Estimate())


def choice_summary(rows: Sequence[Choice]) -> dict[str, Any]:
    """Counts per status, and what was spent."""
    status = dict(sorted(Counter(row.status for row in rows).items()))
    return {"units": len(rows), "status": status, **sum_spending(rows)}


def _shuffle(candidates: Sequence[str], unit: int, seed: int) -> tuple[str, ...]:
    order = list(candidates)
    random.Random(f"{seed}/{unit}").shuffle(order)
    return tuple(order)


def _request(
    case: Case,
    order: Sequence[str],
    positives: Sequence[str | Picture],
    contrasts: Sequence[str | Picture],
    template: str,
    look: Look,
) -> Request:
    listed = "\n".join(f"{number}. {name}" for number, name in enumerate(order, start=1))
    groups = {"positives": positives, "contrasts": contrasts}
    parts = prompts.fill(template, groups, candidates=listed, layout=look.layout, tiles=look.tiles)
    return Request(f"choose/{case.unit}", parts, CHOICE_SCHEMA, MAX_TOKENS)


def _outline(case: Case, order: Sequence[str], template: str, look: Look) -> Request:
    contrasts = sum(image >= 0 for image in case.contrasts)
    groups = look.outline(len(case.positives), "positives"), look.outline(contrasts, "contrasts")
    return _request(case, order, *groups, template, look)


def _choice(case: Case, order: tuple[str, ...], reply: Reply) -> Choice:
    def row(status: str, label: str | None = None, **more: Any) -> Choice:
        shown, record = (case.positives, case.contrasts), reply.record | more
        return Choice(f"choose/{case.unit}", case.unit, status, label, order, *shown, reply.text, record)

    if reply.text is None:
        return row("failed")
    numbers = parse.numbers(reply.text, "choice", len(order))
    if numbers is None or len(numbers) > 1:
        return row("unparsed", error=reply.unfinished)
    return row("answered", order[numbers[0] - 1]) if numbers else row("none")


def _choice_from(row: dict[str, Any]) -> Choice:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Choice(**values)
