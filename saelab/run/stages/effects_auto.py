"""`effects=auto`: what units do, where it takes about a minute a basis at the most, and why not elsewhere."""

from collections.abc import Sequence

from saelab.artifacts import read_json
from saelab.cache import UnstoredActivations
from saelab.effects import HostAnswers
from saelab.errors import UserError
from saelab.run.basis import Basis
from saelab.run.stages.effects import SUMMARY, EffectsSettings, Seen, make_head

AUTO = "auto"
COUNT, SECONDS = 25, 60.0  # units of a basis, drawn at random, and how long it may take


def automatic(keep: Sequence[str]) -> dict[str, object]:
    """The settings of `saelab effects` that it stands for. `keep`: statuses of the units that are compared."""
    return {"units": f"status:{','.join(keep)} random:{COUNT}", "seconds": SECONDS}


def find_obstacle(seen: Seen, own: EffectsSettings) -> str | None:
    """Why the effects of units of this layer can't be measured from its cache; None: they can."""
    if isinstance(seen.store, UnstoredActivations):
        return "activations are not stored"
    try:
        make_head(seen, own)
    except UserError as error:
        return str(error)
    except Exception as error:  # nobody asked for effects by name: what the host raises is no reason to end the run
        return f"the host can't go on from {seen.store.layer} ({type(error).__name__}: {error})".splitlines()[0]
    if HostAnswers(seen.host, seen.store, seen.images, lambda answer: answer).resumed:
        return None
    return f"at {seen.store.layer} every pass has to start from a picture (`saelab effects` measures so)"


def unfinished(bases: Sequence[Basis]) -> list[str]:
    """A note where there was no time for all units."""
    found = [read_json(basis.effects / SUMMARY) for basis in bases if basis.effects is not None]
    left = [f"{own['left']} units of {own['layer']} {own['basis']}" for own in found if own["left"]]
    what = "What units do was not measured, for lack of time, for"
    return [f"{what} {', '.join(left)}; `saelab effects` goes on."] if left else []
