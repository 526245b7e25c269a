"""What a unit page shows, as plain records: histogram, activation bands, enriched classes, neighbours, percentiles."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from saelab.acts import firing_threshold
from saelab.compare.glossary import LOWER_IS_BETTER
from saelab.images import ImageSet
from saelab.report import enriched, held_out, pictures, vlm_answers, what_it_does
from saelab.report.reading import ReadBasis, Run

BINS = 30  # of the histogram
PER_BAND = 4  # images drawn from each tenth of the range, and from the zeros
OF_MEANING = 8  # images shown of each of a unit's meanings
NEAREST = 6  # neighbours shown of each sort
NEAREST_ELSEWHERE = 3  # the same in each of the other bases
BLOCK = 2**23  # cosines that are held at once while neighbours are looked for
SAMPLE = 4096  # images at most on which co-firing is measured
GROUP = 64  # columns of which only the highest is looked at first
FAITHFULNESS = ("truth_r", "caption_r", "auprc", "f1", "iou", "auroc", "scs")
COHERENCE = ("clarity", "caption_clarity", "monosemanticity", "polysemanticity", "redundancy")


def main_scorer(row: dict[str, Any]) -> str | None:
    """The scorer whose score stands beside a unit's label: the one that chose it, else the first with that label."""
    if row.get("final") in row["scores"]:
        return row["final"]
    chose = [name for name, s in row["scores"].items() if s["label"] == row["label"]]
    return next(iter(chose or row["scores"]), None)


def of_basis(
    run: Run, basis: ReadBasis, draw: enriched.Draw, near: list[dict[str, Any]], kept: Sequence[np.ndarray]
) -> Iterator[dict[str, Any]]:
    """One record per unit of `basis`.

    `draw` from `enriched.draw_of`, `near` from `neighbours`, `kept` from `exemplars_shown`.
    """
    rng = np.random.default_rng(0)
    measured = [_measured(row, found) for row, found in zip(basis.labels, basis.evaluation, strict=True)]
    percentiles, does = _percentiles(measured), what_it_does.of_units(basis.effects, basis.labels)
    for u, (row, unseen) in enumerate(zip(basis.labels, held_out.of_basis(run, basis), strict=True)):
        ids, values = basis.column(u)
        on = dict(zip(ids.tolist(), values.tolist(), strict=True))
        record = _label(row) | _exemplars(basis, u, kept[u], on, run.images.groups)
        record |= _distribution(values, len(run.images))
        record |= {
            "bands": _bands(ids, values, len(run.images), rng),
            "enriched": enriched.classes(ids, values, len(kept[u]), draw),
            "measured": measured[u],
            "percentile": {name: column[u] for name, column in percentiles.items()},
            "evaluation": basis.evaluation[u].get("by_scorer") or {},
            "interval": basis.evaluation[u].get("interval") or {},
            "badge": basis.evaluation[u].get("badge"),
            "said_of": (basis.evaluation[u].get("named") or {}).get("truth_images"),
            "held_out": unseen,
            "does": does[u],
            "near": near[u],
            "meanings": [_meaning(found, run.images.groups) for found in row.get("meanings") or []],
            "sources": _sources(row, basis.sources),
            "verified": vlm_answers.of_unit(basis.verified.get(row["unit"], [])),
        }
        named = {i for key in ("positives", "contrasts") for i in record[key]} | {i for b in record["bands"] for i in b}
        named |= {i for meaning in record["meanings"] for i in meaning["positives"]}
        named |= {i for found in record["verified"] for i in found.get("images", [])}
        named |= {i for photos in (unseen or {}).values() if isinstance(photos, list) for i in _photos(photos)}
        record["names"] = {i: name(run.images, i) for i in sorted(named) if i >= 0}
        yield record


def _meaning(found: dict[str, Any], groups: Int[np.ndarray, "images"]) -> dict[str, Any]:
    """One of a unit's meanings with the images of it that are `shown` (`pictures.few_of_each`)."""
    ids = np.array(found["positives"], dtype=np.int64)
    return found | {"shown": ids[pictures.few_of_each(groups[ids], OF_MEANING)].tolist()}


def _photos(shown: list[Any]) -> list[int]:
    """Image ids of [image, activation] pairs; of anything else none."""
    return [pair[0] for pair in shown if isinstance(pair, list)]


def name(images: ImageSet, i: int) -> str:
    """A picture in words: its caption, else its classes, else its file."""
    return images.captions[i] or ", ".join(images.classes[i]) or images.files[i]


def _label(row: dict[str, Any]) -> dict[str, Any]:
    keep = ("unit", "status", "label", "abstained", "source", "scores", "fires_on")
    asked = {"label_set": row["label_set"]} if "label_set" in row else {}  # only runs with `label.sets` have it
    return {key: row.get(key) for key in keep} | asked | {"scorer": main_scorer(row)}


def _sources(row: dict[str, Any], known: dict[str, str]) -> dict[str, str]:
    """Where each candidate of any scorer comes from."""
    found = [(s["label"], *(label for label, _ in s.get("runners_up") or [])) for s in row["scores"].values()]
    return {label: known[label] for labels in found for label in labels if label in known}


def exemplars_shown(basis: ReadBasis, shown: int, groups: Int[np.ndarray, "images"]) -> list[np.ndarray]:
    """Per unit the ranks of the strongest images on its page: up to `shown`, few near-duplicates.

    `groups`: of the run's images (`ImageSet.groups`), for `pictures.few_of_each`.
    """

    def of_unit(u: int, ids: Int[np.ndarray, "k"]) -> np.ndarray:
        places = _firing(basis, u)
        return places[pictures.few_of_each(groups[ids[places]], shown)]

    return [of_unit(u, ids) for u, ids in enumerate(basis.exemplars["positives"])]


def _firing(basis: ReadBasis, u: int) -> Int[np.ndarray, "some"]:
    """Ranks of a unit's mined images that fire it."""
    return np.flatnonzero((basis.exemplars["positives"][u] >= 0) & (basis.exemplars["activations"][u] > 0))


def _exemplars(
    basis: ReadBasis, u: int, keep: np.ndarray, on: dict[int, float], groups: Int[np.ndarray, "images"]
) -> dict[str, Any]:
    """The strongest images with their contrasts; `on`: the unit's activation by image, where it is not zero.

    `alike`: for each, how many others of its group are among the strongest and not shown.
    """
    part = {
        key: basis.exemplars[key][u][keep].tolist() for key in ("positives", "activations", "contrasts", "similarity")
    }
    every = groups[basis.exemplars["positives"][u][_firing(basis, u)]]
    part["alike"] = [int((every == group).sum()) - 1 for group in groups[part["positives"]]]
    return part | {"contrast_activations": [on.get(i, 0.0) if i >= 0 else None for i in part["contrasts"]]}


def _distribution(values: np.ndarray, n_images: int) -> dict[str, Any]:
    top = float(values.max()) if len(values) else 0.0
    low = min(0.0, float(values.min())) if len(values) else 0.0
    fires = values[values > firing_threshold(np.float64(top))]
    counts = np.histogram(fires, BINS, (low, top))[0].tolist() if len(fires) and top > low else []
    return {"max": top, "range": [low, top], "histogram": counts, "silent": n_images - len(fires), "images": n_images}


def _bands(ids: np.ndarray, values: np.ndarray, n_images: int, rng: np.random.Generator) -> list[list[int]]:
    """Images drawn from each tenth of (0, max], strongest tenth first, and last from the images it does not fire on."""
    fires = values > firing_threshold(values.max(initial=0.0))
    ids, values = ids[fires], values[fires]
    if not len(ids):
        return []
    tenth = np.clip(np.ceil(10 * values / values.max()).astype(int), 1, 10)
    drawn = [_draw(ids[tenth == t], rng) for t in range(10, 0, -1)]
    silent = np.ones(n_images, dtype=bool)
    silent[ids] = False
    return [*drawn, _draw(np.flatnonzero(silent), rng)]


def _draw(ids: np.ndarray, rng: np.random.Generator) -> list[int]:
    return sorted(rng.choice(ids, min(PER_BAND, len(ids)), replace=False).tolist())


def _measured(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    scorer = main_scorer(row)
    numbers = (found.get("by_scorer") or {}).get(scorer) or {}
    return {
        "score": row["scores"][scorer]["score"] if scorer else None,
        "margin": row["scores"][scorer].get("margin") if scorer else None,
        "null_percentile": row["scores"][scorer].get("null_percentile") if scorer else None,
        "firing_rate": found.get("firing_rate"),
        **{key: numbers.get(key) for key in FAITHFULNESS},
        **{key: found.get(key) for key in COHERENCE},
    }


def _percentiles(measured: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Per number: the share of the basis's units that do worse (ties half), in percent, by the number's direction."""
    from scipy.stats import rankdata

    found = {}
    for key in (*FAITHFULNESS, *COHERENCE, "score"):
        column = np.array([np.nan if m[key] is None else m[key] for m in measured], float)
        column = -column if key in LOWER_IS_BETTER else column
        have = np.isfinite(column)
        share = np.full(len(column), np.nan)
        share[have] = 100 * (rankdata(column[have]) - 0.5) / max(1, have.sum())
        found[key] = [None if np.isnan(s) else round(float(s), 1) for s in share]
    return found


def neighbours(run: Run, means: list[np.ndarray | None]) -> dict[str, list[dict[str, Any]]]:
    """Per basis and unit: same label, fires together (own basis; each other basis), nearest decoder direction, and of
    any basis the units of nearest meaning (`means` from `meaning.of_bases`)."""
    found: dict[str, list[dict[str, Any]]] = {b.name: [{} for _ in b.labels] for b in run.bases}
    _same_label(run, found)
    for basis in run.bases:
        if basis.decoder is not None:
            rows = basis.decoder / np.maximum(np.linalg.norm(basis.decoder, axis=1, keepdims=True), 1e-12)
            _nearest(rows, rows, basis.name, "decoder", found[basis.name], own=True)
    sample = np.sort(np.random.default_rng(0).permutation(len(run.images))[:SAMPLE])
    columns = {b.name: _standardised(b.acts, sample) for b in run.bases}
    for basis in run.bases:
        _nearest(columns[basis.name], columns[basis.name], basis.name, "cofire", found[basis.name], own=True)
        for other in run.bases:
            if other.name != basis.name:
                _nearest(columns[basis.name], columns[other.name], other.name, "links", found[basis.name], own=False)
    for basis, own in zip(run.bases, means, strict=True):
        for other, theirs in zip(run.bases, means, strict=True):
            if own is not None and theirs is not None and own.shape[1] == theirs.shape[1]:
                _nearest(own, theirs, other.name, "meaning", found[basis.name], own=other is basis)
        for entry in found[basis.name]:
            if "meaning" in entry:
                entry["meaning"] = sorted(entry["meaning"], key=lambda near: -near[2])[:NEAREST]
    return found


def _same_label(run: Run, found: dict[str, list[dict[str, Any]]]) -> None:
    sharing: dict[str, list[tuple[float, str, int]]] = {}
    for basis in run.bases:
        for u, row in enumerate(basis.labels):
            if row["label"] is not None:
                score = (row["scores"].get(main_scorer(row)) or {}).get("score") or 0.0
                sharing.setdefault(row["label"], []).append((-score, basis.name, u))
    for members in sharing.values():
        members.sort()
        best = [[name, u] for _, name, u in members[: NEAREST + 1]]
        for _, name, u in members:
            found[name][u]["same"] = [m for m in best if m != [name, u]][:NEAREST]
            found[name][u]["sharing"] = len(members) - 1


def _standardised(acts: Any, sample: np.ndarray) -> np.ndarray:
    """[units, sample] float32 rows of mean 0 and length 1 (0 where constant), so that products are correlations."""
    rows = acts[sample].toarray().astype(np.float32).T
    rows -= rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _nearest(a: np.ndarray, b: np.ndarray, of: str, key: str, found: list[dict[str, Any]], own: bool) -> None:
    """Append [basis, unit, cosine] of the rows of `b` nearest to each row of `a` (excluding itself), nearest first."""
    keep = min(NEAREST if own else NEAREST_ELSEWHERE, len(b) - own)
    if keep < 1:
        return
    step = max(1, min(512, BLOCK // len(b)))
    for start in range(0, len(a), step):
        cosine = a[start : start + step] @ b.T
        if own:
            cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -2
        best, values = _highest(cosine, keep)
        for i in range(len(best)):
            pairs = zip(best[i].tolist(), values[i].tolist(), strict=True)
            found[start + i].setdefault(key, []).extend([of, j, round(x, 3)] for j, x in pairs if x > 0)


def _highest(rows: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the `keep` highest of each row, highest first, and their values.

    A row's highest lie in those of its groups that have the highest maxima, and a maximum is found at the speed of
    memory: of 100,000 columns this takes a tenth of the time that sorting out the whole row takes.
    """
    wide = rows.shape[1] // GROUP * GROUP
    if wide // GROUP > keep:
        tops = rows[:, :wide].reshape(len(rows), -1, GROUP).max(2)
        groups = np.sort(np.argpartition(tops, -keep, axis=1)[:, -keep:], axis=1)
        inside = (groups[..., None] * GROUP + np.arange(GROUP)).reshape(len(rows), -1)
        rest = np.broadcast_to(np.arange(wide, rows.shape[1]), (len(rows), rows.shape[1] - wide))
        columns = np.concatenate([inside, rest], 1)
    else:
        columns = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    values = np.take_along_axis(rows, columns, 1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :keep]
    return np.take_along_axis(columns, order, 1), np.take_along_axis(values, order, 1)
