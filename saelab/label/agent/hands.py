"""What an agent may do with a unit: look at images for mining, and ask how strongly they fire it.

Nothing of the `show` and `test` splits is reachable, nor a caption or class, unless `captions` stand for pictures: a
label is tested on what the agent has not seen. There is no generator of pictures; an idea is tested on the photos that
the encoder finds for its words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from saelab.errors import UserError
from saelab.label import sheets
from saelab.label.proposal import Case
from saelab.label.strengths import Strengths
from saelab.label.tools import Answer, Argument, Tool
from saelab.label.vlm.chat import Picture

TILES = 9  # of a sheet
MOST = 24  # images of a call for numbers
DIGITS = 3


@dataclass(frozen=True)
class Sight:
    """The space in which words find photos."""

    images: Float[Tensor, "images d_text"]  # unit length
    embed: Callable[[Sequence[str]], Float[Tensor, "texts d_text"]]  # unit length; loads its model when first asked


class Unseen(Exception):
    """A photo can't be read any more, for which no call of the model's is to blame; the text is one line."""


class Hands:
    """The tools of one unit. They raise UserError for a call that can't be answered, and Unseen.

    captions: a photo is what people wrote of it, for a model that reads text only; there is no `look` then.
    """

    def __init__(self, case: Case, sight: Sight, sheet_px: int, captions: bool = False) -> None:
        if case.column is None:
            raise UserError(
                "proposer", "agent", "needs the unit's activations on all images", "give exemplars a `column`"
            )
        self.case, self.sight, self.sheet_px, self.captions = case, sight, sheet_px, captions
        self.strengths = Strengths(case.column().numpy(), case.images.ids("mine"))
        self.sheets = 0  # shown so far

    def tools(self) -> list[Tool]:
        """By the names under which a model calls them."""
        count = Argument("integer", "how many photos", default=TILES, low=1, high=TILES)
        first = Argument("integer", "rank of the first one; 1 is the strongest", default=1, low=1)
        found = [
            Tool(
                "strongest",
                "Photos that fire the unit most, by rank.",
                {"first": first, "count": count},
                self.strongest,
            ),
            Tool(
                "find_photos",
                "Photos that best match a text, and how strongly each fires the unit: test an idea with it.",
                {"text": Argument("string", "a few words"), "count": count},
                self.find_photos,
            ),
            Tool(
                "activations",
                "How strongly photos fire the unit, by their numbers.",
                {"photos": Argument("integer", "numbers of photos", most=MOST)},
                self.activations,
            ),
        ]
        look = Tool(
            "look",
            "One photo, large, with where it fires the unit.",
            {"photo": Argument("integer", "its number")},
            self.look,
        )
        return found if self.captions else [*found, look]

    def strongest(self, first: int, count: int) -> Answer:
        """The mined images from rank `first` on that fire the unit."""
        return self._show([i for i in self._ranked[first - 1 : first - 1 + count] if self.strengths.acts[i] > 0])

    def find_photos(self, text: str, count: int) -> Answer:
        """The mined images nearest to a text, nearest first."""
        with torch.inference_mode():
            likeness = self.sight.images[torch.as_tensor(self._mine)] @ self.sight.embed([text])[0]
        order = torch.argsort(likeness, descending=True, stable=True)[:count]
        return self._show(self._mine[order.numpy()].tolist())

    def activations(self, photos: list[int]) -> Answer:
        """Numbers alone."""
        return Answer({"photos": [self._row(self._check(photo)) for photo in photos]})

    def look(self, photo: int) -> Answer:
        """The photo with its heat laid over, if the layer has maps."""
        self._check(photo)
        heat = self.case.heat(self.case.unit, photo) if self.case.heat is not None else None
        picture = sheets.tile(self._load(photo), sheets.SMALLEST, "heatmap", heat)
        marked = "red to yellow: where it fires" if heat is not None else "this layer has no places"
        return Answer(self._row(photo) | {"marks": marked}, [self._picture(sheets.jpeg(picture), sheets.SMALLEST)])

    # ---- parts -------------------------------------------------------------------------------------------------

    @property
    def _mine(self) -> np.ndarray:
        return self.strengths.mine

    @cached_property
    def _ranked(self) -> list[int]:
        order = np.argsort(-self.strengths.acts[self._mine], kind="stable")
        ranked: list[int] = self._mine[order].tolist()
        return ranked

    def _check(self, photo: int) -> int:
        if photo not in self._mine:
            raise UserError("photo", photo, "is none that you were shown", "use a number from an answer")
        return photo

    def _load(self, photo: int) -> Image:
        try:
            return self.case.images.load(photo)
        except UserError as error:
            raise Unseen(str(error)) from None

    def _row(self, photo: int) -> dict[str, Any]:
        own = self.strengths.of(photo)
        row = {"photo": own["image"]} | {name: round(own[name], DIGITS) for name in ("share", "percentile")}
        return row | ({"shows": self.case.images.captions[photo] or "-"} if self.captions else {})

    def _show(self, ids: Sequence[int]) -> Answer:
        """The numbers of each photo, and a sheet of them in reading order unless captions do."""
        if not ids or self.captions:
            return Answer({"photos": [self._row(i) for i in ids]})
        tiles = [sheets.tile(self._load(i), sheets.tile_side(self.sheet_px)) for i in ids]
        picture = self._picture(sheets.jpeg(sheets.sheet(tiles, self.sheet_px)), self.sheet_px)
        return Answer({"sheet": picture.name, "photos": [self._row(i) for i in ids]}, [picture])

    def _picture(self, jpeg: bytes, side: int) -> Picture:
        self.sheets += 1
        return Picture(jpeg, (side, side), f"unit-{self.case.unit:05d}-asked-{self.sheets}")
