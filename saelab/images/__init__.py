"""Pictures: where they come from, what is known about them, honest splits, and decoding ahead of a model.

    images = saelab.images.load(source="folder", root="my/pictures")      # ImageSet
    images.load(3)                                                        # PIL.Image, RGB
    images.ids("mine"), images.truth(), images.fingerprint, images.skipped
    for ids, batch in images.batches(host.transform, batch_size=64, workers=2, ids=images.ids()):
        ...      # ids int64 [batch], batch float32 [batch, 3, height, width], in the order of `ids`
    images.save(folder); ImageSet.load(folder)

`load` takes what a config in conf/images/ says: the source's name, its own options, and `seed`, `fractions`, `limit`.
"""

from saelab.images.build import Entry, Listing, build
from saelab.images.imageset import ImageSet
from saelab.images.open import SOURCES, load

__all__ = ["SOURCES", "Entry", "ImageSet", "Listing", "build", "load"]
