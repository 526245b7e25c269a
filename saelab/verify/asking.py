"""Asking about units one by one: rows on disk as answers come, failed ones asked again, a budget kept."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol

from saelab import bars
from saelab.errors import UserError
from saelab.label import ledger as ledgers
from saelab.label.ledger import Ledger
from saelab.label.selection import Budget, Item, key_of
from saelab.label.vlm.chat import Chat, Reply, Request
from saelab.label.vlm.completion import count
from saelab.label.vlm.proposer import buyer, keep_pictures


class Row(Protocol):
    """A line of a ledger: a Detection, a Choice, an Intrusion."""

    @property
    def status(self) -> str: ...
    @property
    def record(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Question(Generic[Item]):
    """What a test asks about an item, and what it keeps of the answer."""

    request: Callable[[Item], Request]  # draws what is sent
    outline: Callable[[Item], Request]  # the same without content, for the budget
    row: Callable[[Item, Reply], Row]  # the answer's line of the ledger


def open_ledger(chat: Chat, folder: Path, name: str, template: str, images: str | None, **facts: Any) -> Ledger:
    """`<folder>/<name>.jsonl` and its recipe: who is asked, the prompt, the images' fingerprint, the test's own facts.

    Raises UserError for a folder with rows of another recipe.
    """
    prompt = hashlib.sha256(template.encode()).hexdigest()
    return Ledger(folder, name, {"chat": chat.recipe, "template": prompt, "images": images, **facts})


def ask(
    chat: Chat,
    ledger: Ledger,
    items: Sequence[Item],
    question: Question[Item],
    budget: Budget | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Ask about each item that the ledger has no row of; the rows of all items that have one, in the ledger's order.

    An item whose pictures can't be read any more fails alone. Raises UserError where every item that was asked failed,
    and for what stops the backend itself; what had been answered until then is on disk.
    """
    todo = [item for item in items if key_of(item) not in ledger.kept]
    found: dict[ledgers.Key, Reply] = {}
    waiting: dict[str, Item] = {}
    unreadable: list[tuple[Item, Reply]] = []

    def requests(allowed: Iterable[Item]) -> Iterator[Request]:
        for item in allowed:
            try:
                drawn = replace(question.request(item), buyer=buyer(ledger.file.parent))
            except UserError as error:
                unreadable.append((item, Reply(None, str(error))))
                continue
            keep_pictures(drawn, ledger.file.parent)
            waiting[drawn.name] = item
            yield drawn

    with bars.show(
        total=len(items), initial=len(items) - len(todo), what=ledger.file.stem, leave=True, hidden=not progress
    ) as bar:

        def keep(item: Item, reply: Reply) -> None:
            attempts, uncertain = ledger.tries(key_of(item))
            reply = replace(reply, attempts=reply.attempts + attempts, uncertain=reply.uncertain + uncertain)
            found[key_of(item)] = reply
            ledger.add(question.row(item, reply))
            bar.update()

        earlier = restore_replies([kept["record"] for kept in ledger.kept.values()])
        wanted: Iterable[Item] = todo
        if budget is not None:
            wanted = budget.admit(todo, lambda item: chat.estimate(question.outline(item)), found, earlier)
        for asked, reply in chat.ask(requests(wanted)):
            keep(waiting.pop(asked.name), reply)
        for item, reply in unreadable:
            keep(item, reply)
    keys = {key_of(item) for item in items}
    rows = [kept for kept in ledger.rows() if ledgers.key_of(kept) in keys]
    if rows and all(kept["status"] == "failed" for kept in rows):
        units, why = len({kept["unit"] for kept in rows}), rows[0]["record"]["error"]
        raise UserError("proposer", chat.name, f"all {units} units failed, the first with: {why}")
    return rows


def sum_spending(rows: Sequence[Row]) -> dict[str, Any]:
    """Requests, tokens and money of these rows' answers, each request once; cost: None where one lacks."""
    bought = {row.record["request"]: row.record for row in rows if row.status != "failed"}.values()
    costs = [record["cost"] for record in bought]
    return {
        "requests": len(bought),
        "prompt_tokens": sum(record["prompt_tokens"] or 0 for record in bought),
        "completion_tokens": sum(record["completion_tokens"] or 0 for record in bought),
        "cost": None if None in costs else float(sum(costs)),
        "attempts": sum(row.record["attempts"] for row in rows),
        "uncertain": sum(row.record["uncertain"] for row in rows),
    }


def restore_replies(records: Sequence[dict[str, Any]]) -> list[Reply]:
    """What answers took, from the records of their rows, as a budget counts it."""
    counts = [{name: count(record[name]) for name in ("prompt_tokens", "completion_tokens")} for record in records]
    return [Reply(None, **record | own) for record, own in zip(records, counts, strict=True)]
