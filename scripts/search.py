"""Search units by words or by a picture: `python scripts/search.py text="a bird"` or `image=photo.jpg`."""

from pathlib import Path

import torch
from bases import Basis
from command import command
from omegaconf import DictConfig
from stages import Run

from saelab import encoders, units
from saelab.errors import UserError
from saelab.images.decode import Unreadable, decode
from saelab.label import pipeline, search
from saelab.label.exemplars import Exemplars


@command("search")
def main(cfg: DictConfig) -> None:
    """Print each basis' best units with their labels."""
    if (cfg.text is None) == (cfg.image is None):
        raise UserError("text, image", f"{cfg.text}, {cfg.image}", "give one of the two", 'text="a bird" or image=PATH')
    run = Run(cfg)
    for basis in run.labelled:
        assert basis.labels is not None
        acts, rows = units.UnitActivations.load(basis.units.path), pipeline.read(basis.labels.path)
        hits = by_text(run, basis, acts) if cfg.text is not None else by_image(run, basis, acts)
        print(f"{basis.layer}  {basis.name}")
        for unit, score in zip(hits.units.tolist(), hits.scores.tolist()):
            print(f"  {unit:>6}  {score:6.3f}  {rows[unit]['label'] or '-'}")


def by_text(run: Run, basis: Basis, acts: units.UnitActivations) -> search.Hits:
    """Units that match `text`."""
    assert basis.exemplars is not None
    settings = run.label_settings  # the text is embedded as labels are
    templates = settings.templates or run.encoder.templates
    vector = encoders.embed_templates(run.encoder.embed_sentences, [run.cfg.text], templates, settings.renormalize)
    found = Exemplars.load(basis.exemplars.path)
    evidence = pipeline.evidence(acts, found, run.images, run.embeddings.images, vector, run.mining)
    scorer = run.label_settings.final if run.label_settings.final in search.ALONE else "pearson"
    return search.text_to_units(vector[0], evidence, scorer, run.cfg.top)


def by_image(run: Run, basis: Basis, acts: units.UnitActivations) -> search.Hits:
    """Units that the picture `image` fires."""
    path = Path(run.cfg.image).expanduser()
    try:
        picture = decode(path, run.images.square)  # seen as the run's own pictures are
    except (OSError, Unreadable) as error:
        raise UserError("image", path, f"can't be read ({error})", "give a picture file") from None
    batch = run.host.transform(picture)[None]
    with torch.inference_mode():
        tokens = run.host.tokens(batch, [basis.layer], run.cfg.policy)[basis.layer][0].float().cpu()
        project = units.Projection.load(basis.units.path, basis.sae and basis.sae.path)
        fired = units.pool_tokens(project(tokens)[None], run.cfg.pool)[0]
    return search.image_to_units(fired, acts.rows(run.images.ids("mine")), run.cfg.top)


if __name__ == "__main__":
    main()
