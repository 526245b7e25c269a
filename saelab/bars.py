"""How far long work has come: a bar where somebody looks on, else a line with the rate now and then, as a log keeps."""

import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

EVERY = 30.0  # seconds between lines, and before the first one: what takes less needs none
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {rate_fmt}, {elapsed} so far, about {remaining} to go{postfix}"
OPEN = "{desc}: {n_fmt} {unit}, {rate_fmt}, {elapsed} so far{postfix}"  # where nobody knows how much there is


def show(
    items: Iterable[Any] | None = None,
    *,
    what: str | None = None,
    unit: str = "it",
    total: int | None = None,
    initial: int = 0,
    scaled: bool = False,
    leave: bool = False,
    hidden: bool = False,
) -> Any:
    """A tqdm over `items`, or one that `update(n)` moves on; it is closed by `with` or by its end.

    On a terminal and in a notebook it is a bar; `leave`: it stays when the work is done. Elsewhere (a file, a pipe, a
    job of a cluster) it writes a line every `EVERY` seconds. `initial` of `total` are there already; `scaled`: in
    thousands and millions. Eight parameters: tqdm's, each with a default.
    """
    given: dict[str, Any] = {"desc": what, "unit": unit, "total": total, "initial": initial, "unit_scale": scaled}
    if hidden or sys.stderr is None:
        given["disable"] = True  # else the environment's TQDM_DISABLE says
    if sys.stderr is None or _is_watched():
        from tqdm.auto import tqdm

        return tqdm(items, **given, leave=leave)
    return _lines()(items, **given, leave=False)


def _is_watched() -> bool:
    """Whether standard error is a terminal, or a notebook draws the bar."""
    if sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


@cache
def _lines() -> Any:
    from tqdm.std import tqdm

    class Lines(tqdm):
        """A tqdm that writes lines."""

        monitor_interval = 0  # it asks the time at every update, so no thread has to

        def __init__(self, items: Iterable[Any] | None, **given: Any) -> None:
            pace = {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "miniters": 1}
            super().__init__(items, **given, **pace)
            self.bar_format = LINE if self.total else OPEN

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if msg is None:  # "" would clear a bar
                self.fp.write(" ".join(str(self).split()) + "\n")
                self.fp.flush()

    return Lines
