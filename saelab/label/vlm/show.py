"""A unit's images as the pictures of a request: one sheet a set, or one picture a photo."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from saelab.errors import UserError
from saelab.label import sheets
from saelab.label.proposal import Case, HeatMap
from saelab.label.vlm.chat import Picture

if TYPE_CHECKING:
    from saelab.images import ImageSet

LAYOUTS = ("sheet", "parts", "captions")
CAPTION = 60  # characters of a caption, for estimates


@dataclass(frozen=True)
class Look:
    """How photos are put before a model."""

    layout: str = "sheet"  # sheet: a 3×3 grid per set; parts: each photo as a picture of its own; captions: texts
    tiles: str = "raw"  # raw | heatmap | crop | otsu; all but raw need heat maps
    sheet_px: int = 896  # side of a sheet: with 896, a tile has 292 pixels
    part_px: int = 448  # side of a photo in the layout `parts`

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UserError("proposer.layout", self.layout, f"must be one of {', '.join(LAYOUTS)}")
        if self.tiles not in sheets.TILES:
            raise UserError("proposer.tiles", self.tiles, f"must be one of {', '.join(sheets.TILES)}")
        if self.sheet_px < sheets.SMALLEST:
            raise UserError("proposer.sheet_px", self.sheet_px, f"must be at least {sheets.SMALLEST}")

    def check(self, case: Case) -> None:
        """Raise UserError where these units have no tiles of this style."""
        if self.tiles != "raw" and case.heat is None:
            raise UserError("proposer.tiles", self.tiles, "needs heat maps, which these units lack", "use tiles=raw")
        if self.layout == "captions" and not any(case.images.captions):
            raise UserError("proposer.layout", self.layout, "nobody described these pictures", "use sheet or parts")

    def positives(self, case: Case) -> list[str | Picture]:
        """The case's positives."""
        if self.layout == "captions":
            return _describe(case, case.positives, "Photo")
        tiles = [self._tile(case.images, case.unit, image, case.heat, self.tiles) for image in case.positives]
        return self._group(tiles, f"unit-{case.unit:05d}-positives", "Photo")

    def contrasts(self, case: Case) -> list[str | Picture]:
        """The case's contrasts, each at its positive's place; [] if there are none. Never cropped: nothing fires."""
        if all(image < 0 for image in case.contrasts):
            return []
        if self.layout == "captions":
            return _describe(case, case.contrasts, "Look-alike")
        style = "raw" if self.tiles in ("crop", "otsu") else self.tiles
        tiles = [
            None if image < 0 else self._tile(case.images, case.unit, image, case.heat, style)
            for image in case.contrasts
        ]
        return self._group(tiles, f"unit-{case.unit:05d}-contrasts", "Look-alike")

    def photos(self, images: "ImageSet", ids: Sequence[int], name: str) -> list[str | Picture]:
        """Numbered photos, raw, each a picture of its own."""
        return self.numbered([images.load(image) for image in ids], name)

    def numbered(self, photos: Sequence[Image.Image], name: str) -> list[str | Picture]:
        """Numbered pictures that are drawn already, each on its own."""
        tiles: list[Image.Image | None] = [sheets.tile(photo, self.part_px) for photo in photos]
        return _number(tiles, name, "Photo", self.part_px)

    def made(self, case: Case) -> list[str | Picture]:
        """Pictures made to raise the unit, numbered. Raises UserError for one that is gone."""
        pictures: list[Image.Image | None] = []
        for path in case.made:
            try:
                with Image.open(path) as picture:
                    pictures.append(sheets.tile(picture, self.part_px))
            except OSError as error:
                raise UserError("proposer.synthesised", path, f"is unreadable ({error})", "synthesise again") from None
        return _number(pictures, f"unit-{case.unit:05d}-made", "Picture", self.part_px)

    def outline(self, count: int, name: str) -> list[str | Picture]:
        """Pictures (or text) of the right number and size without content: enough for an estimate."""
        if count == 0:
            return []
        if self.layout == "captions":
            return ["." * CAPTION * count]
        sizes = [self.sheet_px] if self.layout == "sheet" else [self.part_px] * count
        return [Picture(b"", (side, side), f"{name}-{i}") for i, side in enumerate(sizes)]

    def _tile(self, images: "ImageSet", unit: int, image: int, heat: HeatMap | None, style: str) -> Image.Image:
        side = self.part_px if self.layout == "parts" else sheets.tile_side(self.sheet_px)
        heat_map = heat(unit, image) if heat is not None and style != "raw" else None
        return sheets.tile(images.load(image), side, style, heat_map)

    def _group(self, tiles: Sequence[Image.Image | None], name: str, word: str) -> list[str | Picture]:
        if self.layout == "parts":
            return _number(tiles, name, word, self.part_px)
        side = self.sheet_px
        return [Picture(sheets.jpeg(sheets.sheet(tiles, side)), (side, side), name)]


def _describe(case: Case, ids: Sequence[int], word: str) -> list[str | Picture]:
    """What people wrote of the images, a line each; `-` where they wrote nothing."""
    lines = [f"{word} {n}: {case.images.captions[i] or '-'}" for n, i in enumerate(ids, start=1) if i >= 0]
    return ["\n".join(lines)]


def _number(tiles: Sequence[Image.Image | None], name: str, word: str, side: int) -> list[str | Picture]:
    parts: list[str | Picture] = []
    for number, picture in enumerate(tiles, start=1):
        if picture is not None:
            parts.append(f"\n{word} {number}: " if parts else f"{word} {number}: ")
            parts.append(Picture(sheets.jpeg(picture), (side, side), f"{name}-{number}"))
    return parts
