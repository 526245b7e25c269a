"""Labels for every unit of one basis: all scorers over one vocabulary, their margins, ranks and nulls, in labels.jsonl.

The order of a run: `exemplars` for each basis, proposals from them, one vocabulary pooled over all bases, then
`labels` for each basis over that same vocabulary, so that bases differ in nothing but their units.
"""

import logging
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.artifacts import (
    Artifact,
    digest,
    ensure,
    file_digest,
    opened,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from saelab.encoders import Encoder, ImageEmbeddings, label_embeddings
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.label import assign, clusters, concepts, nulls
from saelab.label.exemplars import Exemplars, MiningSettings
from saelab.label.fields import check_fields
from saelab.label.gather import Templates, completed, evidence
from saelab.label.vocabulary import Vocabulary
from saelab.units import UnitActivations

log = logging.getLogger("saelab")

CODE = 7  # version of this stage; part of every recipe
MEANINGS_AT_ONCE = 1024  # units whose positives' embeddings are held together
RANGES = {"nulls": (0, math.inf), "abstain_below": (0, 1), "seed": (0, math.inf), "runners_up": (0, math.inf)}
UNLABELLED = ("dead", "constant", "invalid")  # statuses of units that get no label


@dataclass(frozen=True)
class LabelSettings:
    """How labels are assigned. The presets in conf/label set all of it."""

    scorers: tuple[str, ...] = ("contrast_evidence", "csp", "csp_0.5", "semanticlens", "pearson", "cos_cubed")
    final: str = "contrast_evidence"  # the scorer whose best label becomes the unit's label
    templates: tuple[str, ...] | None = None  # None: the encoder's own
    renormalize: bool = True  # unit length after the mean over templates (csp_paper: False)
    nulls: int = 200  # permutations behind null_percentile; 0 leaves it null
    abstain_below: float = 0.95  # a final label that luck gives in more than 1 - this of cases is marked `abstained`
    seed: int = 0  # of the permutations, and of the random images that meanings are held against
    runners_up: int = 5  # next best labels kept per scorer
    meanings: bool = True  # split the positives of units that fall apart, with a label for each part


def labels(
    units: Artifact,
    exemplars: Artifact,
    images: ImageSet,
    embeddings: ImageEmbeddings,
    encoder: Encoder,
    vocabulary: Vocabulary,
    root: Path | str,
    settings: LabelSettings,
    mining: MiningSettings,
    proposals: Path | None = None,
    tokens: concepts.Tokens | None = None,
    host_emb: Float[Tensor, "images d_in"] | None = None,
) -> Artifact:
    """The `labels` artifact of one basis: labels.jsonl, exemplars.safetensors, vocabulary.json, proposals.jsonl.

    `proposals`: the folder whose proposals.jsonl is kept beside the labels; its candidates are in `vocabulary`.
    `tokens`: for `netdissect`, which looks at single places, and `decoder_direction`. Scorers that these units or
    pictures can't have (no label images, no decoder) are left out, with the reasons in left_out.json and in the log.
    `host_emb`: the host's own image vectors, for the mining rule `host`.

    Raises UserError for an unknown scorer, a `final` that is not among the scorers, or an empty vocabulary.
    """
    check(settings)
    recipe: dict[str, Any] = {"stage": "labels", "code": CODE, "exemplars": exemplars.digest, "settings": settings}
    recipe |= {"vocabulary": digest([vocabulary.labels, vocabulary.sources]), "encoder": embeddings.artifact.digest}
    recipe |= {"proposals": None if proposals is None else file_digest(proposals / "proposals.jsonl")}

    def build(folder: Path) -> None:
        vectors = label_embeddings(vocabulary.labels, encoder, root, settings.templates, settings.renormalize)
        found, activations = Exemplars.load(exemplars.path), UnitActivations.load(units.path)
        templates = _templates(vocabulary, encoder, root, settings)
        lost: dict[str, str] = {}
        rows = assign_all(
            activations,
            found,
            images,
            embeddings.images,
            vectors,
            vocabulary,
            settings,
            mining,
            tokens,
            templates,
            lost,
            host_emb,
        )
        write_json(folder / "left_out.json", lost)
        write_jsonl(folder / "labels.jsonl", rows)
        found.save(folder)
        write_json(folder / "vocabulary.json", vocabulary)
        if proposals is not None:
            shutil.copyfile(proposals / "proposals.jsonl", folder / "proposals.jsonl")

    return ensure(root, "labels", units.recipe["basis"], recipe, build)


def check(settings: LabelSettings) -> None:
    """Raise UserError for values that can't be meant, scorers that don't exist and a final scorer that is not run."""
    check_fields(settings, "label", RANGES)
    if not settings.scorers:
        raise UserError("scorer", "[]", "expected at least one scorer", "for example scorer=[contrast_evidence]")
    for name in settings.scorers:
        if name not in assign.SCORERS:
            raise UserError("scorer", name, "unknown", f"known: {', '.join(sorted(assign.SCORERS))}")
    if settings.final not in settings.scorers:
        remedy = f"choose one of {', '.join(settings.scorers)}"
        raise UserError("label.final", settings.final, "is not among the scorers", remedy)


def assign_all(
    units: UnitActivations,
    found: Exemplars,
    images: ImageSet,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    vocabulary: Vocabulary,
    settings: LabelSettings,
    mining: MiningSettings,
    tokens: concepts.Tokens | None = None,
    templates: Templates | None = None,
    left_out: dict[str, str] | None = None,
    host_emb: Float[Tensor, "images d_in"] | None = None,
) -> list[dict[str, Any]]:
    """The rows of labels.jsonl, one a unit, in the order of units.

    Units that fire nowhere, everywhere alike or with NaN get no label; `no_contrast` units get those of the scorers
    that need no contrast. Only the `mine` split is looked at. A scorer that these units or pictures can't have is left
    out, with the reason in the log and in `left_out`. Raises UserError where that is the final scorer.
    """
    ids = torch.as_tensor(images.ids("mine"))
    bundle = evidence(units, found, images, image_emb, label_emb, mining, host_emb)
    bundle, lost = completed(bundle, settings.scorers, settings.final, vocabulary, images, tokens, templates)
    scorers = [name for name in settings.scorers if name not in lost]
    for name, reason in lost.items():
        log.warning("%s: %s is left out (%s)", units.basis, name, reason)
    if left_out is not None:
        left_out.update(lost)
    final: Tensor | None = None
    tops, ranks, more = {}, {}, {}
    for name in (settings.final, *(n for n in scorers if n != settings.final)):
        scores = assign.score([name], bundle)[name]
        more[name] = assign.explained(name, scores, bundle, vocabulary.labels)
        tops[name] = assign.ranking(scores, settings.runners_up)
        final = tops[name].label if final is None else final
        ranks[name] = assign.rank_of(scores, final)
    percentile = {}
    if settings.nulls:
        best = {name: top.score for name, top in tops.items()}
        percentile = nulls.null_percentiles(scorers, bundle, settings.nulls, settings.seed, best, progress=True)
    per_scorer = {
        name: [
            entry | own for entry, own in zip(_entries(top, ranks[name], percentile.get(name), vocabulary), more[name])
        ]
        for name, top in tops.items()
    }
    found_meanings = (
        _meanings(bundle, vocabulary, ids, settings.seed) if settings.meanings else [None] * len(found.status)
    )
    place = {label: i for i, label in enumerate(vocabulary.labels)}
    rows = []
    for unit, status in enumerate(found.status):
        scored = {name: per_scorer[name][unit] for name in scorers}
        known = {name: e for name, e in scored.items() if status not in UNLABELLED and e["label"] is not None}
        row = _row(unit, status, units, found, known, vocabulary, place, settings)
        rows.append(row | {"meanings": found_meanings[unit] if row["label"] is not None else None})
    return rows


def _templates(vocabulary: Vocabulary, encoder: Encoder, root: Path | str, settings: LabelSettings) -> Templates | None:
    """Labels and templates apart, where a scorer asks for them."""
    if not any(assign.SCORERS[name].needs == "templates" for name in settings.scorers):
        return None
    filled, empty = (
        label_embeddings(texts, encoder, root, settings.templates, renormalize=False)
        for texts in (vocabulary.labels, [""])
    )
    return Templates(filled, empty[0])


def _meanings(bundle: assign.Evidence, vocabulary: Vocabulary, ids: Tensor, seed: int) -> list[list[dict[str, Any]]]:
    """Per unit one meaning, or two where its positives fall apart: label, share of the activation, image ids."""
    paired = bool(bundle.valid.any())
    valid = bundle.valid if paired else bundle.positive_ids >= 0
    chance = clusters.Chance(bundle.image_emb, bundle.label_emb, seed)
    split: list[tuple[clusters.Meaning, ...]] = []
    for some in torch.arange(bundle.n_units).split(MEANINGS_AT_ONCE):
        positives = bundle.images_of(bundle.positive_ids[some])
        contrasts = bundle.images_of(bundle.contrast_ids[some]) if paired else None
        weights = bundle.positive_values[some].nan_to_num()
        split += clusters.meanings(positives, weights, bundle.label_emb, chance, contrasts, valid[some])
    rows = []
    for unit, found in enumerate(split):
        own = ids[bundle.positive_ids[unit].clamp(min=0)].tolist()
        rows.append(
            [
                {
                    "label": vocabulary.labels[m.label],
                    "share": m.share,
                    "score": m.score,
                    "positives": [own[i] for i in m.members],
                }
                for m in found
            ]
        )
    return rows


def _entries(
    top: assign.Ranking, rank: Tensor, percentile: Tensor | None, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Per unit: best label, score, rank of the final label, margin to the next, null percentile, runners-up."""
    entries = []
    nulls_of = percentile.tolist() if percentile is not None else [None] * len(rank)
    rows = zip(top.label.tolist(), top.score.tolist(), rank.tolist(), top.margin.tolist(), nulls_of)
    for unit, (label, score, own_rank, margin, null) in enumerate(rows):
        behind = zip(top.runners_up[unit].tolist(), top.runner_scores[unit].tolist())
        entries.append(
            {
                "label": vocabulary.labels[label] if label >= 0 else None,
                "score": score,
                "rank": own_rank if own_rank > 0 else None,
                "margin": margin,
                "null_percentile": null,
                "runners_up": [[vocabulary.labels[i], value] for i, value in behind if i >= 0],
            }
        )
    return entries


def by_luck(percentile: float, settings: LabelSettings) -> bool:
    """Whether luck gives so good a label in more than 1 - `abstain_below` of cases.

    The exact p of a permutation test, (1 + permutations whose best is as good) / (1 + permutations), so that labels of
    noise pass in 5 % of cases at 0.95, however few the permutations (Phipson and Smyth, 2010).
    """
    as_good = round((1 - percentile) * settings.nulls)
    return (1 + as_good) / (1 + settings.nulls) > 1 - settings.abstain_below + 1e-9


def _row(
    unit: int,
    status: str,
    units: UnitActivations,
    found: Exemplars,
    entries: dict[str, Any],
    vocabulary: Vocabulary,
    place: dict[str, int],
    settings: LabelSettings,
) -> dict[str, Any]:
    final = entries.get(settings.final)
    label = final["label"] if final else None
    source = None if label is None else "+".join(vocabulary.sources[place[label]])
    percentile = final["null_percentile"] if final else None
    return {
        "unit": unit,
        "basis": units.basis,
        "status": status,
        "label": label,
        "abstained": label is None or (percentile is not None and by_luck(percentile, settings)),
        "final": settings.final,
        "source": source,
        "scores": entries,
        "positives": found.positives[unit].tolist(),
        "contrasts": found.contrasts[unit].tolist(),
        "fires_on": int(found.fires_on[unit]),
    }


def left_out(folder: Path | str) -> dict[str, str]:
    """Scorers that a `labels` artifact's units or pictures can't have, each with the reason."""
    return read_json(opened(folder).path / "left_out.json")


def read(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of a `labels` artifact. Raises UserError if it is missing, unfinished or damaged."""
    return read_jsonl(opened(folder).path / "labels.jsonl")


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many units have each status, and how many of the labelled ones abstain (`abstained`)."""
    tally = Counter(row["status"] for row in rows)
    tally["abstained"] = sum(row["abstained"] and row["label"] is not None for row in rows)
    return dict(tally)
