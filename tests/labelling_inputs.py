"""Inputs by closed formula for which the golden numbers hold (60 images, 5 units, 7 labels, d 8)."""

import torch
from torch.nn.functional import normalize


def golden_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations [60, 5], unit-length image [60, 8] and label [7, 8] embeddings: float64 formulas, then float32."""
    i, j = torch.arange(60, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)
    acts = ((1.3 * i + 2.1 * j).sin() + 0.5 * (0.37 * i * (j + 1)).sin()).clamp(min=0)
    k, l = torch.arange(8, dtype=torch.float64), torch.arange(7, dtype=torch.float64)[:, None]
    image = normalize((0.7 * i * (k + 1) + 0.2 * k).cos(), dim=1)
    label = normalize((0.9 * l * (k + 1) + 0.4 * k + 0.3).sin(), dim=1)
    return acts.float(), image.float(), label.float()
