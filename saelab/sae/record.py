"""What the SAE in a folder was made from: `training.json`, written before the SAE, so that none is trained over."""

import math
from pathlib import Path
from typing import Any

from saelab import artifacts
from saelab.errors import UserError

FILE = "training.json"
CLOSE = 1e-9  # of the activations' spread: moments that another machine or another number of threads adds up
SHOWN = 3  # differences that a message names
SCREENS = {False: "float32", True: "bfloat16"}  # `sae.screen`, as it was written when there were no others

Recipe = dict[str, Any]


def write(folder: Path, recipe: Recipe) -> None:
    """Say what the SAE that is about to be written was made from: its settings, and what tells its data from others."""
    artifacts.write_json(folder / FILE, recipe)


def holds(folder: Path, recipe: Recipe) -> bool:
    """Whether the finished SAE of this recipe lies in the folder; False where there is none.

    The number of processes that trained it makes no difference. Raises UserError for an SAE of another recipe, and for
    one that doesn't say what it was made from (no training.json).
    """
    if not (folder / "sae.safetensors").exists():
        return False
    remedy = "SAE.load reads it; give another folder, or delete this one to train it anew"
    if not (folder / FILE).exists():
        problem = f"holds an SAE, and no {FILE} that says what it was trained on"
        raise UserError("folder", folder, problem, remedy)
    other = _differences(artifacts.read_json(folder / FILE), artifacts.plain(recipe))
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        problem = f"holds a finished SAE of another recipe: {', '.join(other[:SHOWN])}{more}"
        raise UserError("folder", folder, problem, remedy)
    return True


def _differences(there: Recipe, here: Recipe) -> list[str]:
    """The settings that are not the same, as `section.name was 3, is 4`; moments need only be close."""
    old, new = _flat(there), _flat(here)
    close = CLOSE * math.sqrt(new["data.variance"])
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        a, b = old.get(name, "not there"), new.get(name, "not there")
        if name == "data.processes" or a == b or (name in ("data.mean", "data.variance") and _near(a, b, close)):
            continue
        found.append(f"{name} differs" if isinstance(a, list) else f"{name} was {a}, is {b}")
    return found


def _near(a: Any, b: Any, close: float) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_near(x, y, close) for x, y in zip(a, b))
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=CLOSE, abs_tol=close)


def _flat(recipe: Recipe) -> Recipe:
    """{"sae": {"k": 4}, "steps": 9} -> {"sae.k": 4, "steps": 9}; a screen by its name."""
    flat: Recipe = {}
    for name, value in recipe.items():
        flat |= {f"{name}.{n}": v for n, v in value.items()} if isinstance(value, dict) else {name: value}
    screen = flat.get("sae.screen")
    return flat | {"sae.screen": SCREENS[screen]} if isinstance(screen, bool) else flat
