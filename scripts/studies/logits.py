"""Do units whose right labels are known get them? The logits of a classifier, each of which *is* its class (WWW).

`python scripts/studies/logits.py PICTURES ROOT`: PICTURES has a photo or more of each of ImageNet's 1000 classes (what
its files are called is not looked at), ROOT keeps what is computed. Hit rate: the share of logits whose best label
among the 1000 names is their own class', by correlation with ConSE's similarities; beside it labels dealt out. Then
WWW's sets of labels (all above 95 % of the best) from the photos with the highest logits: how large they are, F1 with
the set of the own class' name alone, and the sentences' cosine of the best label and that name.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saelab import Pipeline, tables
from saelab.effects.targets import find_targets, imagenet_outputs
from saelab.encoders import SentenceEncoder, embed_templates
from saelab.label.assign import pearson
from saelab.label.scorers.several import www, www_labels

DEALS = 20
HOST = "efficientnet_lite0"
PHOTOS = (1, 10)  # with the highest logits, that WWW chooses labels from


def main(pictures: Path, root: Path) -> None:
    """Print a row for each form of the outputs."""
    outputs = imagenet_outputs()
    found = {"source": "folder", "root": str(pictures), "fractions": [0.98, 0.01, 0.01]}
    p = Pipeline(
        found, HOST, ["output"], vocabulary="imagenet1k", bases=["neuron"], root=str(root), proposer={"name": "none"}
    )
    logits = torch.from_numpy(p.caches["output"].pooled("mean")).float()
    names, vectors = p._label_vectors()
    own = find_targets(names, outputs, ("exact",))
    right = torch.zeros(len(outputs), len(names), dtype=torch.bool)
    for column, name in enumerate(names):
        right[own.weights[name][0], column] = True
    texts = SentenceEncoder(device="cpu").embed_sentences(list(outputs.names))
    label_texts = SentenceEncoder(device="cpu").embed_sentences(list(names))
    alike = texts @ label_texts.T  # [outputs, labels], vectors of length 1
    rows = []
    for form, acts in (("logits above 0", logits.relu()), ("logits", logits), ("softmax", logits.softmax(1))):
        scores = pearson(acts, p.embeddings.images, vectors).nan_to_num(-torch.inf)
        rows.append([form, *(tables.number(x) for x in _numbers(scores, right, alike))])
    heads = ("units", "hit rate", "own class among the best 5", "cosine of label and name", "hit rate, dealt")
    print(f"{len(logits)} photos, {len(names)} labels; chance {1 / len(names):.3f}")
    print(tables.draw_markdown(heads, rows))
    columns = ("WWW, photos a unit", "labels a set", "own class in the set", "F1", "cosine of label and name")
    encoder, templates = p.encoder, p.label_settings.templates or p.encoder.templates
    filled, empty = (embed_templates(encoder.embed_sentences, t, templates, False) for t in (names, [""]))
    rows = []
    for photos in PHOTOS:
        chosen = p.embeddings.images[logits.topk(photos, dim=0).indices.T].float()
        sets = www_labels(www(chosen, filled, empty[0]))
        rows.append([str(photos), *(tables.number(x) for x in _of_sets(sets, right, alike))])
    print(tables.draw_markdown(columns, rows))


def _of_sets(sets: list[list[int]], right: Tensor, alike: Tensor) -> list[float]:
    """Mean size, share that has the own class, F1 with the own class alone, cosine of the best label; none: 0."""
    sizes = np.array([len(own) for own in sets])
    hit = np.array([bool(right[unit, own].any()) for unit, own in enumerate(sets)])
    best = [(unit, own[0]) for unit, own in enumerate(sets) if own]
    cosine = sum(float(alike[pair]) for pair in best) / len(sets)
    return [float(x) for x in (sizes.mean(), hit.mean(), (2 * hit / (sizes + 1)).mean(), cosine)]


def _numbers(scores: Tensor, right: Tensor, alike: Tensor) -> list[float]:
    """Hit rate, own class among the best five, mean cosine of best label and class name, hit rate of labels dealt."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    each, best = torch.arange(len(scores)), order[:, 0]
    among = right.gather(1, order[:, :5]).any(1)
    rng = np.random.default_rng(0)
    deals = [torch.from_numpy(rng.permutation(len(best))) for _ in range(DEALS)]
    dealt = [float(right[each, best[deal]].float().mean()) for deal in deals]
    numbers = (right[each, best].float(), among.float(), alike[each, best])
    return [*(float(x.mean()) for x in numbers), float(np.mean(dealt))]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
