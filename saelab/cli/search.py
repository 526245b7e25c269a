"""Find the units that match words, or that a picture fires."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from saelab import units
from saelab.cli.edge import command, stages
from saelab.errors import UserError
from saelab.images.decode import Unreadable, decode
from saelab.label import made_up, pipeline, search
from saelab.label.exemplars import Exemplars
from saelab.names import imagenet_names
from saelab.run.basis import Basis
from saelab.run.making import Stages


@command(
    "search",
    settings=("text", "image", "top", "bases", "layers", "images", "host", "sae", "encoder", "root"),
    examples=("search text='a bird'", "search image=photo.jpg", "search text='a red car' bases=[sae] top=20"),
    types={"text": str | None, "image": str | None, "top": int},
)
def main(cfg: DictConfig) -> None:
    """Print each basis' best units with their labels; first, whether the words mean anything in these images."""
    if (cfg.text is None) == (cfg.image is None):
        raise UserError("text, image", f"{cfg.text}, {cfg.image}", "give one of the two", 'text="a bird" or image=PATH')
    made = stages(cfg, "text", "image", "top")
    if cfg.text is not None and (chance := chance_of(made, cfg.text)) > made_up.BY_CHANCE:
        print(f"nothing like that: {chance:.0%} of made-up words come as near to these images; the nearest units:")
    for basis in (b for b in made.labelled if cfg.image is None or (b.of_tokens and b.weights == made.weights)):
        assert basis.labels is not None
        acts, rows = units.UnitActivations.load(basis.units.path), pipeline.read(basis.labels.path)
        by_text = cfg.text is not None
        hits = (
            find_by_text(made, basis, acts, cfg.text, cfg.top)
            if by_text
            else find_by_image(made, basis, acts, cfg.image, cfg.top)
        )
        print(f"{made.call(basis)} of {basis.layer}")
        for unit, score in zip(hits.units.tolist(), hits.scores.tolist()):
            print(f"  {unit:>6}  {score:6.3f}  {rows[unit]['label'] or '-'}")


def chance_of(made: Stages, text: str) -> float:
    """The chance that words which mean nothing come as near to the mined images as `text`."""
    mined = made.embeddings.images[torch.as_tensor(made.images.ids("mine"))]
    return made_up.MadeUp.drawn(made.embed_texts, imagenet_names(), mined).chance(made.embed_texts([text])[0])


def find_by_text(made: Stages, basis: Basis, acts: units.UnitActivations, text: str, top: int) -> search.Hits:
    """Units that match `text`."""
    assert basis.exemplars is not None
    settings, vector = made.label_settings, made.embed_texts([text])
    found, mining = Exemplars.load(basis.exemplars.path), made.config.label.mining
    evidence = pipeline.evidence(acts, found, made.images, made.embeddings.images, vector, mining)
    scorer = settings.final if settings.final in search.ALONE else "pearson"
    return search.text_to_units(vector[0], evidence, scorer, top)


def find_by_image(made: Stages, basis: Basis, acts: units.UnitActivations, image: str, top: int) -> search.Fired:
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
