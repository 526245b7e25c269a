"""Which device a run uses."""

from saelab.errors import UserError


def choose_device(name: str) -> str:
    """`auto` as the best device of this machine; any other name is checked. Raises UserError for one it lacks."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there.get(name.split(":")[0], False):
        have = ", ".join(kind for kind, found in there.items() if found)
        raise UserError("device", name, "is not on this machine", f"use auto or one of: {have}")
    return name
