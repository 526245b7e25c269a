"""`effects=auto`: what units do, where it takes a minute a basis at the most, and why not elsewhere."""

from saelab.effects import HostAnswers
from saelab.errors import UserError
from saelab.run.stages.effects import EffectsSettings, Seen, make_head

AUTO = "auto"
AUTOMATIC = {"units": "random:40", "seconds": 60}  # the settings of `saelab effects` that it stands for


def find_obstacle(seen: Seen, own: EffectsSettings) -> str | None:
    """Why the effects of units of this layer can't be measured from its cache; None: they can."""
    try:
        make_head(seen, own)
    except UserError as error:
        return str(error)
    if HostAnswers(seen.host, seen.store, seen.images, lambda answer: answer).resumed:
        return None
    return f"at {seen.store.layer} every pass has to start from a picture (`saelab effects` measures so)"
