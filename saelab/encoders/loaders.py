"""An encoder by its name."""

from saelab.encoders.base import Encoder
from saelab.errors import UserError


def load(name: str, device: str = "cpu", seed: int = 0) -> Encoder:
    """`conse`, `conse:<classifier host>`, `open_clip:<model>/<weights>` or `transformers:<name or folder>`.

    `seed` only matters where weights are `random` (`open_clip:ViT-B-32/random`, a control).

    Raises UserError for an unknown kind, an unknown model or missing weights.
    """
    kind, _, rest = name.partition(":")
    if kind == "conse":
        from saelab.encoders.conse import ConSE

        return ConSE(rest or "efficientnet_lite2", device=device)
    if kind in ("open_clip", "transformers"):
        from saelab.encoders.clip import OpenClip, TransformersClip

        if not rest:
            raise UserError("encoder", name, "names no model", f"write it like {kind}:ViT-B-32/laion2b_s34b_b79k")
        return OpenClip(rest, device, seed) if kind == "open_clip" else TransformersClip(rest, device)
    raise UserError("encoder", name, "unknown", "known: conse, open_clip:<model>/<weights>, transformers:<name>")
