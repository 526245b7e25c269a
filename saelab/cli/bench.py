"""Measure speed, one JSON line a case; the first line describes the machine.

Each line has case, tokens_per_s, seconds, gemm_seconds (the encoder product timed beside it in the same run), ratio
(seconds / gemm_seconds) and peak_mb. `peers=true` times the same step of every other SAE trainer that is installed;
with `cases=[quality]` it compares what they explain of held-out tokens (`fvu`, `dead_or_rare`) instead, each at its
best rate and, in `few_unused`, at the best that leaves at most 2 % of its latents dead or rare.
"""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from omegaconf import DictConfig

import saelab
from saelab import bench
from saelab.cli.edge import command, plain
from saelab.errors import UserError
from saelab.run.config import as_tuple
from saelab.run.device import choose_device
from saelab.settings import nearest

Cases = Callable[[], Iterator[dict[str, Any]]]


@command(
    "bench",
    settings=(
        "cases",
        "peers",
        "threads",
        "sae.shapes",
        "sae.k",
        "sae.rules",
        "sae.rounds",
        "quality.data",
        "sae_gpu.shapes",
        "sae_gpu.seconds",
    ),
    examples=(
        "bench cases=[sae,cache]",
        "bench cases=[] peers=true",
        "bench cases=[quality] quality.data=[PATH] peers=true",
        "bench cases=[sae_gpu]",
    ),
)
def main(cfg: DictConfig) -> None:
    """Run the chosen cases: all settings are looked at before the first of them takes its time."""
    chosen = check_all(plain(cfg))
    torch.set_num_threads(cfg.threads)
    print(json.dumps(machine()), flush=True)
    for cases in chosen:
        for record in cases():
            print(json.dumps(record), flush=True)


def check_all(given: Mapping[str, Any]) -> list[Cases]:
    """The chosen cases, each with its settings. Raises UserError for names and settings that can't be run."""
    if not isinstance(given["peers"], bool):
        raise UserError("peers", given["peers"], "expected true or false")
    check_number("threads", given["threads"])
    asked = list(as_tuple(given["cases"]))
    for name in asked:
        if name not in known():
            raise UserError("cases", name, f"unknown; {nearest(name, known())}known: {', '.join(known())}")
    more = given["peers"] and not {"quality", "peers"} & set(asked)
    return [case_of(name, given) for name in (*asked, *(["peers"] if more else []))]


def known() -> list[str]:
    """The modules of saelab.bench."""
    return sorted(p.stem for p in Path(bench.__file__).parent.glob("[a-z]*.py"))


def case_of(name: str, given: Mapping[str, Any]) -> Cases:
    """The cases of a module with the settings of its section. Raises UserError for those that it can't run with."""
    section = "sae" if name == "peers" else name
    settings = dict(given.get(section) or {})
    if name == "peers":
        settings.pop("screens", None)  # ours settles on the fastest
    cases = import_module(f"saelab.bench.{name}").cases
    hints = get_type_hints(cases)
    for setting, value in settings.items():
        check(f"{section}.{setting}", value, hints[setting])
    if name == "quality":
        settings["others"] = given["peers"]
    return partial(cases, **settings)


def check(setting: str, value: Any, kind: Any) -> None:
    """Raise UserError for a setting of a section that isn't of this kind: its numbers are counts, sizes and rates."""
    last = setting.rpartition(".")[2]
    if last == "shapes":
        if not isinstance(value, list) or not value or not all(map(_is_shape, value)):
            raise UserError(setting, value, "expected [d_in, latents, batch], one or more, of whole numbers from 1 on")
    elif kind in (int, float):
        check_number(setting, value, kind)
    elif get_origin(kind) is list and not isinstance(value, list):
        raise UserError(setting, value, "expected a list", f"for example {setting}=[{value}]")
    elif last == "device" and value != "cuda":  # without which a case says in its line that it has none
        choose_device(str(value))


def check_number(setting: str, value: Any, kind: type = int) -> None:
    """Raise UserError unless the value is a whole number of at least 1 (`kind` float: a number above 0)."""
    number = isinstance(value, int | kind) and not isinstance(value, bool)
    if not number or value <= 0:
        raise UserError(setting, value, "expected a whole number of at least 1" if kind is int else "a number above 0")


def _is_shape(shape: Any) -> bool:
    whole = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape)
    return whole and len(shape) == 3


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = f"torch {torch.__version__}, saelab {saelab.__version__}"
    return {"machine": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "versions": versions}


if __name__ == "__main__":
    main()
