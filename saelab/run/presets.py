"""The presets of conf/, read without Hydra: for Python callers, and for settings that name a preset."""

from pathlib import Path
from typing import Any

import saelab
from saelab.errors import UserError
from saelab.settings import nearest

ELSEWHERE = "save its weights in a file, and give sae=saelab.sae.convert.load(FILE) to saelab.Pipeline (docs/sae.md)"
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy")


def names_file(text: str) -> bool:
    """Does a text name a file of weights, or a folder, and no preset?"""
    return "/" in text or text.lower().endswith(WEIGHTS)


def unknown(group: str, name: str) -> UserError:
    """The error for a preset that does not exist, with the nearest that do."""
    if group == "sae" and names_file(name):
        return UserError(group, name, "is no preset of settings; SAEs of files come in by Python", ELSEWHERE)
    known = sorted(path.stem for path in (folder() / group).glob("*.yaml"))
    return UserError(group or "config", name, "unknown", f"{nearest(name, known)}known: {', '.join(known)}")


def folder() -> Path:
    """Where the configs are: inside the installed package, or beside it in a checkout."""
    package = Path(saelab.__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def preset(group: str, name: str) -> dict[str, Any]:
    """The settings of conf/<group>/<name>.yaml, over those of the preset that it starts from.

    Raises UserError for a preset that does not exist.
    """
    import yaml

    file = folder() / group / f"{name}.yaml"
    if not file.is_file():
        raise unknown(group, name)
    own = yaml.load(file.read_text(encoding="utf-8"), Loader=_loader())
    below = [entry for entry in own.pop("defaults", []) if entry != "_self_"]
    merged: dict[str, Any] = {}
    for entry in below:
        merged |= preset(group, entry)
    return merged | own


def _loader() -> type:
    """PyYAML's safe loader, with numbers such as 2e-3 read as numbers, as YAML 1.2 and OmegaConf do."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader
