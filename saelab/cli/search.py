"""Find the units that match words, or that a picture fires."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from saelab import encoders, units
from saelab.cli.edge import command, stages
from saelab.errors import UserError
from saelab.images.decode import Unreadable, decode
from saelab.label import pipeline, search
from saelab.label.exemplars import Exemplars
from saelab.run.basis import Basis
from saelab.run.making import Stages


@command(
    "search",
    settings=("text", "image", "top", "bases", "layers", "images", "host", "sae", "encoder", "root"),
    examples=("search text='a bird'", "search image=photo.jpg", "search text='a red car' bases=[sae] top=20"),
)
def main(cfg: DictConfig) -> None:
    """Print each basis' best units with their labels."""
    if (cfg.text is None) == (cfg.image is None):
        raise UserError("text, image", f"{cfg.text}, {cfg.image}", "give one of the two", 'text="a bird" or image=PATH')
    made = stages(cfg, "text", "image", "top")
    for basis in made.labelled:
        assert basis.labels is not None
        acts, rows = units.UnitActivations.load(basis.units.path), pipeline.read(basis.labels.path)
        by_text = cfg.text is not None
        hits = (
            find_by_text(made, basis, acts, cfg.text, cfg.top)
            if by_text
            else find_by_image(made, basis, acts, cfg.image, cfg.top)
        )
        print(f"{basis.layer}  {basis.name}")
        for unit, score in zip(hits.units.tolist(), hits.scores.tolist()):
            print(f"  {unit:>6}  {score:6.3f}  {rows[unit]['label'] or '-'}")


def find_by_text(made: Stages, basis: Basis, acts: units.UnitActivations, text: str, top: int) -> search.Hits:
    """Units that match `text`."""
    assert basis.exemplars is not None
    settings = made.label_settings  # the text is embedded as labels are
    templates = settings.templates or made.encoder.templates
    vector = encoders.embed_templates(made.encoder.embed_sentences, [text], templates, settings.renormalize)
    found, mining = Exemplars.load(basis.exemplars.path), made.config.label.mining
    evidence = pipeline.evidence(acts, found, made.images, made.embeddings.images, vector, mining)
    scorer = settings.final if settings.final in search.ALONE else "pearson"
    return search.text_to_units(vector[0], evidence, scorer, top)


def find_by_image(made: Stages, basis: Basis, acts: units.UnitActivations, image: str, top: int) -> search.Hits:
    """Units that the picture `image` fires."""
    path = Path(image).expanduser()
    try:
        picture = decode(path, made.images.square)  # seen as the run's own pictures are
    except (OSError, Unreadable) as error:
        raise UserError("image", path, f"is unreadable ({error})", "give a picture file") from None
    batch = made.host.transform(picture)[None]
    with torch.inference_mode():
        tokens = made.host.tokens(batch, [basis.layer], made.config.policy)[basis.layer][0].float().cpu()
        project = units.Projection.load(basis.units.path, basis.sae_path)
        fired = units.pool_units(project, tokens[None], made.config.pool)[0]
    return search.image_to_units(fired, acts.rows(made.images.ids("mine")), top)


if __name__ == "__main__":
    main()
