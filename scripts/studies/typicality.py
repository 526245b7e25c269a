"""Are rightly classified pictures more typical of their class than wrongly classified ones?

`python scripts/studies/typicality.py PICTURES RUN`: PICTURES has a folder a class, named by WordNet id ("n0144_x"),
RUN is the run.json of a host of ImageNet's classes. 60 classes drawn by seed, 12 pictures each say what carries the
class, 8 others are predicted. Only predictions that are one of the 60 can be held against a class.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import mannwhitneyu
from torch import Tensor

from saelab.effects.ablate import Active
from saelab.effects.attribute import by_token, of_output
from saelab.effects.classes import compare_to_class, find_class_units
from saelab.effects.targets import imagenet_outputs
from saelab.hosts import Host
from saelab.run.making import Stages
from saelab.run.record import read_config
from saelab.units import Projection

CLASSES, FITTED, HELD = 60, 12, 8
BATCH = 20


@dataclass
class Resumed:
    """Answers that go on from tokens in memory."""

    host: Host
    layer: str
    all: Tensor  # [images, tokens, d_in]

    def tokens(self, ids: np.ndarray) -> Tensor:
        """The layer's tokens."""
        return self.all[torch.as_tensor(ids)]

    def logits(self, ids: np.ndarray, edited: Tensor) -> Tensor:
        """Outputs for every copy."""
        return self.host.resume(edited.flatten(0, 1), self.layer).float().unflatten(0, edited.shape[:2])

    def gradient(self, ids: np.ndarray, tokens: Tensor, weights: Tensor) -> Tensor:
        """Gradient of the weighted sum of outputs."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = tokens.clone().requires_grad_()
            value = (self.host.resume(leaf, self.layer, grad=True).float() @ weights.float()).sum()
            return torch.autograd.grad(value, leaf)[0]


def main(pictures: Path, run: Path) -> None:
    """Print, per basis, the AUROC of both measures."""
    made = Stages(read_config(run))
    place = {synset: i for i, synset in enumerate(imagenet_outputs().synsets)}
    folders = sorted(p for p in pictures.iterdir() if p.is_dir())
    folders = [folders[i] for i in sorted(np.random.default_rng(0).choice(len(folders), CLASSES, replace=False))]
    files = [file for folder in folders for file in sorted(folder.iterdir())[: FITTED + HELD]]
    true = np.array([place[file.parent.name.split("_")[0]] for file in files])
    fitted = np.tile(np.arange(FITTED + HELD) < FITTED, CLASSES)
    for layer in made.config.layers:
        answers, predicted = see(made.host, layer, files)
        right = predicted == true
        print(f"{layer}: {right.mean():.2f} of {len(files)} pictures rightly classified")
        for basis in (b for b in made.bases if b.layer == layer):
            project = Projection.load(basis.units.path, basis.sae_path)
            grid = made.host.choice(layer, "all").grid
            measured = typicality(answers, project, true, predicted, fitted, grid)
            known = ~np.isnan(measured).any(0)
            for name, values in zip(("maps", "contributions"), measured):
                sides = [values[known & side] for side in (right[~fitted], ~right[~fitted])]
                area = mannwhitneyu(*sides).statistic / (len(sides[0]) * len(sides[1]))
                print(f"  {basis.name}, {name}: {len(sides[0])} right, {len(sides[1])} wrong, AUROC {area:.2f}")


def see(host: Host, layer: str, files: list[Path]) -> tuple[Resumed, np.ndarray]:
    """The layer's tokens of all pictures, and what the host says of each."""
    tokens, said = [], []
    for start in range(0, len(files), BATCH):
        batch = host.load_images([Image.open(file).convert("RGB") for file in files[start : start + BATCH]])
        tokens.append(host.tokens(batch, [layer])[layer].float().clone())
        said.append(host.resume(tokens[-1], layer).argmax(1))
    return Resumed(host, layer, torch.cat(tokens)), torch.cat(said).cpu().numpy()


def typicality(
    answers: Resumed,
    project: Projection,
    true: np.ndarray,
    predicted: np.ndarray,
    fitted: np.ndarray,
    grid: tuple[int, int] | None,
) -> np.ndarray:
    """[maps, contributions; held-out pictures]: cosines of maps, and of what all units contribute; NaN: no class."""
    writes = project.writes(answers.all.shape[-1])
    mine, held = np.flatnonzero(fitted), np.flatnonzero(~fitted)
    found = find_class_units(answers, mine, true[mine], project, writes, 1000)
    values = np.full((2, len(held)), np.nan)
    for at, image in enumerate(held):
        usual = found.usual(int(predicted[image]))
        if usual is None or grid is None:
            continue
        active = Active.of(project, answers.tokens(np.array([image])))
        gradient = answers.gradient(held[[at]], active.tokens, of_output(int(predicted[image]), 1000))
        own = by_token(active, writes, gradient)[0].sum(0)
        same = compare_to_class(active, own, usual, grid).typicality
        values[0, at] = np.nan if same is None else same
        values[1, at] = float(torch.nn.functional.cosine_similarity(own, usual.scores, dim=0))
    return values


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
