"""What every script shares: Hydra at the edge, and one line with the remedy for whatever a user can mend."""

import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from saelab.errors import UserError

HERE = Path(__file__).resolve().parent
# A root without permission, on a read-only disk, or where a file has the name of a folder.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make `main(cfg)` a Hydra command: progress on stderr, a user's mistake as one line, exit status 2."""

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def guarded(cfg: DictConfig) -> None:
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
            logging.getLogger("saelab").setLevel(logging.INFO)
            warnings.filterwarnings("ignore", message=".*Sparse (CSR tensor support|invariant checks).*")
            try:
                main(cfg)
            except UserError as error:
                sys.exit(_told(str(error)))
            except KeyboardInterrupt:
                sys.exit(_told("stopped; run the same command again to go on", 130))
            except Exception as error:
                cause = _of_the_system(error, cfg.get("root"))
                if cause is None:
                    raise
                sys.exit(_told(cause))

        start = hydra.main(version_base="1.3", config_path="../conf", config_name=config_name)(guarded)

        @functools.wraps(main)
        def wrapped() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would else print over several lines
            # Jobs that a launcher starts elsewhere have to find the modules beside this one.
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
            try:
                start()
            except HydraException as error:
                from mistakes import told

                sys.exit(_told(told(error, config_name)))
            except KeyboardInterrupt:
                sys.exit(_told("stopped", 130))
            except Exception as error:  # a launcher's, which repeats what a job has told elsewhere
                said = [line for line in str(error).splitlines() if line.startswith("saelab: ")]
                if not said:
                    raise
                sys.exit(_told(said[-1].removeprefix("saelab: ")))

        return wrapped

    return decorate


def _of_the_system(error: Exception, root: str | None) -> str | None:
    """What a user can do about a full disk or a path that can't be used; None for any other error."""
    from saelab.images.user_cache import user_cache

    name = getattr(error, "filename", None)
    # safetensors tells of a full disk in an exception of its own, with the system's words in its text.
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
        where = f" while writing {name}" if name else ""
        return f"disk full{where}: free some space and run the same command again; finished work is kept"
    if not isinstance(error, OSError) or not name:
        return None
    places = {"give a folder that can be written to, for example root=PATH": root}
    places["set SAELAB_CACHE to a folder that can be written to"] = str(user_cache())
    for remedy, place in places.items():
        # Where nothing can be made, as below /proc, making a folder says that it isn't there.
        unmade = error.errno == errno.ENOENT and place is not None and Path(place).is_relative_to(str(name))
        inside = place is not None and Path(str(name)).is_relative_to(place)
        if unmade or (inside and error.errno in UNUSABLE):
            return f"{name}: {error.strerror}; {remedy}"
    if error.errno in UNUSABLE:
        return f"{name}: {error.strerror}; {next(iter(places))}"
    return None


def several(value: Any) -> list[Any]:
    """A setting that may be one value or a list, as a list without repetitions."""
    value = plain(value)
    return list(dict.fromkeys(value if isinstance(value, list) else [value]))


def _told(text: str, status: int = 2) -> int:
    print(f"saelab: {text}", file=sys.stderr)
    return status


def plain(config: Any) -> Any:
    """A config node as plain dicts and lists, interpolations resolved. Raises UserError for what can't be resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    except Exception as error:  # OmegaConf's own errors: a missing value, an interpolation to nothing
        raise UserError("config", "", str(error).splitlines()[0], "give the value on the command line") from None


def device(name: str) -> str:
    """`auto` as the best device there is; any other name is checked. Raises UserError for one that is not there."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there.get(name.split(":")[0], False):
        have = ", ".join(kind for kind, found in there.items() if found)
        raise UserError("device", name, "is not on this machine", f"use auto or one of: {have}")
    return name
