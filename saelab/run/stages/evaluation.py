"""The evaluation stage: what labels are measured against, and the numbers of each basis on the test split."""

from pathlib import Path

import torch

from saelab import encoders, evaluate, truth, units
from saelab.artifacts import Artifact, ensure
from saelab.images import ImageSet
from saelab.label import concepts, pipeline
from saelab.label.series import group_images
from saelab.run.basis import Basis

CODE = 8  # version of this stage; part of every recipe


def make_judges(
    labels: tuple[str, ...],
    images: ImageSet,
    image_emb: torch.Tensor,
    encoder: encoders.Encoder,
    settings: pipeline.LabelSettings,
    rule: str,
    root: Path,
    device: str,
    second: str | None = None,
) -> evaluate.Judges:
    """The judging encoder, people's captions, and people's words as truth, for a vocabulary.

    `second`: who reads the captions a second time, as `encoders.second_reader` names it.
    Nine parameters: the judges join the labels, the images and three encoders, which no one noun holds.
    """
    # The labeller's own file of vectors, whatever their length there; the judge's have length 1.
    vectors = encoders.label_embeddings(labels, encoder, root, settings.templates, settings.renormalize)
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    judge = truth.Similarity.of(encoder.name, image_emb, labels, vectors)
    stated = truth.from_descriptions(labels, images.captions, images.classes, rule)
    first, other = encoders.SentenceEncoder(device=device), encoders.second_reader(second, device)
    read = [None if reader is None else _captions(labels, images, root, reader) for reader in (first, other)]
    return evaluate.Judges(judge, read[0], stated, read[1])


def evaluate_basis(
    basis: Basis,
    judges: evaluate.Judges,
    encoder: encoders.Encoder,
    images: ImageSet,
    tokens: concepts.Tokens | None,
    rule: str,
    k: int,
    root: Path,
) -> Artifact:
    """The `evaluation` artifact of a labelled basis. `tokens`: for labels by NetDissect, which looks at pixels.

    Eight parameters: each is a part of the recipe or of what the numbers are computed from.
    """
    assert basis.labels is not None
    labelled = basis.labels
    recipe = {"stage": "evaluation", "code": CODE, "labels": labelled.digest, "images": images.fingerprint}
    recipe |= {"truth": rule, "judge": encoder.recipe, "k": k}
    splits = evaluate.Splits(images.ids("mine"), images.ids("test"))

    def build(folder: Path) -> None:
        acts, rows = units.UnitActivations.load(basis.units.path), pipeline.read(labelled.path)
        found, summary = evaluate.evaluate(acts, rows, judges, splits, k, groups=group_images(images))
        if tokens is not None and any("netdissect" in row["scores"] for row in rows):
            chosen = [row["scores"].get("netdissect", {}).get("label") for row in rows]
            iou = concepts.held_out_iou(chosen, tokens, images, splits.mine, splits.test)
            evaluate.add_pixels(found, summary, iou)
        evaluate.write(folder, found, summary)

    return ensure(root, "evaluation", basis.name, recipe, build)


def _captions(
    labels: tuple[str, ...], images: ImageSet, root: Path, reader: encoders.SentenceEncoder | encoders.WordAverages
) -> truth.Similarity | None:
    """What people wrote, in a sentence encoder; None where nobody did."""
    captions = [caption or "" for caption in images.captions]
    if not any(captions):
        return None
    distinct = sorted(set(captions))
    vectors = encoders.label_embeddings(distinct, reader, root)
    place = {caption: row for row, caption in enumerate(distinct)}
    rows = torch.tensor([place[caption] for caption in captions])
    known = torch.tensor([bool(caption) for caption in captions])
    own = encoders.label_embeddings(labels, reader, root)
    return truth.Similarity.of(reader.name, vectors[rows], labels, own, known)
