"""The proposer that asks a vision-language model what a unit's positives share and its contrasts lack."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from saelab import artifacts
from saelab.errors import UserError
from saelab.label.proposal import Case, Estimate, Proposal, check_synthesised
from saelab.label.vlm import parse, prompts
from saelab.label.vlm.chat import Chat, Picture, Reply, Request
from saelab.label.vlm.show import Look

TILES = {"otsu": "crop"}  # what templates call it: either way a photo is cut to where the unit fires
ANSWERS = {"most": 3, "words": 4}  # concepts asked for at most, words in each at most


class VLMProposer:
    """Asks `chat` one question a unit; up to three concepts of up to four words come back (or "none").

    prompt: a family of shipped templates ("concepts": JSON; "list": comma list, as in the CSP paper) of which the mode
    picks `<family>_positives` or `<family>_contrast`, or a template file of one's own for every mode. guided: hold the
    model to the JSON schema where the backend can. shown: positives on a sheet (9 fill it). synthesised: `beside` shows
    pictures made to raise the unit before its photos, `alone` nothing else.
    """

    def __init__(
        self,
        chat: Chat,
        look: Look | None = None,
        prompt: str = "concepts",
        guided: bool = True,
        shown: int = 9,
        max_tokens: int = 300,
        synthesised: str = "none",
    ) -> None:
        self.chat, self.look, self.max_tokens = chat, look or Look(), max_tokens
        self.shown: int | None = shown
        self.name = chat.name
        self.schema = parse.CONCEPTS_SCHEMA if guided else None
        self.synthesised, family = check_synthesised(synthesised), prompt in ("concepts", "list")
        shapes = ("synthesised",) if synthesised == "alone" else ("positives", "contrast")
        self.templates = {shape: prompts.load(f"{prompt}_{shape}" if family else prompt) for shape in shapes}
        if synthesised == "beside":
            self.templates["beside"] = prompts.load("beside_synthesised")
        self.recipe: dict[str, Any] = {
            "chat": chat.recipe,
            "look": asdict(self.look),
            "prompt": hashlib.sha256("\n".join(self.templates.values()).encode()).hexdigest(),
            "guided": guided,
            "shown": shown,
            "max_tokens": max_tokens,
        }
        if synthesised != "none":
            self.recipe["synthesised"] = synthesised

    def propose(self, cases: Iterable[Case], folder: Path) -> Iterator[Proposal]:
        """A proposal for each case as its answer comes; the pictures sent are kept in `<folder>/sheets`.

        A case whose images can't be read any more fails alone.
        """
        waiting: dict[str, Case] = {}
        unreadable: list[Proposal] = []

        def requests() -> Iterator[Request]:
            for case in cases:
                self.look.check(case)
                if self.synthesised == "alone" and not case.made:
                    unreadable.append(self._proposal(case, None, Reply(None), "no_positives"))
                    continue
                try:
                    request = replace(self.request(case), buyer=buyer(folder))
                except UserError as error:
                    unreadable.append(self._proposal(case, None, Reply(None, str(error))))
                    continue
                waiting[request.name] = case
                keep_pictures(request, folder)
                yield request

        for request, reply in self.chat.ask(requests()):
            yield self._proposal(waiting.pop(request.name), request, reply)
        yield from unreadable

    def estimate(self, case: Case) -> Estimate:
        """Tokens and money of the case's request, from its text and its pictures' sizes; nothing is drawn or sent."""
        contrasts = len([image for image in case.contrasts if image >= 0])
        counts = {"positives": len(case.positives), "contrasts": contrasts}
        groups = {name: self.look.outline(count, name) for name, count in counts.items()}
        made = [Picture(b"", (self.look.part_px,) * 2, f"made-{i}") for i in range(len(case.made))]
        return self.chat.estimate(self._request(case, groups, made))

    def request(self, case: Case) -> Request:
        """What is sent for a case."""
        made = self.look.made(case) if self.synthesised != "none" else []
        if self.synthesised == "alone":
            return self._request(case, {}, made)
        return self._request(
            case, {"positives": self.look.positives(case), "contrasts": self.look.contrasts(case)}, made
        )

    def _request(self, case: Case, groups: dict[str, list[str | Picture]], made: Sequence[str | Picture]) -> Request:
        values: dict[str, Any] = {
            "layout": self.look.layout,
            "tiles": TILES.get(self.look.tiles, self.look.tiles),
        } | ANSWERS
        if self.synthesised == "alone":
            parts = prompts.fill(self.templates["synthesised"], {"synthesised": made}, **values)
        else:
            parts = prompts.fill(self.templates["contrast" if groups["contrasts"] else "positives"], groups, **values)
        if self.synthesised == "beside" and made:
            parts = (*prompts.fill(self.templates["beside"], {"synthesised": made}), "\n\n", *parts)
        return Request(f"propose/{case.unit}", parts, self.schema, self.max_tokens)

    def _proposal(self, case: Case, request: Request | None, reply: Reply, status: str = "failed") -> Proposal:
        answer = parse.Answer(status=status) if reply.text is None else parse.concepts(reply.text, **ANSWERS)
        return Proposal(
            unit=case.unit,
            labels=answer.concepts if answer.status == "answered" else (),
            status=answer.status,
            proposer=self.name,
            mode=case.mode,
            positives=case.positives,
            contrasts=case.contrasts,
            raw=reply.text,
            evidence=answer.evidence,
            confidence=answer.confidence,
            prompt=request.text if request else None,
            sheets=tuple(f"sheets/{picture.name}.jpg" for picture in request.pictures) if request else (),
            **reply.record | ({"error": reply.unfinished} if answer.status == "unparsed" else {}),
        )


def keep_pictures(request: Request, folder: Path) -> None:
    """Write a request's pictures to `<folder>/sheets/<name>.jpg`, the very bytes that are sent."""
    (folder / "sheets").mkdir(parents=True, exist_ok=True)
    for picture in request.pictures:
        with artifacts.atomic(folder / "sheets" / f"{picture.name}.jpg") as temporary:
            temporary.write_bytes(picture.jpeg)


def buyer(folder: Path) -> str:
    """What stands for the run that writes its rows into this folder, in the answers that it buys."""
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
