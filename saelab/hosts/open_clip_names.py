"""open_clip's names taken apart: architecture, weights, and the preprocessing that these were trained with."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.hosts.files import nearest

log = logging.getLogger("saelab")
_FIELDS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Choice:
    """What a name stands for."""

    architecture: str  # or hf-hub:REPO, local-dir:FOLDER
    weights: str  # a tag or a file; "" where none is named, or the architecture carries its own
    preprocess: dict[str, Any] | None  # mean, std, interpolation, resize_mode; None: open_clip's own choice is right


def parse(name: str, setting: str) -> Choice:
    """`ARCHITECTURE`, `ARCHITECTURE/TAG`, `/FILE` or `/TAG@FILE`, `hf-hub:REPO` or `local-dir:FOLDER`.

    A file says nothing of its preprocessing: it is taken from the tag, or from the architecture's tags where these
    agree. Raises UserError for an unknown architecture, a file whose preprocessing is open, and a tag that was trained
    with the other GELU.
    """
    import open_clip

    if name.startswith(("hf-hub:", "local-dir:")):
        return Choice(name, "", None)
    architecture, _, weights = name.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        raise UserError(setting, f"open_clip:{name}", "open_clip has no such model", nearest(architecture, known))
    tags = {tag: _settings(architecture, tag) for tag in open_clip.list_pretrained_tags_by_model(architecture)}
    tag, separator, file = weights.partition("@")
    if weights in tags or (separator and tag in tags):
        _require_same_gelu(architecture, tag, setting)
        return Choice(architecture, file or weights, tags[tag])
    if not weights or weights == "random":
        return Choice(architecture, weights, _agree(tags))
    if not Path(weights).expanduser().is_file():
        some = ", ".join(list(tags)[:6])
        remedy = f"known tags: {some}; or give a local checkpoint" if tags else "give a local checkpoint"
        raise UserError(setting, f"open_clip:{name}", "names neither a file nor a tag of open_clip", remedy)
    found = _agree(tags)
    if found is None and tags:
        remedy = f"name the tag too: open_clip:{architecture}/TAG@FILE, TAG one of {', '.join(list(tags)[:6])}"
        raise UserError(setting, f"open_clip:{name}", "its tags were trained with different preprocessing", remedy)
    _warn_of_gelu(architecture, weights, tags)
    return Choice(architecture, str(Path(weights).expanduser()), found)


def _settings(architecture: str, tag: str) -> dict[str, Any]:
    import open_clip

    found = open_clip.get_pretrained_cfg(architecture, tag)
    return {key: found[key] for key in _FIELDS if key in found}


def _agree(tags: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The preprocessing of all tags, where there is one."""
    found = list(tags.values())
    return found[0] if found and all(one == found[0] for one in found) else None


def _quick(architecture: str, tag: str | None = None) -> bool:
    import open_clip

    found = open_clip.get_pretrained_cfg(architecture, tag) if tag else open_clip.get_model_config(architecture)
    return bool((found or {}).get("quick_gelu", False))


def _twin(architecture: str) -> str:
    """The same architecture with the other GELU."""
    plain = architecture.removesuffix("-quickgelu")
    return f"{architecture}-quickgelu" if plain == architecture else plain


def _require_same_gelu(architecture: str, tag: str, setting: str) -> None:
    import open_clip

    if _quick(architecture) != _quick(architecture, tag) and _twin(architecture) in open_clip.list_models():
        kind = "QuickGELU" if _quick(architecture, tag) else "the exact GELU"
        what = f"the weights {tag} were trained with {kind}, which this architecture doesn't compute"
        raise UserError(setting, f"open_clip:{architecture}/{tag}", what, f"use open_clip:{_twin(architecture)}/{tag}")


def _warn_of_gelu(architecture: str, weights: str, tags: dict[str, dict[str, Any]]) -> None:
    other = [tag for tag in tags if _quick(architecture, tag) != _quick(architecture)]
    if other:
        message = "open_clip:%s/%s: weights like %s need %s, whose GELU is another (QuickGELU mismatch)"
        log.warning(message, architecture, weights, ", ".join(other[:3]), _twin(architecture))
