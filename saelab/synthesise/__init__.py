"""Feature visualisation: pictures made to raise a unit, each with numbers that say how far it can be believed."""

from saelab.synthesise.ascend import Sight, Synthesised, SynthesisSettings, synthesise_unit
from saelab.synthesise.parametrisations import METHODS, Fourier, Maco, Pixel, parametrise
from saelab.synthesise.photos import Photos, measure_photos, to_free

__all__ = [
    "METHODS",
    "Fourier",
    "Maco",
    "Photos",
    "Pixel",
    "Sight",
    "SynthesisSettings",
    "Synthesised",
    "measure_photos",
    "parametrise",
    "synthesise_unit",
    "to_free",
]
