"""Labels for every unit of one basis: all scorers over one vocabulary, their margins, ranks and nulls, in labels.jsonl.

The order of a run: `exemplars` for each basis, proposals from them, one vocabulary pooled over all bases, then
`labels` for each basis over that same vocabulary, so that bases differ in nothing but their units.
"""

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.artifacts import (
    Artifact,
    digest,
    ensure,
    open_artifact,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from saelab.encoders import Encoder, ImageEmbeddings, label_embeddings
from saelab.images import ImageSet
from saelab.label import assign, clusters, concepts, nulls, sets
from saelab.label.evidence import Templates, complete, evidence
from saelab.label.exemplars import Exemplars, MiningSettings
from saelab.label.proposal import answers_digest
from saelab.label.settings import LabelSettings, by_luck, check
from saelab.label.vocabulary import Vocabulary
from saelab.units import UnitActivations

CODE = 9  # version of this stage; part of every recipe
MEANINGS_AT_ONCE = 1024  # units whose positives' embeddings are held together
UNLABELLED = ("dead", "constant", "invalid")  # statuses of units that get no label


@dataclass(frozen=True)
class MinedBasis:
    """One basis, ready to be labelled."""

    units: Artifact  # its activations
    exemplars: Artifact  # what was mined from them, and how
    proposals: Path | None = None  # folder of the proposals.jsonl to keep beside the labels; `vocabulary` has its words
    tokens: concepts.Tokens | None = None  # for scorers that look at single places or at a decoder
    host_emb: Float[Tensor, "images d_in"] | None = None  # the host's own image vectors, for the mining rule `host`


@dataclass(frozen=True)
class Space:
    """Where images and labels meet."""

    encoder: Encoder  # of texts
    embeddings: ImageEmbeddings  # of the images, by the same encoder


def labels(
    basis: MinedBasis,
    images: ImageSet,
    space: Space,
    vocabulary: Vocabulary,
    settings: LabelSettings,
    root: Path | str,
) -> Artifact:
    """The `labels` artifact of one basis: labels.jsonl, exemplars.safetensors, vocabulary.json, proposals.jsonl.

    Scorers that these units or pictures can't have (no label images, no decoder) are left out, with the reasons in
    left_out.json and in the log. Raises UserError for an unknown scorer, a `final` that is not among the scorers, or
    an empty vocabulary.
    """
    check(settings)
    recipe: dict[str, Any] = {"stage": "labels", "code": CODE, "exemplars": basis.exemplars.digest}
    recipe |= {"settings": settings, "vocabulary": digest([vocabulary.labels, vocabulary.sources])}
    recipe |= {"encoder": space.embeddings.artifact.digest}
    recipe |= {"proposals": None if basis.proposals is None else answers_digest(basis.proposals)}

    def build(folder: Path) -> None:
        texts = (settings.templates, settings.renormalize)
        vectors = label_embeddings(vocabulary.labels, space.encoder, root, *texts)
        found, activations = Exemplars.load(basis.exemplars.path), UnitActivations.load(basis.units.path)
        mining = MiningSettings(**basis.exemplars.recipe["mining"])
        seen = evidence(activations, found, images, space.embeddings.images, vectors, mining, basis.host_emb)
        templates = _templates(vocabulary, space.encoder, root, settings)
        seen, lost = complete(seen, settings, vocabulary, images, basis.tokens, templates)
        left = replace(settings, scorers=tuple(name for name in settings.scorers if name not in lost))
        write_json(folder / "left_out.json", lost)
        write_jsonl(folder / "labels.jsonl", assign_all(seen, found, vocabulary, left, activations.basis))
        found.save(folder)
        write_json(folder / "vocabulary.json", vocabulary)
        if basis.proposals is not None:
            shutil.copyfile(basis.proposals / "proposals.jsonl", folder / "proposals.jsonl")

    return ensure(root, "labels", basis.units.recipe["basis"], recipe, build)


def assign_all(
    evidence: assign.Evidence, found: Exemplars, vocabulary: Vocabulary, settings: LabelSettings, basis: str
) -> list[dict[str, Any]]:
    """The rows of labels.jsonl, one a unit, in the order of units.

    `evidence`: what all the scorers of `settings` look at, made from the exemplars `found` (`evidence`, `complete`).
    Units that fire nowhere, everywhere alike or with NaN get no label; `no_contrast` units get those of the scorers
    that need no contrast.
    """
    per_scorer = _score(evidence, vocabulary, settings)
    meanings: list[Any] = [None] * len(found.status)
    if settings.meanings:
        meanings = _meanings(evidence, found, vocabulary, settings.seed)
    own_sets: list[list[int] | None] = [None] * len(found.status)
    if settings.sets:
        own_sets = sets.label_sets(evidence, settings.final, settings.sets, seed=settings.seed, progress=True)
    place = {label: i for i, label in enumerate(vocabulary.labels)}
    rows = []
    for unit, status in enumerate(found.status):
        scored = {name: per_scorer[name][unit] for name in settings.scorers}
        known = {name: e for name, e in scored.items() if status not in UNLABELLED and e["label"] is not None}
        label = known[settings.final]["label"] if settings.final in known else None
        source = None if label is None else "+".join(vocabulary.sources[place[label]])
        row = {"unit": unit, "basis": basis, "status": status} | _name(known.get(settings.final), source, settings)
        row |= {"scores": known, "positives": found.positives[unit].tolist()}
        row |= {"contrasts": found.contrasts[unit].tolist(), "fires_on": int(found.fires_on[unit])}
        row |= {"meanings": meanings[unit] if label is not None else None}
        if settings.sets:
            ids = own_sets[unit] if label is not None else None
            row["label_set"] = None if ids is None else [vocabulary.labels[i] for i in ids]
        rows.append(row)
    return rows


def _score(
    evidence: assign.Evidence, vocabulary: Vocabulary, settings: LabelSettings
) -> dict[str, list[dict[str, Any]]]:
    """Each scorer's entry of each unit."""
    final: Tensor | None = None
    tops, ranks, more = {}, {}, {}
    for name in (settings.final, *(n for n in settings.scorers if n != settings.final)):
        scores = assign.score([name], evidence)[name]
        more[name] = assign.explained(name, scores, evidence, vocabulary.labels)
        tops[name] = assign.ranking(scores, settings.runners_up)
        final = tops[name].label if final is None else final
        ranks[name] = assign.rank_of(scores, final)
    percentile = _percentiles(tops, evidence, settings)
    return {
        name: [
            entry | own for entry, own in zip(_entries(top, ranks[name], percentile.get(name), vocabulary), more[name])
        ]
        for name, top in tops.items()
    }


def _percentiles(
    tops: dict[str, assign.Ranking], evidence: assign.Evidence, settings: LabelSettings
) -> dict[str, Float[Tensor, "units"]]:
    """Null percentiles by scorer: the final label's decides who abstains, so it takes the most permutations."""
    rivals = [name for name in tops if name != settings.final]
    fewer = settings.nulls if settings.rival_nulls is None else min(settings.nulls, settings.rival_nulls)
    found: dict[str, Tensor] = {}
    for names, n in (([settings.final], settings.nulls), (rivals, fewer)):
        if names and n:
            best = {name: tops[name].score for name in names}
            found |= nulls.null_percentiles(names, evidence, n, settings.seed, best, progress=True)
    return found


def _name(final: dict[str, Any] | None, source: str | None, settings: LabelSettings) -> dict[str, Any]:
    """What a row says of the unit's own label, from the final scorer's entry."""
    label = final["label"] if final else None
    percentile = final["null_percentile"] if final else None
    abstained = label is None or (percentile is not None and by_luck(percentile, settings))
    return {"label": label, "abstained": abstained, "final": settings.final, "source": source}


def _templates(vocabulary: Vocabulary, encoder: Encoder, root: Path | str, settings: LabelSettings) -> Templates | None:
    """Labels and templates apart, where a scorer asks for them."""
    if not any(assign.SCORERS[name].needs == "templates" for name in settings.scorers):
        return None
    filled, empty = (
        label_embeddings(texts, encoder, root, settings.templates, renormalize=False)
        for texts in (vocabulary.labels, [""])
    )
    return Templates(filled, empty[0])


def _meanings(
    bundle: assign.Evidence, exemplars: Exemplars, vocabulary: Vocabulary, seed: int
) -> list[list[dict[str, Any]]]:
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
        own = exemplars.positives[unit].tolist()
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
    """Per unit: best label, score, rank of the final label, margin to the next, null percentile, runners-up.

    Without a percentile (NaN: the scorer does not look at pooled activations, say) there is none to abstain by: None.
    """
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
                "null_percentile": None if null is None or math.isnan(null) else null,
                "runners_up": [[vocabulary.labels[i], value] for i, value in behind if i >= 0],
            }
        )
    return entries


def left_out(folder: Path | str) -> dict[str, str]:
    """Scorers that a `labels` artifact's units or pictures can't have, each with the reason."""
    return read_json(open_artifact(folder).path / "left_out.json")


def read(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of a `labels` artifact. Raises UserError if it is missing, unfinished or damaged."""
    return read_jsonl(open_artifact(folder).path / "labels.jsonl")


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many units have each status."""
    return dict(Counter(row["status"] for row in rows))


def count_abstaining(rows: Sequence[dict[str, Any]]) -> int:
    """How many of the labelled units abstain."""
    return sum(row["abstained"] and row["label"] is not None for row in rows)
