"""The page of one explained picture: what the host says, the units that carry it, and where they do."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saelab.report.maps import box

SIDE = 320  # of the picture on the page, pixels
FOR, AGAINST = (194, 71, 43), (43, 98, 194)  # colours of what speaks for the output, and against it
FIVE = ((230, 97, 1), (0, 114, 178), (0, 158, 115), (204, 64, 140), (214, 178, 0))  # colours of a class' units
STRENGTH = 0.75  # opacity at the strongest place


def crop_to_seen(image: Image.Image, transform: Mapping[str, Any]) -> Image.Image:
    """The part of a picture that the host saw, SIDE pixels high."""
    short = min(image.size)
    width, height = (share * short for share in box(image.size, False, dict(transform)))
    width, height = min(width, image.size[0]), min(height, image.size[1])
    left, top = (image.size[0] - width) / 2, (image.size[1] - height) / 2
    size = (max(1, round(SIDE * width / height)), SIDE)
    return image.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))


def write_explanation(path: Path, found: Mapping[str, Any], seen: Image.Image) -> None:
    """One page that needs nothing beside it. `found`: explanation.json; `seen`: as `crop_to_seen` gives it."""
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("saelab.report", "pages"), autoescape=True).get_template("explain.html")
    bases = [_basis(basis, seen) for basis in found["bases"]]
    path.write_text(template.render(found=found, bases=bases, picture=_data(seen)), encoding="utf-8")


def _basis(basis: Mapping[str, Any], seen: Image.Image) -> dict[str, Any]:
    """A basis with its maps as pictures; one scale for all units, so that a weak one looks weak."""
    reach = max((abs(unit["effect"]) for unit in basis["units"]), default=0.0) or 1.0
    top = max((np.abs(unit["where"]).max() for unit in basis["units"] if unit["where"]), default=0.0)
    small = seen.resize((seen.size[0] // 2, seen.size[1] // 2))
    rows = [
        unit
        | {"share": 100 * abs(unit["effect"]) / reach, "map": _map(small, unit["where"], top)}
        | {"cause": _map(small, unit.get("causes"), None)}
        for unit in basis["units"]
    ]
    own = _class(seen, basis["class"]) if basis.get("class") else None
    return {
        **basis,
        "units": rows,
        "caused": any(row["cause"] for row in rows),
        "map": _map(seen, basis["where"], None),
        "carried": own,
    }


def _class(seen: Image.Image, found: Mapping[str, Any]) -> dict[str, Any]:
    """What usually carries the class: a colour for each of its units, and the places of both maps."""
    if found["why"]:
        return dict(found)
    maps = [unit["where"] for unit in found["units"]]
    units = [unit | {"colour": "#{:02x}{:02x}{:02x}".format(*FIVE[i])} for i, unit in enumerate(found["units"])]
    pictures = {name: _map(seen, found[name], None) for name in ("usual", "own")}
    return {**found, "units": units, "coloured": _coloured(seen, maps), **pictures}


def _coloured(seen: Image.Image, maps: list[list[list[float]]]) -> str:
    """The picture with each map's places in its own colour, mixed where they overlap."""
    grown = [Image.fromarray(np.array(own, np.float32)).resize(seen.size, Image.Resampling.BICUBIC) for own in maps]
    shares = np.stack([np.clip(np.asarray(own), 0, 1) for own in grown])[..., None]
    colours = np.array(FIVE[: len(maps)], np.float32)[:, None, None]
    mixed = (shares * colours).sum(0) / shares.sum(0).clip(min=1e-6)
    weight = STRENGTH * shares.max(0)
    pixels = np.asarray(seen.convert("L").convert("RGB"), np.float32)
    return _data(Image.fromarray(np.round((1 - weight) * pixels + weight * mixed).astype(np.uint8)))


def _map(seen: Image.Image, where: list[list[float]] | None, top: float | None) -> str | None:
    """The picture with what speaks for the output in one colour and what speaks against it in another."""
    if where is None:
        return None
    values = np.array(where, np.float32)
    scale = top if top is not None else float(np.abs(values).max())
    shares = Image.fromarray(values / (scale or 1.0)).resize(seen.size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(shares), -1, 1)[..., None]
    pixels = np.asarray(seen.convert("L").convert("RGB"), np.float32)
    colour = np.where(share > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    weight = STRENGTH * np.abs(share)
    return _data(Image.fromarray(np.round((1 - weight) * pixels + weight * colour).astype(np.uint8)))


def _data(image: Image.Image) -> str:
    written = io.BytesIO()
    image.convert("RGB").save(written, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
