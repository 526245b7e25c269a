"""Pictures of labels by a diffusion model, for CoSy: a folder with one sub-folder a label. Extra: `diffusers`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from saelab.artifacts import atomic, digest
from saelab.errors import UserError


@dataclass(frozen=True)
class Diffusion:
    """How pictures are generated. CoSy's authors take 50 pictures a label by Stable Diffusion XL."""

    model: str = "stabilityai/stable-diffusion-xl-base-1.0"  # hub name or folder; SD 1.5 works alike
    count: int = 50  # pictures a label
    steps: int = 50  # denoising steps
    guidance: float = 7.5  # classifier-free guidance
    size: int | None = None  # side in pixels; None: the model's own
    prompt: str = "a photo of {}"  # {} is the label
    seed: int = 0  # together with label and number it seeds each picture


def pipeline(settings: Diffusion, device: str) -> Callable[..., Any]:
    """The text-to-image pipeline, half precision on CUDA. UserError without diffusers or where it can't be loaded."""
    try:
        from diffusers import AutoPipelineForText2Image
    except ImportError:
        raise UserError(
            "cosy.source", "diffusers", "the package diffusers is not installed", "pip install diffusers accelerate"
        ) from None
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        return AutoPipelineForText2Image.from_pretrained(settings.model, torch_dtype=dtype).to(device)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            "cosy.model", settings.model, f"can't be loaded ({reason})", "give a folder or hub name"
        ) from None


def generate(labels: Sequence[str], folder: Path, settings: Diffusion, device: str = "cpu") -> Path:
    """Write the pictures that are not there yet as `<folder>/<recipe>/<label>/<number>.png`; returns that folder.

    A picture depends on its label, number, prompt and seed alone, so a run that was stopped goes on where it stopped.
    Raises UserError as `pipeline` does.
    """
    recipe = digest({"settings": settings, "code": 1} | {"count": None})[:10]
    root = folder / f"{Path(settings.model).name}-{recipe}"
    missing = [
        (label, i, file)
        for label in dict.fromkeys(labels)
        for i in range(settings.count)
        if not (file := root / label.replace("/", " ") / f"{i:03}.png").is_file()
    ]
    if not missing:
        return root
    paint = pipeline(settings, device)
    size = {} if settings.size is None else {"height": settings.size, "width": settings.size}
    for label, i, file in tqdm(missing, desc="generate pictures", unit="img"):
        seed = int(digest([label, i, settings.seed])[:12], 16)
        image = paint(
            prompt=settings.prompt.format(label),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=torch.Generator().manual_seed(seed),
            **size,
        ).images[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            image.save(temporary, format="PNG")
    return root
