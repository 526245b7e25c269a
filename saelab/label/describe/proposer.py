"""Describe-and-Dissect as a proposer (Bai et al., TMLR 2025): crops, captions, a summary of captions, a new order.

1. Of a unit's strongest photos and of crops around where it fires on them, the ten that fire it most are kept.
2. Each is captioned, each caption shortened, and a text model names five times what most of the captions share.
3. These candidates are ordered by what the unit does on pictures of each (`ranking.rerank`): held-out photos that
   people described so, where the original has generated ones.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from saelab.errors import UserError
from saelab.label.crops import find_boxes
from saelab.label.describe.captions import SIDE, WORDS, Captioner, ask_in_order
from saelab.label.describe.ranking import rerank
from saelab.label.proposal import Bench, Case, Estimate, Proposal
from saelab.label.sheets import jpeg, tile
from saelab.label.vlm import prompts
from saelab.label.vlm.chat import Chat, Picture, Reply, Request
from saelab.label.vlm.proposer import buyer, keep_pictures

EXEMPLARS, SUMMARIES, LABELS = 10, 5, 3  # of the original: pictures captioned, candidates asked for, labels kept
PICTURES = 10  # of a candidate
LABEL_WORDS, LABEL_TOKENS = 5, 24  # of a candidate, at most
PROMPTS = ("describe_caption", "describe_shorten", "describe_summarise")
VAGUE = ("design", "designs", "graphic", "graphics")  # candidates that end so are tried with "background" as well


class DescribeDissect:
    """Candidates by Describe-and-Dissect.

    `captioner` sees pictures; `chat` reads text only. Captions, short forms, candidates and their numbers stand in a
    proposal's `raw`, as JSON.
    """

    name = "describe_dissect"
    shown: int | None = EXEMPLARS

    def __init__(
        self, captioner: Captioner, chat: Chat, summaries: int = SUMMARIES, parity: bool = False, seed: int = 0
    ) -> None:
        if summaries < 1:
            raise UserError("proposer.summaries", summaries, "expected a whole number of at least 1")
        self.captioner, self.chat, self.summaries, self.parity, self.seed = captioner, chat, summaries, parity, seed
        self.templates = {name: prompts.load(name) for name in PROMPTS}
        text = "\n".join(self.templates.values())
        self.recipe: dict[str, Any] = {"name": self.name, "captioner": captioner.recipe, "chat": chat.recipe}
        self.recipe |= {"prompts": hashlib.sha256(text.encode()).hexdigest(), "summaries": summaries}
        self.recipe |= {"parity": parity, "seed": seed}

    def propose(self, cases: Iterable[Case], folder: Path) -> Iterator[Proposal]:
        """A proposal for each case, in their order. One without an answer fails alone.

        Raises UserError for a case without a bench.
        """
        for case in cases:
            if case.bench is None:
                raise UserError("proposer", self.name, "has to see what units do on crops", "use it within a run")
            try:
                yield self._propose(case, case.bench, folder)
            except _Failed as failed:
                yield self._row(case, failed.replies, (), "failed", {}, failed.error)

    def estimate(self, case: Case) -> Estimate:
        """Captions, short forms and summaries; captions are taken to have their full length."""
        caption = " ".join(["word"] * WORDS)
        pictures = min(EXEMPLARS, 5 * len(case.positives))
        short = self.chat.estimate(self._shorten(case.unit, 0, caption))
        label = self.chat.estimate(self._summarise(case.unit, 0, [caption] * pictures))
        return sum([self.captioner.estimate(), short] * pictures + [label] * self.summaries, Estimate())

    def _propose(self, case: Case, bench: Bench, folder: Path) -> Proposal:
        replies = _Replies()
        try:
            pictures = self._strongest(case, bench)
        except UserError as error:  # a photo that can't be read any more
            raise _Failed(str(error), []) from None
        keep_pictures(Request(f"describe/{case.unit}", tuple(pictures)), folder)
        captions = replies.texts(self.captioner.caption(case.unit, pictures, folder))
        own = buyer(folder)
        short = replies.texts(self._ask([self._shorten(case.unit, i, c) for i, c in enumerate(captions)], own))
        asked = []
        for number in range(self.summaries):
            order = list(short)
            if number:
                random.Random(f"{self.seed}/{case.unit}/{number}").shuffle(order)
            asked.append(self._summarise(case.unit, number, order))
        candidates = clean_candidates(replies.texts(self._ask(asked, own)))
        found: dict[str, Any] = {"captions": captions, "short": short, "candidates": candidates}
        ordered, numbers = self._order(case.unit, candidates, bench)
        status = "answered" if ordered else "unparsed"
        sheets = tuple(f"sheets/{picture.name}.jpg" for picture in pictures)
        row = self._row(case, replies.all, tuple(ordered[:LABELS]), status, found | numbers, None)
        return replace(row, sheets=sheets, prompt=asked[0].text)

    def _strongest(self, case: Case, bench: Bench) -> list[Picture]:
        """The photos and crops that fire the unit most, strongest first."""
        made: list[Image.Image] = []
        for image in case.positives:
            photo = case.images.load(image).convert("RGB")
            heat = case.heat(case.unit, image) if case.heat is not None else None
            boxes = [] if heat is None else find_boxes(heat, photo.size)
            made += [photo, *(photo.crop(box) for box in boxes)]
        order = bench.fire(case.unit, made).argsort(descending=True, stable=True)[:EXEMPLARS].tolist()
        name = f"unit-{case.unit:05d}-described"
        return [Picture(jpeg(tile(made[i], SIDE)), (SIDE, SIDE), f"{name}-{n}") for n, i in enumerate(order, 1)]

    def _order(self, unit: int, candidates: Sequence[str], bench: Bench) -> tuple[list[str], dict[str, Any]]:
        """The candidates in their new order, with the numbers behind it; as they are where no photo shows any."""
        photos = [tuple(x[:PICTURES] for x in bench.described(unit, label)) for label in candidates]
        if not any(len(acts) for acts, _ in photos):
            return list(candidates), {"photos": [0] * len(candidates)}
        acts, alike, shown = (torch.zeros(len(candidates), PICTURES) for _ in range(3))
        for row, (values, cosines) in enumerate(photos):
            acts[row, : len(values)], alike[row, : len(values)], shown[row, : len(values)] = values, cosines, 1
        found = rerank(acts, alike, shown.bool(), parity=self.parity)
        numbers = {"A": found.squares, "R": found.places, "B": found.similarity, "score": found.score}
        facts = {name: value.tolist() for name, value in numbers.items()}
        return [candidates[i] for i in found.order.tolist()], {"photos": [len(x) for x, _ in photos]} | facts

    def _shorten(self, unit: int, number: int, caption: str) -> Request:
        parts = prompts.fill(self.templates["describe_shorten"], {}, caption=caption)
        return Request(f"shorten/{unit}/{number}", parts, None, LABEL_TOKENS)

    def _summarise(self, unit: int, number: int, captions: Sequence[str]) -> Request:
        parts = prompts.fill(self.templates["describe_summarise"], {}, captions="; ".join(captions))
        return Request(f"summarise/{unit}/{number}", parts, None, LABEL_TOKENS)

    def _ask(self, requests: Sequence[Request], own: str) -> list[Reply]:
        return ask_in_order(self.chat, [replace(request, buyer=own) for request in requests])

    def _row(
        self,
        case: Case,
        replies: Sequence[Reply],
        labels: tuple[str, ...],
        status: str,
        found: dict[str, Any],
        error: str | None,
    ) -> Proposal:
        raw = json.dumps(found, ensure_ascii=False) if found else None
        shown = (self.name, case.mode, case.positives, case.contrasts)
        return Proposal(case.unit, labels, status, *shown, raw=raw, **add_up(replies) | {"error": error})


class _Failed(Exception):
    """A question of a unit got no answer."""

    def __init__(self, error: str, replies: list[Reply]) -> None:
        super().__init__(error)
        self.error, self.replies = error, replies


class _Replies:
    """All replies about a unit."""

    def __init__(self) -> None:
        self.all: list[Reply] = []

    def texts(self, replies: Sequence[Reply]) -> list[str]:
        """The answers, one line each. Raises _Failed where one is missing or empty."""
        self.all += replies
        found = [" ".join((reply.text or "").split()) for reply in replies]
        for text, reply in zip(found, replies):
            if not text:
                raise _Failed(reply.error or "an empty answer", self.all)
        return found


def clean_candidates(answers: Sequence[str]) -> list[str]:
    """Lower case, without a final full stop or quotation marks, no two alike; longer ones than five words are left out.

    A candidate that ends in a vague word (VAGUE) is followed by itself with "background" (as in the original).
    """
    found: list[str] = []
    for answer in answers:
        text = answer.rpartition(":")[2].strip().strip("\"'`“”").lower().removesuffix(".").strip()
        if not text or len(text.split()) > LABEL_WORDS:
            continue
        found += [text, f"{text} background"] if text.split()[-1] in VAGUE else [text]
    return list(dict.fromkeys(found))


def add_up(replies: Sequence[Reply]) -> dict[str, Any]:
    """What all replies about a unit took together; None where one says nothing of it.

    Equal questions are bought once, so the answers that were bought before count only where all were.
    """
    bought = [reply for reply in replies if not reply.cached] or replies

    def total(name: str) -> Any:
        values = [getattr(reply, name) for reply in bought]
        return None if not values or None in values else sum(values)

    digest = hashlib.sha256("\n".join(reply.request for reply in replies).encode()).hexdigest()
    found = {name: total(name) for name in ("prompt_tokens", "completion_tokens", "cost", "seconds")}
    found |= {"model": next((reply.model for reply in reversed(replies) if reply.model), None), "request": digest}
    found |= {name: sum(getattr(reply, name) for reply in replies) for name in ("attempts", "uncertain")}
    return found | {"cached": bool(replies) and all(reply.cached for reply in replies)}
