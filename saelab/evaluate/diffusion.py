"""Pictures by a diffusion model in this process. Extra: `diffusers`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from saelab.errors import UserError
from saelab.evaluate.painters import Generation, Paint


def load_pipeline(model: str, device: str) -> Callable[..., Any]:
    """The text-to-image pipeline, half precision on CUDA. UserError without diffusers or where it can't be loaded."""
    try:
        from diffusers import AutoPipelineForText2Image
    except ImportError:
        raise UserError(
            "cosy.source", "diffusers", "the package diffusers is not installed", "pip install diffusers accelerate"
        ) from None
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        return AutoPipelineForText2Image.from_pretrained(model, torch_dtype=dtype).to(device)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError("cosy.model", model, f"can't be loaded ({reason})", "give a folder or hub name") from None


def load_painter(settings: Generation, device: str) -> Paint:
    """What paints a prompt once for each seed. Pictures that a model's safety checker blackens come as they are."""
    pipeline = load_pipeline(settings.model, device)
    own: dict[str, Any] = {} if settings.size is None else {"height": settings.size, "width": settings.size}
    given = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance}
    own |= {name: value for name, value in given.items() if value is not None}

    def paint(prompt: str, seeds: Sequence[int]) -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(prompt=prompt, num_images_per_prompt=len(seeds), generator=generators, **own).images

    return paint
