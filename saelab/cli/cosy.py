"""Measure whether units fire on pictures of their labels (CoSy): held-out photos, a folder, or generated pictures."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from saelab import settings, tables, units
from saelab.artifacts import Artifact, digest, read_json, write_jsonl
from saelab.cli.edge import command, plain, stages
from saelab.errors import UserError
from saelab.evaluate import cosy, prompted
from saelab.evaluate.generation import count_missing, files_of, generate
from saelab.evaluate.painters import SOURCES, Generation
from saelab.images import ImageSet
from saelab.label.proposers import OF_VLM, load_chat
from saelab.label.vlm.chat import Chat
from saelab.run.basis import Basis
from saelab.run.making import Stages
from saelab.run.stages.cosy import CosySettings, Shown, labels_of, measure_labels, open_like

log = logging.getLogger("saelab")


@command(
    "cosy",
    settings=(
        "cosy.source",
        "cosy.scorer",
        "cosy.folder",
        "cosy.controls",
        "cosy.generate.model",
        "cosy.generate.count",
        "cosy/generate",
        "cosy.paint",
        "cosy.writer.model",
        "cosy.dry_run",
        "truth",
        "bases",
        "layers",
        "images",
        "root",
    ),
    examples=(
        "cosy",
        "cosy cosy.source=folder cosy.folder=PICTURES",
        "cosy cosy.source=diffusers cosy/generate=csp cosy.controls=COCO_VAL",
        "cosy cosy.source=openai cosy.generate.base_url=http://localhost:8000/v1 cosy.generate.model=NAME",
        "cosy cosy.source=openai cosy.generate.model=NAME cosy.generate.count=10 bases=[sae] cosy.dry_run=true",
        "cosy cosy.source=prompts cosy.writer.model=TEXT_MODEL cosy.generate.model=NAME",
    ),
)
def main(cfg: DictConfig) -> None:
    """Measure the labels of every basis and print the means."""
    given = plain(cfg.cosy)
    writer = given.pop("writer")
    given["generate"] = settings.make(Generation, given["generate"], "cosy.generate.")
    own = settings.make(CosySettings, given, "cosy.")
    if own.source == "prompts":  # a picture a description, in its own words
        own = replace(own, generate=replace(own.generate, prompt="{}", count=1))
    chat = _load_writer(writer) if own.source == "prompts" else None
    made = stages(cfg, "cosy")
    bases = [basis for basis in made.labelled if basis.of_tokens]
    labels = {(b.layer, b.name): labels_of(b, own.scorer) for b in bases}
    distinct = sorted({x for some in labels.values() for x in some if x is not None})
    if own.dry_run:
        print(_plan(made, own, distinct) if chat is None else _plan_writing(chat, distinct))
        return
    written = None if chat is None else _write(chat, distinct, made)
    pictures = _pictures(made, own, distinct if written is None else written.every)
    controls = None if own.controls is None else _open(made, own.controls, "use cosy.controls=null")
    shown, quiet = _fire(made, bases, pictures), _fire(made, bases, controls)
    if written is not None:
        shown = [some and replace(some, prompts=written.prompts) for some in shown]
    root, rule = made.root, made.config.truth
    found = [
        measure_labels(b, labels[b.layer, b.name], made.images, own, rule, root, some, other)
        for b, some, other in zip(bases, shown, quiet, strict=True)
    ]
    print(table(bases, found))


def _load_writer(given: Mapping[str, Any]) -> Chat:
    """The text model that describes pictures."""
    if given.get("name") == "openai" and given.get("model") is None:
        remedy = "name it as its server does, or take proposer@cosy.writer=recorded"
        raise UserError("cosy.writer.model", None, "source prompts needs a text model", remedy)
    return load_chat(**{k: v for k, v in given.items() if k not in OF_VLM and (k, v) != ("model", None)})


def _plan_writing(chat: Chat, labels: list[str]) -> str:
    """What descriptions would take, in a line."""
    pictures = 2 * prompted.COUNT * len(labels)
    return f"dry run: {len(labels)} labels: {prompted.estimate(labels, chat)}; then {pictures:,} pictures to paint"


def _write(chat: Chat, labels: list[str], made: Stages) -> prompted.Written:
    """The descriptions of pictures for each label, said in a line; raises UserError where there are none."""
    written = prompted.write_prompts(labels, chat, f"cosy/{made.config.name}")
    failed = [reply.error or "no descriptions in the answer" for reply in written.replies]
    why = [error for label, error in zip(labels, failed, strict=True) if label not in written.prompts]
    if why:
        log.info("descriptions: %d of %d labels have none; the first: %s", len(why), len(labels), why[0])
    if not written.prompts:
        raise UserError("cosy.writer", chat.name, f"described none of {len(labels)} labels: {(why or ['no label'])[0]}")
    file = made.root / "generated" / f"prompts-{digest(written.every)[:10]}.jsonl"
    rows = [{"label": label, "fire": x.fire, "silent": x.silent} for label, x in written.prompts.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(file, rows)
    log.info("descriptions: %s", file)
    return written


def _plan(made: Stages, own: CosySettings, labels: list[str]) -> str:
    """What measuring would take, in a line."""
    if own.source not in SOURCES:
        return f"dry run: {len(labels)} labels, and nothing to paint with cosy.source={own.source}"
    missing = count_missing(labels, made.root / "generated", own.generate, own.source)
    every = len(labels) * own.generate.count
    return f"dry run: {len(labels)} labels, {missing:,} of {every:,} pictures to paint by {own.generate.model}"


def _pictures(made: Stages, own: CosySettings, labels: list[str]) -> ImageSet | None:
    """The pictures of labels, where they are not the test split's own."""
    if own.source == "heldout":
        return None
    remedy = "use cosy.source=heldout"
    if own.shown_in in SOURCES:  # more may lie there: of an earlier, larger count, and of other labels
        folder = generate(labels, made.root / "generated", own.generate, own.shown_in, made.device)
        return _open(made, str(folder), remedy, files_of(labels, own.generate.count))
    assert own.folder is not None
    return _open(made, own.folder, remedy)


def _open(made: Stages, folder: str, remedy: str, files: Sequence[str] | None = None) -> ImageSet:
    kept = made.config.tokens_per_image
    if kept is not None:  # new pictures would be pooled over other tokens than the cached ones
        what = "new pictures keep all their tokens, the cache does not"
        raise UserError("tokens_per_image", kept, what, f"{remedy}, or tokens_per_image=null")
    return open_like(made.images, folder, files)


def _fire(made: Stages, bases: list[Basis], pictures: ImageSet | None) -> list[Shown | None]:
    """Each basis' activations on new pictures, one pass for each host: bases of the random host are of another."""
    if pictures is None:
        return [None] * len(bases)
    c = made.config
    found: dict[tuple[str, str], Shown] = {}
    for host_of in dict.fromkeys(b.weights for b in bases):
        own = [b for b in bases if b.weights == host_of]
        host = made.host if host_of == made.weights else made.random_host
        projections = [(b.layer, units.Projection.load(b.units.path, b.sae_path)) for b in own]
        acts = cosy.activations(host, pictures, projections, c.policy, c.pool, c.dtype, c.batch_size, c.workers)
        found |= {(b.layer, b.name): Shown(pictures, part) for b, part in zip(own, acts, strict=True)}
    return [found[b.layer, b.name] for b in bases]


def table(bases: list[Basis], made: list[Artifact]) -> str:
    """Basis x mean, with how many units were measured and why the others were not."""
    heads = ("units", "unlabelled", "no images", "measured", "black", "preferred", "Holm")
    rows, means = [], dict[str, Any]()
    for basis, artifact in zip(bases, made, strict=True):
        found = read_json(artifact.path / "cosy.json")
        counts = [found[name] for name in ("units", "unlabelled", "without_images", "measured", "black")]
        means = found["mean"]
        numbers = [found["preferred"], found["preferred_holm"], *means.values()]
        rows.append([f"{basis.layer} {basis.name}", *map(str, counts), *map(tables.number, numbers)])
    return tables.draw(("basis", *heads, *means), rows)


if __name__ == "__main__":
    main()
