"""What the labels of a run are measured against."""

from typing import TYPE_CHECKING

import torch

from saelab import encoders, evaluate, truth

if TYPE_CHECKING:
    from stages import Run


def evidence(run: "Run") -> evaluate.Judges:
    """The judging encoder, people's captions, and people's words as truth."""
    words, images, settings = run.vocabulary.labels, run.images, run.label_settings
    # The labeller's own file of vectors, whatever their length there; the judge's have length 1.
    vectors = encoders.label_embeddings(words, run.encoder, run.root, settings.templates, settings.renormalize)
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    judge = truth.Similarity.of(run.encoder.name, run.embeddings.images, words, vectors)
    stated = truth.from_descriptions(words, images.captions, images.classes, run.cfg.truth)
    return evaluate.Judges(judge, _captions(run, words), stated)


def _captions(run: "Run", words: tuple[str, ...]) -> truth.Similarity | None:
    """What people wrote, in a sentence encoder; None where nobody did."""
    captions = [caption or "" for caption in run.images.captions]
    if not any(captions):
        return None
    reader = encoders.SentenceEncoder(device=run.device)
    distinct = sorted(set(captions))
    vectors = encoders.label_embeddings(distinct, reader, run.root)
    place = {caption: row for row, caption in enumerate(distinct)}
    rows = torch.tensor([place[caption] for caption in captions])
    known = torch.tensor([bool(caption) for caption in captions])
    labels = encoders.label_embeddings(words, reader, run.root)
    return truth.Similarity.of(reader.name, vectors[rows], words, labels, known)
