"""The proposals stage: who proposes, about which units, with what pictures."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from saelab.artifacts import folder, locked
from saelab.cache import ActivationCache
from saelab.encoders import Encoder, ImageEmbeddings
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.label import propose, selection
from saelab.label.agent.hands import Sight
from saelab.label.exemplars import Exemplars
from saelab.label.proposal import Bench, Estimate
from saelab.names import imagenet_names
from saelab.run.basis import Basis
from saelab.run.config import ProposerSettings
from saelab.units import HeatMaps, Projection, UnitActivations

CODE = 2  # version of this stage; part of every recipe
Embed = Callable[[Sequence[str]], Tensor]  # sentences -> [sentences, d_text]
log = logging.getLogger("saelab")


def load_proposer(
    settings: ProposerSettings, images: ImageSet, encoder: Encoder, embeddings: ImageEmbeddings, root: Path
) -> propose.Proposer | None:
    """The proposer that the settings name, or None. Raises UserError where it needs what the encoder does not give."""

    def see(picture: Image.Image) -> Tensor:
        return encoder.embed_batch(encoder.transform(picture)[None])["probabilities"][0]

    def look(file: Path) -> Tensor:
        with Image.open(file) as picture:
            return see(picture.convert("RGB"))

    def embed(sentences: Sequence[str]) -> Tensor:
        return encoder.embed_sentences(list(sentences))

    own = {"name": settings.name} | settings.options
    if settings.name == "tagger":
        probabilities = embeddings.extra.get("probabilities")
        if probabilities is None:
            remedy = "use encoder=conse, or proposer=none, openai or transformers"
            raise UserError("proposer", "tagger", "the encoder gives no class probabilities", remedy)
        own |= {"probabilities": probabilities, "names": imagenet_names(), "base": images.ids("mine")}
        own |= {"look": look}
    if settings.name == "describe_dissect":
        if "probabilities" in embeddings.extra:
            own |= {"see": see, "names": imagenet_names()}
        own["seed"] = settings.seed
        if (own.get("chat") or {}).get("name") == "openai":  # bought answers are kept with the run
            own["chat"] = {"cache": str(root / "answers")} | own["chat"]
    if settings.name == "agent":
        own["sight"] = Sight(embeddings.images, embed)
    if settings.name in ("openai", "agent"):
        own.setdefault("cache", str(root / "answers"))
    return propose.load_proposer(**own)


def estimate(
    basis: Basis, proposer: propose.Proposer, settings: ProposerSettings, images: ImageSet
) -> tuple[int, Estimate]:
    """How many units would be asked about, and what asking takes; nothing is sent and nothing is written."""
    shown, chosen, _ = _choose(basis, settings)
    return len(chosen), propose.estimate(proposer, shown, images, chosen, mode=settings.mode, seed=settings.seed)


def propose_labels(
    basis: Basis,
    proposer: propose.Proposer,
    settings: ProposerSettings,
    images: ImageSet,
    store: ActivationCache,
    root: Path,
    spent: Sequence[propose.Proposal] = (),
    make: Callable[[Sequence[int]], propose.MadePictures] | None = None,
    bench: Bench | None = None,
) -> tuple[Path, list[propose.Proposal], str]:
    """The folder with a basis' proposals.jsonl, its rows, and a sentence that sums them up.

    Units that have a row are not asked again; failed ones are, whenever the stage runs. `spent`: rows of earlier
    bases, which have used up their part of a budget. `make`: pictures that raise these units, for proposers that are to
    see them; `bench`: the basis at work, for those that try units on pictures. How pictures were made, and what the
    bench depends on, are parts of the recipe. Nine parameters: who is asked, what of, where things lie, and three aids.
    """
    assert basis.exemplars is not None
    shown, chosen, budget = _choose(basis, settings)
    shown = replace(shown, bench=bench)
    recipe = {"stage": "proposals", "code": CODE, "exemplars": basis.exemplars.digest, "proposer": proposer.recipe}
    recipe |= {"mode": settings.mode, "units": settings.units, "seed": settings.seed}
    made = make(chosen) if make is not None and settings.synthesised != "none" else None
    recipe |= {} if made is None else {"made": made.folder.name}
    recipe |= {} if bench is None else {"bench": bench.recipe}
    where = folder(root, "proposals", f"{basis.name}-{proposer.name}", recipe)
    heat = None
    if basis.of_tokens:
        heat = HeatMaps(store, Projection.load(basis.units.path, basis.sae_path), shown.activations[:, 0])
    where.parent.mkdir(parents=True, exist_ok=True)
    with locked(where.with_name(where.name + ".lock")):  # two runs don't ask the same questions at once
        left = budget and budget.less(list(spent))
        asked: dict[str, Any] = {"mode": settings.mode, "seed": settings.seed}
        rows = propose.run(proposer, shown, images, chosen, where, **asked, heat=heat, budget=left, made=made)
    text = f"{basis.layer} {basis.name}, {proposer.name}: {propose.summary(rows, chosen)['text']}"
    return where, rows, text


def _choose(
    basis: Basis, settings: ProposerSettings
) -> tuple[propose.ShownExemplars, list[int], selection.Budget | None]:
    assert basis.exemplars is not None
    found = Exemplars.load(basis.exemplars.path)
    strength = found.activations.mean(1).tolist()
    chosen, budget = selection.choose(
        settings.units, len(found.status), status=found.status, strength=strength, seed=settings.seed
    )
    column = UnitActivations.load(basis.units.path).column if settings.name == "agent" else None
    return propose.ShownExemplars(found.positives, found.contrasts, found.activations, column), chosen, budget
