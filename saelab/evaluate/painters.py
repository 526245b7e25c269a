"""The settings of a generator of pictures, and what it gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from saelab.errors import UserError

SOURCES = ("diffusers", "openai")  # who paints: a model in this process, or a server with an images API
Paint = Callable[[str, Sequence[int]], Sequence[Image.Image | None]]  # prompt, seeds -> pictures; None: refused


@dataclass(frozen=True)
class Generation:
    """How pictures are generated. The defaults are those of CoSy's authors; conf/cosy/generate holds CSP's too."""

    model: str = "stabilityai/stable-diffusion-xl-base-1.0"  # hub name or folder; of `openai`, as the server names it
    count: int = 50  # pictures a label
    steps: int | None = 50  # denoising steps; None: the model's own (`diffusers`)
    guidance: float | None = None  # classifier-free guidance; None: the model's own (`diffusers`)
    size: int | None = None  # side in pixels; None: the model's own
    prompt: str = "realistic photo of a close up of {}"  # {} is the label
    seed: int = 0  # together with label and number it seeds each picture (`diffusers`)
    batch: int = 1  # pictures at a time, of one label
    base_url: str = "http://localhost:8000/v1"  # of `openai`
    key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key, where the server wants one
    timeout: float = 300.0  # seconds for one answer of the server
    retries: int = 6  # after 429, 5xx, time-outs, cut lines and broken answers

    def __post_init__(self) -> None:
        """Raise UserError for values that can't be meant."""
        for name in ("count", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"cosy.generate.{name}", getattr(self, name), "expected a whole number of at least 1")
        if "{}" not in self.prompt:
            remedy = "for example 'a photo of {}'"
            raise UserError("cosy.generate.prompt", self.prompt, "needs {} where the label goes", remedy)
