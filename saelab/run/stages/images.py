"""The images stage: the pictures of a run, and what a later reader needs to find them again."""

from pathlib import Path

from saelab.artifacts import Artifact, ensure
from saelab.images import ImageSet

CODE = 1  # version of this stage; part of every recipe


def record_images(images: ImageSet, root: Path) -> Artifact:
    """The `images` artifact: images.jsonl and images.json."""
    recipe = {
        "stage": "images",
        "code": CODE,
        "images": images.fingerprint,
        "root": str(images.root.resolve()),
        "name": images.name,
        "skipped": images.skipped,
    }
    return ensure(root, "images", images.name, recipe, images.save)
