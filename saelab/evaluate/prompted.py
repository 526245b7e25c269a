"""Does a unit do what its label says, on pictures that a text model thought up? (MAIA, Shaham et al., ICML 2024)

For each label a text model describes seven pictures that should fire the unit and seven that should not; each is
painted, and the unit's activations on both sevens are compared. The writer reads the label and nothing else: not the
photos from which the label came, nor what an agent tried on its way to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.evaluate.cosy import in_folders
from saelab.images import ImageSet
from saelab.label.proposal import Estimate
from saelab.label.vlm import loose, prompts
from saelab.label.vlm.chat import Chat, Reply, Request
from saelab.label.vlm.text import without_thoughts

COUNT = 7  # descriptions of either side
FEWEST = 3  # of either side that an answer needs
LONGEST = 300  # characters of a description
TOKENS = 700  # of an answer
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {side: {"type": "array", "items": {"type": "string"}} for side in ("fire", "silent")},
    "required": ["fire", "silent"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Prompts:
    """Descriptions of pictures, for one label."""

    fire: tuple[str, ...]  # of what the label says
    silent: tuple[str, ...]  # of other things


@dataclass(frozen=True)
class Written:
    """What a text model wrote for labels."""

    prompts: Mapping[str, Prompts]  # by label; those without a usable answer are absent
    replies: tuple[Reply, ...]  # one a label, in their order

    @property
    def every(self) -> list[str]:
        """All descriptions, each once."""
        sides = (side for own in self.prompts.values() for side in (own.fire, own.silent))
        return list(dict.fromkeys(text for side in sides for text in side))


def write_prompts(labels: Sequence[str], chat: Chat, buyer: str = "") -> Written:
    """Ask for the descriptions of each label. `buyer`: the run that asks, for the cache of answers."""
    requests = _requests(labels, buyer)
    found = {request.name: reply for request, reply in chat.ask(requests)}
    replies = tuple(found.get(request.name, Reply(None, "no reply")) for request in requests)
    read = {label: read_prompts(reply.text or "") for label, reply in zip(labels, replies, strict=True)}
    return Written({label: own for label, own in read.items() if own is not None}, replies)


def estimate(labels: Sequence[str], chat: Chat) -> Estimate:
    """What `write_prompts` would take."""
    return sum((chat.estimate(request) for request in _requests(labels, "")), Estimate())


def _requests(labels: Sequence[str], buyer: str) -> list[Request]:
    template = prompts.load("cosy_prompts")
    filled = [prompts.fill(template, {}, label=label, count=COUNT) for label in labels]
    return [
        Request(f"prompts/{label}", parts, SCHEMA, TOKENS, buyer) for label, parts in zip(labels, filled, strict=True)
    ]


def read_prompts(answer: str) -> Prompts | None:
    """The first seven descriptions of either side; None where one has fewer than three.

    What is on both sides counts on neither, and no description counts twice.
    """
    for found in loose.values(without_thoughts(answer)):
        if isinstance(found.value, dict) and {"fire", "silent"} <= found.value.keys():
            fire, silent = _texts(found.value["fire"]), _texts(found.value["silent"])
            both = {text.casefold() for text in fire} & {text.casefold() for text in silent}
            kept = [tuple(t for t in side if t.casefold() not in both)[:COUNT] for side in (fire, silent)]
            return Prompts(*kept) if min(map(len, kept)) >= FEWEST else None
    return None


def _texts(value: Any) -> list[str]:
    """Descriptions in a list, on one line each, without repetitions."""
    some = value if isinstance(value, list) else []
    once: dict[str, str] = {}
    for line in (" ".join(text.split()) for text in some if isinstance(text, str)):
        if line and len(line) <= LONGEST:
            once.setdefault(line.casefold(), line)
    return list(once.values())


def sides(
    labels: Sequence[str], written: Mapping[str, Prompts], pictures: ImageSet
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Per label the ids of the pictures that should fire a unit of it, and of those that should not.

    `pictures`: a sub-folder a description, as `cosy.in_folders` finds them.
    """
    nothing = Prompts((), ())
    own = {label: written.get(label, nothing) for label in labels}
    of = in_folders(list(dict.fromkeys(text for x in own.values() for text in x.fire + x.silent)), pictures)

    def ids(texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype=np.int64), *(of[text] for text in texts)])

    return {label: ids(x.fire) for label, x in own.items()}, {label: ids(x.silent) for label, x in own.items()}


def add_differences(
    rows: Sequence[dict[str, Any]],
    acts: Float[Tensor, "pictures units"],
    fire: Mapping[str, np.ndarray],
    silent: Mapping[str, np.ndarray],
    positive_max: Float[Tensor, "units"],
) -> None:
    """Add `difference` to each row: mean activation on either side's pictures, fire less silent.

    As a share of the unit's largest activation while mining, `positive_max`; NaN where that is not above 0, and where
    a side has no picture. `rows`: a row a unit, as `cosy.cosy` makes them.
    """
    for row in rows:
        u, label = row["unit"], row["label"]
        some = [acts[torch.as_tensor(side.get(label, np.zeros(0, np.int64))), u] for side in (fire, silent)]
        there = min(map(len, some)) > 0 and float(positive_max[u]) > 0
        means = [float(values.double().mean()) for values in some] if there else [float("nan")] * 2
        row["difference"] = (means[0] - means[1]) / float(positive_max[u]) if there else float("nan")
