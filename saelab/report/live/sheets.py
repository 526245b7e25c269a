"""Rating sheets to hand out: a page for each rater that holds its pictures and saves a CSV; and the key to keep."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader

from saelab.artifacts import read_json, write_csv, write_json
from saelab.errors import UserError
from saelab.files import read_csv
from saelab.images import ImageSet
from saelab.report.live.rating import Answer, Item, Study, StudySettings

CANT_SAY = "x"
SIDE = 144  # longer side of a picture on a sheet, pixels


def write(study: Study, images: ImageSet, raters: int, folder: Path) -> list[Path]:
    """Write `sheet-01.html` with `sheet-01.csv` (empty, to fill in by hand) ... and `key.json`; returns the pages.

    Each rater has another order. Raises UserError where `folder` holds the key of another study.
    """
    key = folder / "key.json"
    if key.is_file() and read_key(key).name != study.name:
        raise UserError("sheets", folder, "holds another study", "give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    template = Environment(loader=PackageLoader("saelab.report", "pages"), autoescape=True).get_template("sheet.html")
    pictures = {i: _picture(images, i) for i in sorted({i for item in study.items for i in item.images})}
    pages = []
    for number in range(1, raters + 1):
        name = f"sheet-{number:02d}"
        items = study.order(name)
        _empty(folder / f"{name}.csv", items)
        page = folder / f"{name}.html"
        text = template.render(name=name, study=study.name, items=items, pictures=pictures, credit=images.credit)
        page.write_text(text, encoding="utf-8")
        pages.append(page)
    write_json(key, {"study": study.name, "settings": study.settings, "items": study.items})
    return pages


def read_key(path: Path) -> Study:
    """The study of a `key.json`."""
    found = read_json(path)
    try:
        items = tuple(Item(**item | {"images": tuple(item["images"])}) for item in found["items"])
        return Study(found["study"], StudySettings(**found["settings"]), items)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError("key", path, f"is not a study's key ({error})", "give the key.json beside the sheets") from None


def read(paths: Sequence[Path], study: Study) -> list[Answer]:
    """Answers of returned CSVs, a rater each, named by their file. Raises UserError for an invalid answer."""
    codes = {item.code for item in study.items}
    if len({path.stem for path in paths}) < len(paths):
        raise UserError("sheets", ", ".join(map(str, paths)), "share a name", "name each after its rater")
    return [answer for path in paths for answer in _read(path, codes)]


def _empty(path: Path, items: list[Item]) -> None:
    """A CSV to fill in; an existing one stays, since it may hold answers."""
    if not path.exists():
        write_csv(path, [{"item": item.code, "rating": ""} for item in items])


def _read(path: Path, codes: set[str]) -> list[Answer]:
    lines = read_csv(path, "sheet", ("item", "rating"), "give a returned CSV")
    found: dict[str, Answer] = {}
    for number, row in lines:
        code, rating = (row["item"] or "").strip(), (row["rating"] or "").strip().lower()
        where = f"{path}, line {number}"
        if code not in codes or code in found:
            what = "twice" if code in found else "no item of this study"
            raise UserError("sheet", where, f"item {code[:40]!r}: {what}", "mend the line, or give the study's own key")
        if rating not in ("", CANT_SAY, "1", "2", "3", "4", "5"):
            raise UserError("sheet", where, f"rating {rating[:40]!r}", f"1 to 5, {CANT_SAY} for can't say, or nothing")
        if rating:
            found[code] = Answer(path.stem, code, None if rating == CANT_SAY else int(rating))
    return list(found.values())


def _picture(images: ImageSet, i: int) -> str:
    picture, file = images.load(i), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(file, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
