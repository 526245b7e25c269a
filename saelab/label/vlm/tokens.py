"""Tokens and money: what a request will take before it is sent, and what an answer has cost."""

import math
from dataclasses import dataclass

from saelab.errors import UserError
from saelab.label.proposal import Estimate
from saelab.label.vlm.chat import Request

CHARACTERS_PER_TOKEN = 3.5  # English prose takes 4 or more, JSON fewer: on the safe side
RULES = ("internvl", "qwen", "openai")


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens. None = not known, and then no cost is known either."""

    input: float | None = None  # of the prompt, pictures included
    output: float | None = None  # of the answer

    def __post_init__(self) -> None:
        for name, value in (("input", self.input), ("output", self.output)):
            if value is not None and not value >= 0:
                raise UserError(f"proposer.prices.{name}", value, "must be dollars per million tokens, or null")

    def cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """US dollars; None where a price or a count is missing."""
        if self.input is None or self.output is None or prompt_tokens is None or completion_tokens is None:
            return None
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


def estimate(request: Request, prices: Prices, rule: str | int) -> Estimate:
    """One request's tokens and money: text by its length, pictures by `rule`, the answer at its limit."""
    text = math.ceil(request.written / CHARACTERS_PER_TOKEN)
    prompt = text + sum(picture_tokens(picture.size, rule) for picture in request.pictures)
    return Estimate(1, prompt, request.max_tokens, prices.cost(prompt, request.max_tokens))


def picture_tokens(size: tuple[int, int], rule: str | int) -> int:
    """Tokens of a picture of `size` (width, height).

    internvl: 256 for each 448-pixel tile and for the thumbnail (InternVL 1.5 and later, at most 12 tiles).
    qwen: one for each 28×28 pixels (Qwen2-VL and 2.5-VL). openai: 85 + 170 for each 512-pixel tile, after scaling to
    at most 2048 and then to a shorter side of 768 (the rule of gpt-4o). A number: that many for any picture.
    """
    if isinstance(rule, int):
        return rule
    width, height = size
    if rule == "internvl":
        tiles = min(12, max(1, round(width * height / 448**2)))
        return 256 * (tiles + (tiles > 1))
    if rule == "qwen":
        return math.ceil(width / 28) * math.ceil(height / 28)
    if rule == "openai":
        scale = min(1.0, 2048 / max(size), 768 / min(size))
        return 85 + 170 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
    raise UserError("proposer.picture_tokens", rule, f"must be a number or one of {', '.join(RULES)}")
