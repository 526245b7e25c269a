"""What a model is shown: where each tile lands, what heat does to it, what a crop holds."""

import io
import math

import numpy as np
import pytest
from pictures import Pictures
from PIL import Image

from saelab.errors import UserError
from saelab.label import sheets
from saelab.label.proposal import Case
from saelab.label.vlm.chat import Picture
from saelab.label.vlm.show import Look

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (250, 0, 250), (0, 250, 250), (9, 9, 9)]


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_tiles_lie_in_reading_order_and_a_missing_one_leaves_its_place_blank():
    tiles = [plain(c, (50, 50)) for c in COLOURS[:4]] + [None] + [plain(c, (50, 50)) for c in COLOURS[4:]]
    sheet = sheets.sheet(tiles, 450)
    assert sheet.size == (450, 450)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, 3)
        middle = sheet.getpixel((column * 150 + 75, row * 150 + 75))
        assert middle == (sheets.PAPER if tile is None else tile.getpixel((0, 0)))
    assert sheet.getpixel((225, 225 + 150)) == COLOURS[6] and sheet.getpixel((375, 375)) == sheets.PAPER


def test_a_tile_shows_the_whole_picture_in_its_proportions():
    picture = plain((9, 9, 9), (300, 100))
    tile = sheets.tile(picture, 90)
    dark = np.asarray(tile)[..., 0] < 128
    assert tile.size == (90, 90) and dark.any(1).sum() == 30 and dark.any(0).sum() == 90


def test_tiles_of_a_default_sheet_are_legible():
    assert sheets.tile_side(Look().sheet_px) >= 224 and sheets.SMALLEST == 448
    with pytest.raises(UserError, match=r"proposer\.sheet_px=447: must be at least 448"):
        sheets.sheet([], 447)
    with pytest.raises(UserError, match=r"proposer\.tiles"):
        sheets.tile(plain((0, 0, 0)), 90, "sepia")


def test_heat_colours_where_it_is_and_leaves_the_rest_alone():
    picture = plain((40, 80, 200), (70, 70))
    heat = np.zeros((7, 7), dtype=np.float32)
    heat[:, 5:] = 1.0  # the right end
    shown = np.asarray(sheets.overlay(picture, heat)).astype(int)
    assert (shown[:, :35] == (40, 80, 200)).all()
    assert shown[35, 68].tolist() == [round(40 * 0.4 + 255 * 0.6), round(80 * 0.4 + 255 * 0.6), round(200 * 0.4)]


def test_a_crop_holds_the_hot_points_and_little_else():
    heat = np.zeros((10, 10))
    heat[6, 2] = 1.0
    heat[7, 3] = 0.6
    heat[0, 9] = 0.4  # below half of the largest: not hot
    left, top, right, bottom = sheets.hot_box(heat, (200, 100))
    assert left <= 40 and right >= 80 and top <= 60 and bottom >= 80  # columns 2-3 of 20 px, rows 6-7 of 10 px
    assert (right - left, bottom - top) == (40, 36)  # wide enough as it is; the height widened to 35 %, rounded out
    assert sheets.hot_box(np.zeros((10, 10)), (200, 100)) == (0, 0, 200, 100)
    corner = np.zeros((10, 10))
    corner[9, 9] = 1.0
    assert sheets.hot_box(corner, (200, 100)) == (165, 65, 200, 100)  # kept inside the picture


def test_crops_are_of_positives_only_and_heat_is_asked_for_by_unit_and_image():
    asked = []

    def heat(unit: int, image: int) -> np.ndarray:
        asked.append((unit, image))
        return np.eye(4, dtype=np.float32)

    case = Case(7, "contrast", (1, 2), (3, -1), Pictures(), heat)
    Look(tiles="crop").positives(case)
    assert asked == [(7, 1), (7, 2)]
    Look(tiles="crop").contrasts(case)
    assert asked == [(7, 1), (7, 2)]
    Look(tiles="heatmap").contrasts(case)
    assert asked[2:] == [(7, 3)]


def test_parts_keep_their_numbers_when_a_contrast_is_missing():
    case = Case(7, "contrast", (1, 2, 3), (4, -1, 5), Pictures())
    parts = Look(layout="parts", part_px=64).contrasts(case)
    assert [p if isinstance(p, str) else p.name for p in parts] == [
        "Look-alike 1: ",
        "unit-00007-contrasts-1",
        "\nLook-alike 3: ",
        "unit-00007-contrasts-3",
    ]
    assert Look().contrasts(Case(7, "contrast", (1,), (-1,), Pictures())) == []


def test_pictures_survive_the_jpeg():
    case = Case(7, "positives", tuple(range(9)), (), Pictures(size=(300, 300)))
    (picture,) = Look().positives(case)
    assert isinstance(picture, Picture)
    sent = np.asarray(Image.open(io.BytesIO(picture.jpeg)), dtype=float)
    drawn = [sheets.tile(case.images.load(i), sheets.tile_side(896)) for i in case.positives]
    error = np.mean((sent - np.asarray(sheets.sheet(drawn, 896), dtype=float)) ** 2)
    assert 10 * math.log10(255**2 / error) > 30  # PSNR in dB
