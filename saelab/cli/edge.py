"""What every command shares: Hydra at the edge, and one line with the remedy for whatever a user can mend."""

import errno
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from saelab.cli.pipes import leave_if_unread
from saelab.errors import UserError
from saelab.report.reading import open_record
from saelab.run.config import RunConfig
from saelab.run.making import Stages
from saelab.run.memory import keep_pages
from saelab.run.presets import folder
from saelab.settings import check_types

# A root without permission, on a read-only disk, or where a file has the name of a folder.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
NUMBER = re.compile(r"""(?<![^\[,\s])\d+(\.\d+)*(?![^\],\s])""")  # one that stands by itself
Main = Callable[[DictConfig], None]


@dataclass(frozen=True)
class Help:
    """What `saelab COMMAND --help` shows beside the command's docstring."""

    settings: Sequence[str]  # the most used ones; the configs' comments say what they mean
    examples: Sequence[str]  # command lines without `saelab`


def command(
    name: str,
    settings: Sequence[str] = (),
    examples: Sequence[str] = (),
    types: Mapping[str, Any] | None = None,
) -> Callable[[Main], Callable[[], None]]:
    """Make `main(cfg)` a Hydra command: progress on stderr, a user's mistake as one line, exit status 2.

    `name`: of the command and of its config; `settings`, `examples`: for --help. `types`: of settings that no dataclass
    checks, such as `{"out": str | None}`.
    """

    def decorate(main: Main) -> Callable[[], None]:
        @functools.wraps(main)
        def guarded(cfg: DictConfig) -> None:
            _prepare()
            try:
                check_types({key: plain(cfg[key]) for key in types or ()}, types or {})
                main(cfg)
            except UserError as error:
                sys.exit(complain(str(error)))
            except KeyboardInterrupt:
                sys.exit(complain("stopped; run the same command again to go on", 130))
            except Exception as error:
                if isinstance(error, BrokenPipeError):
                    leave_if_unread()
                cause = _system_cause(error, cfg.get("root"))
                if cause is None:
                    raise
                sys.exit(complain(cause))

        start = hydra.main(version_base="1.3", config_path=str(folder()), config_name=name)(guarded)

        @functools.wraps(main)
        def wrapped() -> None:
            if {"-h", "--help"} & set(sys.argv[1:]):
                from saelab.cli.help import print_help

                return print_help(name, sys.modules[main.__module__].__doc__ or "", Help(settings, examples))
            sys.argv[1:] = [own for given in sys.argv[1:] for own in _spell(given)]
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would else print over several lines
            return _start(start, name)

        return wrapped

    return decorate


def stages(cfg: DictConfig, *own: str, **changes: Any) -> Stages:
    """The stages of a command's config. `own`: its settings that are not the run's; `changes`: those given instead."""
    given = {name: value for name, value in plain(cfg).items() if name not in own}
    config = RunConfig.of(given | changes)
    return Stages(config)


def dry_run(made: Stages) -> bool:
    """Whether only the cost of proposals is asked for; then it is printed."""
    if not made.config.proposer.dry_run:
        return False
    for basis, units, taken in made.estimates():
        print(f"{basis.layer}  {basis.name}, {units} units: {taken}")
    return True


def plain(config: Any) -> Any:
    """A config node as plain dicts and lists, interpolations resolved. Raises UserError for what can't be resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    except Exception as error:  # OmegaConf's own errors: a missing value, an interpolation to nothing
        text = str(error).splitlines()[0]
        missing = re.search(r"Missing mandatory value: ([\w.]+)", text)
        if missing is None:
            raise UserError("config", "", text, "give the value on the command line") from None
        name = {"host.layers": "layers"}.get(missing[1], missing[1])
        hint = "; `saelab layers host=NAME` lists a model's" if name == "layers" else ""
        raise UserError(name, "???", "has no default", f"give {name}=VALUE on the command line{hint}") from None


def run_file(value: Any) -> Path:
    """The record of a run that a command is to read. Raises UserError, with the command that makes one."""
    path = Path(str(value)).expanduser()
    if path.is_file():
        open_record(path)
        return path
    inside = sorted(p.name for p in path.glob("*.json")) if path.is_dir() else []
    what = "is a folder" if path.is_dir() else "is not there"
    remedy = f"give run={path / inside[0]}" if inside else "`saelab quickstart` makes runs/quickstart.json"
    raise UserError("run", path, what, remedy)


def complain(text: str, status: int = 2) -> int:
    """Print one line for the user; the exit status."""
    print(f"saelab: {text}", file=sys.stderr)
    return status


def _spell(given: str) -> list[str]:
    """What a person types, as Hydra reads it: `~` is home, and `host=timm:resnet50` names a model, not a config.

    `units=3,17` is one choice of units, where Hydra would see a sweep, and `units=3` one unit, not a number.
    A layer of nn.Sequential is `layers=[3.10]`, which is not 3.1.
    """
    name, equals, value = given.partition("=")
    if equals and value.startswith("~"):
        value = str(Path(value).expanduser())
        given = f"{name}={value}"
    if name in ("host", "encoder") and ":" in value and not (folder() / name / f"{value}.yaml").is_file():
        return [f"{name}=own" if name == "host" else f"{name}=conse", f"{name}.name={value}"]
    if name in ("layers", "host.layers", "pattern"):
        return [f"{name}={NUMBER.sub(lambda found: repr(found[0]), value)}"]
    if name.lstrip("+").split(".")[-1] == "units" and re.fullmatch(r"\d+|[\w:., -]*,[\w:., -]*", value):
        return [f"{name}='{value}'"]
    return [given]


def _prepare() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("saelab").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its lines itself
    keep_pages()
    warnings.filterwarnings("ignore", message=".*Sparse (CSR tensor support|invariant checks).*")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        print(f"# {' '.join(HydraConfig.get().overrides.task) or 'as configured'}", flush=True)


def _start(start: Callable[[], None], name: str) -> None:
    try:
        start()
    except HydraException as error:
        from saelab.cli.hydra_errors import explain

        sys.exit(complain(explain(error, name)))
    except KeyboardInterrupt:
        sys.exit(complain("stopped", 130))
    except Exception as error:  # a launcher's, which repeats what a job has said elsewhere
        lines = [line for line in str(error).splitlines() if line.startswith("saelab: ")]
        if not lines:
            raise
        sys.exit(complain(lines[-1].removeprefix("saelab: ")))


def _system_cause(error: Exception, root: str | None) -> str | None:
    """What a user can do about a full disk or a path that can't be used; None for any other error."""
    from saelab.images.user_cache import user_cache

    name = getattr(error, "filename", None)
    # safetensors reports a full disk in an exception of its own, with the system's words in its text.
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
