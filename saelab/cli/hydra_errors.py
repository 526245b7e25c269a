"""What Hydra says about a command line, in one line with the nearest names that do exist."""

import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from saelab.run.presets import folder, unknown
from saelab.settings import nearest


def explain(error: Exception, config_name: str) -> str:
    """One line for an exception of Hydra's: the setting, what is wrong, the nearest ones."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, slash, name = str(error.missing_cfg_file).partition("/")  # a name may be a path
        return str(unknown(group, name) if slash else unknown("", group))
    for given in sys.argv[1:]:
        key = given.lstrip("+~").partition("=")[0]
        if f"'{key}'" in str(error):
            if "=" not in given:
                return f"{given}: has no value; write {given}=VALUE"
            known = list(names(config_name))
            if "sae" in known and key in set(_left_out()):
                return f"{given}: the preset doesn't name it; write +{given}"
            near = nearest(key, known) or f"`saelab {config_name} --help` lists the usual ones"
            return f"{key}: there is no such setting; {near}".strip()
    said = " ".join(str(error).partition("See https")[0].split())
    return f"command line: {said}; put values with spaces, = or brackets in quotes: \"images.root='/my photos'\""


def names(config_name: str) -> Iterator[str]:
    """The dotted names of all settings."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder()), version_base="1.3"):
        cfg = compose(config_name)
    yield from _names(OmegaConf.to_container(cfg, resolve=False), "")


def _left_out() -> Iterator[str]:
    """The dotted names of all fields of an SAE and its training; a preset holds those that it changes."""
    from saelab.sae import SAEConfig, TrainConfig

    for kind, prefix in ((SAEConfig, "sae."), (TrainConfig, "sae.train.")):
        yield from (prefix + field.name for field in fields(kind) if field.name != "d_in")


def _names(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in ((str(k), v) for k, v in node.items()):
            yield f"{prefix}{key}"
            yield from _names(value, f"{prefix}{key}.")
