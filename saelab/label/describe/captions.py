"""Sentences about pictures: from a vision-language model, or from the classes that a classifier sees."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from saelab.label.proposal import Estimate
from saelab.label.vlm import prompts
from saelab.label.vlm.chat import Chat, Picture, Reply, Request
from saelab.label.vlm.proposer import buyer

SIDE = 375  # pixels of a picture, as in Describe-and-Dissect
WORDS, TOKENS = 30, 64  # of a caption, at most
CAPTIONS = ("tagger", "chat")  # who captions
NAMED = 2  # classes in a classifier's sentence


class Captioner(Protocol):
    """Whatever says in a sentence what a picture shows."""

    @property
    def recipe(self) -> dict[str, Any]:
        """All that its sentences depend on, as plain values."""
        ...

    def caption(self, unit: int, pictures: Sequence[Picture], folder: Path) -> list[Reply]:
        """A sentence for each picture, in their order; a reply without text failed."""
        ...

    def estimate(self) -> Estimate:
        """What a picture takes."""
        ...


@dataclass(frozen=True)
class ChatCaptioner:
    """A vision-language model that captions one picture at a time."""

    chat: Chat

    @property
    def recipe(self) -> dict[str, Any]:
        """What its captions depend on."""
        return {"chat": self.chat.recipe}

    def caption(self, unit: int, pictures: Sequence[Picture], folder: Path) -> list[Reply]:
        """A request a picture."""
        own = buyer(folder)
        asked = [self._request(f"caption/{unit}/{number}", picture) for number, picture in enumerate(pictures)]
        return ask_in_order(self.chat, [replace(request, buyer=own) for request in asked])

    def estimate(self) -> Estimate:
        """Of one picture."""
        return self.chat.estimate(self._request("caption", Picture(b"", (SIDE, SIDE), "photo")))

    def _request(self, name: str, picture: Picture) -> Request:
        template = prompts.load("describe_caption")
        return Request(name, prompts.fill(template, {"photos": [picture]}, words=WORDS), None, TOKENS)


class TaggerCaptioner:
    """A classifier's likeliest classes as a sentence: it has no word for what it was not trained on."""

    def __init__(self, see: Callable[[Image.Image], Float[Tensor, "classes"]], names: Sequence[str]) -> None:
        """`see`: class probabilities of a picture; `names`: of the classes, the first of comma-separated synonyms."""
        self.see, self.names = see, [name.split(",")[0].strip() for name in names]
        self.recipe: dict[str, Any] = {"name": "tagger", "named": NAMED}

    def caption(self, unit: int, pictures: Sequence[Picture], folder: Path) -> list[Reply]:
        """A sentence for each picture, at once."""
        found = []
        for picture in pictures:
            shown = self.see(Image.open(io.BytesIO(picture.jpeg)).convert("RGB"))
            classes = shown.topk(NAMED).indices.tolist()
            text = " or ".join(f"a photo of a {self.names[c]}" for c in classes)
            found.append(Reply(text, cached=True, prompt_tokens=0, completion_tokens=0, cost=0.0))
        return found

    def estimate(self) -> Estimate:
        """Nothing."""
        return Estimate()


def ask_in_order(chat: Chat, requests: Sequence[Request]) -> list[Reply]:
    """The replies in the order of the requests; one that does not come counts as failed."""
    found = {request.name: reply for request, reply in chat.ask(requests)}
    return [found.get(request.name, Reply(None, "no reply")) for request in requests]
