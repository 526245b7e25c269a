"""The proposer that lets a model look for itself, through the tools of the OpenAI protocol.

After MAIA (Shaham et al., ICML 2024): there an agent writes Python, which runs in the same process; here it names a
tool and its arguments, which are checked. A talk is replayed from the answers that were bought, so that a killed run
goes on where it stopped and pays nothing twice.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from saelab import artifacts
from saelab.errors import UserError
from saelab.label.agent.hands import Hands, Sight, Unseen
from saelab.label.agent.talk import CALLS, Bounds, Talk
from saelab.label.proposal import Case, Estimate, Proposal
from saelab.label.tools import Toolbox
from saelab.label.vlm import parse, prompts
from saelab.label.vlm.chat import Picture, Reply, Request
from saelab.label.vlm.openai import OpenAIChat
from saelab.label.vlm.proposer import ANSWERS, TILES, buyer
from saelab.label.vlm.show import Look

TOOLS = 1  # version of the tools; part of the recipe


class AgentProposer:
    """Talks with `chat` about one unit after the other, `chat.concurrency` of them at a time.

    The first question shows the unit's `shown` strongest positives and their contrasts, as other proposers do. prompt:
    `agent`, or a template file of one's own, which may use `rounds` and `calls`. Transcripts are kept in
    `<folder>/transcripts/unit-NUMBER.jsonl`, a line a round, and all pictures in `<folder>/sheets`.
    """

    name = "agent"

    def __init__(
        self, chat: OpenAIChat, sight: Sight, look: Look, bounds: Bounds, prompt: str = "agent", shown: int = 9
    ) -> None:
        self.chat, self.sight, self.look, self.bounds = chat, sight, look, bounds
        self.shown: int | None = shown
        self.template = prompts.load(prompt)
        self.recipe: dict[str, Any] = {
            "name": self.name,
            "chat": chat.recipe,
            "look": dataclasses.asdict(look),
            "bounds": dataclasses.asdict(bounds),
            "prompt": hashlib.sha256(self.template.encode()).hexdigest(),
            "shown": shown,
            "tools": TOOLS,
        }

    def propose(self, cases: Iterable[Case], folder: Path) -> Iterator[Proposal]:
        """A proposal for each case as its talk ends. A case whose images can't be read any more fails alone."""
        source = iter(cases)
        while some := list(islice(source, self.chat.concurrency)):
            talks: dict[str, tuple[Case, Talk]] = {}
            for case in some:
                try:
                    talk = self._begin(case, folder)
                except UserError as error:
                    yield self._proposal(case, None, error=str(error))
                    continue
                talks[talk.request.name] = (case, talk)
            yield from self._talk(talks, folder)

    def estimate(self, case: Case) -> Estimate:
        """At most: every round that the bounds allow, up to `unit_tokens`."""
        answers = min(self.bounds.rounds * self.bounds.max_tokens, self.bounds.unit_tokens)
        prompt = self.bounds.unit_tokens - answers
        return Estimate(self.bounds.rounds, prompt, answers, self.chat.prices.cost(prompt, answers))

    def _begin(self, case: Case, folder: Path) -> Talk:
        self.look.check(case)
        hands = Hands(case, self.sight, self.look.sheet_px, captions=self.look.layout == "captions")
        box = Toolbox(hands.tools())
        groups = {"positives": self.look.positives(case), "contrasts": self.look.contrasts(case)}
        told = {
            "layout": self.look.layout,
            "tiles": TILES.get(self.look.tiles, self.look.tiles),
            "rounds": self.bounds.rounds - 1,
            "calls": CALLS,
        }
        parts = prompts.fill(self.template, groups, **told, **ANSWERS)
        tools = tuple({"name": t.name, "description": t.about, "parameters": t.schema} for t in box.tools.values())
        own = Request(f"propose/{case.unit}", parts, None, self.bounds.max_tokens, buyer(folder), tools=tools)
        return Talk(own, box, self.bounds, self.chat.estimate)

    def _talk(self, talks: dict[str, tuple[Case, Talk]], folder: Path) -> Iterator[Proposal]:
        """Round by round: every talk that goes on asks once, then all of them go on with what came back."""
        while talks:
            waiting, talks = talks, {}
            for request, reply in self.chat.ask([talk.request for _, talk in waiting.values()]):
                case, talk = waiting[request.name]
                try:
                    talk.hear(reply)
                except Unseen as error:
                    talk.fail(str(error))
                keep(talk, case.unit, folder)
                if talk.ended is None:
                    talks[talk.request.name] = (case, talk)
                else:
                    yield self._proposal(case, talk)

    def _proposal(self, case: Case, talk: Talk | None, error: str | None = None) -> Proposal:
        replies = talk.replies if talk is not None else []
        last = replies[-1] if replies else Reply(None, error)
        ended = talk.ended if talk is not None else error
        answer = parse.Answer(status="failed" if talk is None or talk.failed else "unparsed")
        if ended == "answered":
            answer, ended = parse.concepts(last.text or "", **ANSWERS), last.unfinished
        return Proposal(
            unit=case.unit,
            labels=answer.concepts if answer.status == "answered" else (),
            status=answer.status,
            proposer=self.name,
            mode=case.mode,
            positives=case.positives,
            contrasts=case.contrasts,
            raw=last.text,
            evidence=answer.evidence,
            confidence=answer.confidence,
            prompt=talk.request.text if talk is not None else None,
            sheets=tuple(f"sheets/{picture.name}.jpg" for picture in talk.pictures) if talk is not None else (),
            **total(replies),
            error=ended if answer.status in ("unparsed", "failed") else None,
        )


def total(replies: list[Reply]) -> dict[str, Any]:
    """What a talk took: the fields of a proposal. Rounds that another run had bought cost nothing again."""
    bought = [reply for reply in replies if not reply.cached] or replies
    costs = [reply.cost for reply in bought]
    counts = {name: [getattr(reply, name) for reply in bought] for name in ("prompt_tokens", "completion_tokens")}
    return {
        "request": replies[-1].request if replies else None,
        "model": next((reply.model for reply in replies if reply.model), None),
        "cost": None if not costs or None in costs else sum(cost or 0.0 for cost in costs),
        "cached": bool(replies) and all(reply.cached for reply in replies),
        "attempts": sum(reply.attempts for reply in replies),
        "uncertain": sum(reply.uncertain for reply in replies),
        "seconds": round(sum(reply.seconds or 0.0 for reply in replies), 3) if replies else None,
    } | {name: None if not own or None in own else sum(count or 0 for count in own) for name, own in counts.items()}


def keep(talk: Talk, unit: int, folder: Path) -> None:
    """Write the transcript so far, and the pictures that were shown, the very bytes that are sent."""
    for name in ("transcripts", "sheets"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    artifacts.write_jsonl(folder / "transcripts" / f"unit-{unit:05d}.jsonl", talk.lines)
    for picture in talk.pictures:
        _write(folder / "sheets" / f"{picture.name}.jpg", picture)


def _write(place: Path, picture: Picture) -> None:
    if not place.exists() or place.read_bytes() != picture.jpeg:
        with artifacts.atomic(place) as temporary:
            temporary.write_bytes(picture.jpeg)
