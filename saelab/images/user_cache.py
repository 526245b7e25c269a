"""Where saelab keeps what it fetched for this user: pictures, and vectors that packages alone decide; never results."""

import os
from pathlib import Path


def user_cache(*parts: str) -> Path:
    """A folder below $SAELAB_CACHE (default ~/.cache/saelab); not created."""
    return Path(os.environ.get("SAELAB_CACHE") or "~/.cache/saelab").expanduser().joinpath(*parts)
