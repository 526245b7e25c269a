"""CoSy: do units fire on pictures of their labels? `python scripts/cosy.py cosy.source=folder cosy.folder=PICTURES`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bases import Basis
from command import command, plain
from omegaconf import DictConfig
from stages import Run

from saelab import images as image_sources
from saelab import truth, units
from saelab.acts import columns
from saelab.artifacts import Artifact, ensure, read_json
from saelab.errors import UserError
from saelab.evaluate import cosy
from saelab.evaluate.diffusion import Diffusion, generate
from saelab.images import ImageSet
from saelab.label import pipeline
from saelab.label.mine import top_images

SOURCES = ("heldout", "folder", "diffusers")


@command("cosy")
def main(cfg: DictConfig) -> None:
    """Measure the labels of every basis and print the means."""
    if cfg.cosy.source not in SOURCES:
        raise UserError("cosy.source", cfg.cosy.source, "unknown", f"known: {', '.join(SOURCES)}")
    run = Run(cfg)
    bases = run.labelled
    names = {basis.name: labels_of(basis, cfg.cosy.scorer) for basis in bases}
    wanted = sorted({label for own in names.values() for label in own if label is not None})
    stated = truth.from_descriptions(wanted, run.images.captions, run.images.classes, cfg.truth)
    pictures, controls = pictures_of(run, wanted), controls_of(run)
    seen = [None] * len(bases) if pictures is None else fired(run, bases, pictures)
    quiet = [None] * len(bases) if controls is None else fired(run, bases, controls)
    made = []
    for basis, shown, control in zip(bases, seen, quiet, strict=True):
        made.append(measured(run, basis, names[basis.name], stated, pictures, shown, controls, control))
    print(table(bases, made))


def labels_of(basis: Basis, scorer: str) -> list[str | None]:
    """Each unit's label by the scorer; final labels that abstain count as none."""
    assert basis.labels is not None
    rows = pipeline.read(basis.labels.path)
    if scorer == "final":
        return [None if row["abstained"] else row["label"] for row in rows]
    known = {name for row in rows for name in row["scores"]}
    if scorer not in known:
        raise UserError("cosy.scorer", scorer, "gave no labels", f"known: final, {', '.join(sorted(known))}")
    return [row["scores"].get(scorer, {}).get("label") for row in rows]


def pictures_of(run: Run, labels: list[str]) -> ImageSet | None:
    """The pictures of labels, where they are not the test split's own."""
    cfg = run.cfg.cosy
    if cfg.source == "heldout":
        return None
    if cfg.source == "folder" and cfg.folder is None:
        raise UserError("cosy.folder", None, "source folder needs one", "give a folder with one sub-folder a label")
    check_tokens(run, "use cosy.source=heldout, or tokens_per_image=null")
    folder = cfg.folder
    if cfg.source == "diffusers":
        folder = generate(labels, run.root / "generated", Diffusion(**plain(cfg.generate)), run.device)
    return seen_alike(run, folder)


def controls_of(run: Run) -> ImageSet | None:
    """The pictures that labels are held against, where they are not the test split's own."""
    if run.cfg.cosy.controls is None:
        return None
    check_tokens(run, "use cosy.controls=null, or tokens_per_image=null")
    return seen_alike(run, run.cfg.cosy.controls)


def seen_alike(run: Run, folder: Path | str) -> ImageSet:
    """The pictures of a folder, padded to squares if the run's own are: else the host would see them otherwise."""
    return replace(image_sources.load("folder", root=str(folder)), square=run.images.square)


def check_tokens(run: Run, remedy: str) -> None:
    """Raise UserError where new pictures would be pooled over other tokens than the cached ones."""
    kept = run.cfg.tokens_per_image
    if kept is not None:
        raise UserError("tokens_per_image", kept, "new pictures keep all their tokens, the cache does not", remedy)


def fired(run: Run, bases: list[Basis], pictures: ImageSet) -> list[torch.Tensor]:
    """Each basis' activations on new pictures."""
    projections = [(b.layer, units.Projection.load(b.units.path, b.sae and b.sae.path)) for b in bases]
    cfg = run.cfg
    return cosy.activations(
        run.host, pictures, projections, cfg.policy, cfg.pool, cfg.dtype, cfg.batch_size, cfg.workers
    )


def measured(
    run: Run,
    basis: Basis,
    labels: list[str | None],
    stated: truth.Truth,
    pictures: ImageSet | None,
    shown: torch.Tensor | None,
    controls: ImageSet | None,
    quiet: torch.Tensor | None,
) -> Artifact:
    """The `cosy` artifact of one basis. `shown`, `quiet`: its activations on `pictures` and on `controls`."""
    assert basis.labels is not None
    recipe: dict[str, Any] = {"stage": "cosy", "code": 2, "labels": basis.labels.digest, "truth": run.cfg.truth}
    recipe |= {"images": run.images.fingerprint, "pictures": None if pictures is None else pictures.fingerprint}
    recipe |= {"scorer": run.cfg.cosy.scorer}
    recipe |= {} if controls is None else {"controls": controls.fingerprint}

    def build(folder: Path) -> None:
        acts, test = units.UnitActivations.load(basis.units.path), run.images.ids("test")
        if pictures is None:  # who described nothing is no control
            test = test[stated.known[torch.as_tensor(test)].numpy()]
        distinct = sorted({label for label in labels if label is not None})
        true_of, own = cosy.described(distinct, stated, test), acts.rows(test)
        shown_of = true_of if pictures is None else cosy.in_folders(distinct, pictures)
        control = own
        if controls is not None and quiet is not None:
            told = truth.from_descriptions(distinct, controls.captions, controls.classes, run.cfg.truth)
            true_of, control = cosy.described(distinct, told, controls.ids()), quiet
        strongest = top_images(columns(acts.rows(run.images.ids("mine"))), 1)[1][:, 0].nan_to_num()
        rows = cosy.cosy(labels, own if shown is None else shown, shown_of, control, true_of, strongest)
        cosy.write(folder, rows, cosy.summarise(rows) | {"source": run.cfg.cosy.source})

    return ensure(run.root, "cosy", basis.name, recipe, build)


def table(bases: list[Basis], made: list[Artifact]) -> str:
    """Basis x mean, with how many units were measured and why the others were not."""
    heads = ("units", "unlabelled", "no images", "measured", "preferred", *cosy.NUMBERS[:-1])
    lines = [f"{'basis':<28}" + "".join(f"{h:>12}" for h in heads)]
    for basis, artifact in zip(bases, made, strict=True):
        found = read_json(artifact.path / "cosy.json")
        counts = [found[name] for name in ("units", "unlabelled", "without_images", "measured")]
        numbers = [found["preferred"], *found["mean"].values()]
        cells = "".join(f"{n:>12}" for n in counts)
        cells += "".join(f"{'-' if n is None else format(n, '.3f'):>12}" for n in numbers)
        lines.append(f"{basis.layer + ' ' + basis.name:<28}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
