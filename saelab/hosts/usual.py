"""Which layers people usually look at: residual stream, MLP hidden, maps after an activation, block outputs."""

import re

from torch import nn

from saelab.hosts.layers import Probe
from saelab.hosts.tokens import Form

_ACTIVATION = re.compile(
    r"(relu|gelu|silu|swish|mish|elu|hardtanh|softplus|tanh|sigmoid|activation|^act)", re.IGNORECASE
)
_NUMBERED = re.compile(r"^(.*?)[._]?(\d+)$")


def usual(modules: dict[str, nn.Module], found: Probe) -> dict[str, str]:
    """Layer name -> why it is a usual choice, for a model that has been probed."""
    blocks, stages = _blocks(modules)
    stream = max((_form(found, path).d_in for path in blocks if _kind(found, path) == "sequence"), default=0)
    reasons: dict[str, str] = {}
    for (path, takes_input, call), form in found.forms.items():
        if form is None or path not in modules:
            continue
        reason = _reason(modules[path], path, takes_input, form, path in blocks, stream)
        if not reason and not takes_input and path in stages and form.kind != "vector":
            reason = "stage output"
        if reason:
            reasons[found.name(path, takes_input, call)] = reason
    return _without_echoes(reasons, found)


def _reason(module: nn.Module, path: str, takes_input: bool, form: Form, is_block: bool, stream: int) -> str:
    if takes_input:
        if (
            form.kind == "map"
            and "pool" in type(module).__name__.lower()
            and "adaptive" in type(module).__name__.lower()
        ):
            return "what the head pools"
        wide = isinstance(module, nn.Linear) and module.in_features > 2 * module.out_features
        return "MLP hidden" if wide and form.kind == "sequence" and module.out_features == stream else ""
    if is_block:
        return "residual stream" if form.kind == "sequence" else "block output" if form.kind == "map" else ""
    if _is_activation(module) and form.kind == "sequence":
        return "MLP hidden" if form.d_in > stream else ""
    spatial = form.kind == "map" and max(form.shape[:2] if form.channels == 3 else form.shape[1:]) > 1
    return "after activation" if _is_activation(module) and spatial else ""


def _is_activation(module: nn.Module) -> bool:
    leaf = next(module.children(), None) is None
    return leaf and not any(True for _ in module.parameters()) and bool(_ACTIVATION.search(type(module).__name__))


def _blocks(modules: dict[str, nn.Module]) -> tuple[set[str], set[str]]:
    """Paths of numbered modules with an inside, of which two siblings at least share a class: a model's blocks.

    Of nested ones the innermost are the blocks; those around them, and numbered `Sequential`s of blocks (`layer3`), are
    the stages.
    """
    groups: dict[tuple[str, type], list[str]] = {}
    rows: dict[str, list[str]] = {}  # of Sequentials
    for path, module in modules.items():
        parent, _, last = path.rpartition(".")
        numbered = _NUMBERED.match(last)
        if numbered and next(module.children(), None) is not None:
            if isinstance(module, nn.Sequential):
                rows.setdefault(f"{parent}.{numbered[1]}", []).append(path)
            else:
                groups.setdefault((f"{parent}.{numbered[1]}", type(module)), []).append(path)
    paths = {path for group in groups.values() if len(group) > 1 for path in group}
    blocks = {path for path in paths if not any(other.startswith(path + ".") for other in paths)}
    around = paths - blocks | {path for row in rows.values() if len(row) > 1 for path in row}
    inner = {path: path.count(".") for path in blocks}
    stages = {p for p in around if any(b.startswith(p + ".") and inner[b] - p.count(".") <= 2 for b in blocks)}
    return blocks, stages


def _form(found: Probe, path: str) -> Form:
    form = found.forms[path, False, 0]
    assert form is not None
    return form


def _kind(found: Probe, path: str) -> str:
    form = found.forms.get((path, False, 0))
    return form.kind if form is not None else ""


def _without_echoes(reasons: dict[str, str], found: Probe) -> dict[str, str]:
    """Drop `in:` names of MLPs whose activation is a module and thus listed already, in the same parent."""
    listed = {n.rpartition(".")[0] for n, why in reasons.items() if why == "MLP hidden" and not n.startswith("in:")}
    return {
        name: why
        for name, why in reasons.items()
        if not (name.startswith("in:") and why == "MLP hidden" and name[3:].rpartition(".")[0] in listed)
    }
