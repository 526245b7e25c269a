"""What Hydra says about a command line, in one line with the nearest names that do exist."""

import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parent.parent / "conf"


def told(error: Exception, config_name: str) -> str:
    """One line for an exception of Hydra's: the setting, what is wrong, the nearest ones."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return f"{group or 'config'}={name}: unknown; {nearest(name, known)}known: {', '.join(known)}"
    for given in sys.argv[1:]:
        key = given.lstrip("+~").partition("=")[0]
        if f"'{key}'" in str(error):
            if "=" not in given:
                return f"{given}: has no value; write {given}=VALUE"
            near = nearest(key, list(names(config_name))) or f"see conf/{config_name}.yaml"
            return f"{key}: there is no such setting; {near}".strip()
    said = " ".join(str(error).partition("See https")[0].split())
    return f"command line: {said}; put values with spaces, = or brackets in quotes: \"images.root='/my photos'\""


def nearest(word: str, known: list[str]) -> str:
    """`did you mean ...`, or nothing where no name is like it."""
    close = get_close_matches(word, known, 3, 0.6)
    return f"did you mean {' or '.join(close)}? " if close else ""


def names(config_name: str) -> Iterator[str]:
    """The dotted names of all settings."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(config_name)
    yield from _names(OmegaConf.to_container(cfg, resolve=False), "")


def _names(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in ((str(k), v) for k, v in node.items()):
            yield f"{prefix}{key}"
            yield from _names(value, f"{prefix}{key}.")
