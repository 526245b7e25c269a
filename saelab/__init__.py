"""saelab: sparse autoencoders for vision models, and one labelling pipeline for neurons and SAE features alike.

import saelab
p = saelab.Pipeline(images="photos/", host="timm:resnet50", layers=["layer4"])
p.labels["sae"].table()
"""

from typing import TYPE_CHECKING, Any

from saelab.errors import UserError

if TYPE_CHECKING:
    from saelab.run.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["Pipeline", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":  # imported when asked for, so that `import saelab` stays quick
        from saelab.run.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'saelab' has no attribute {name!r}")
