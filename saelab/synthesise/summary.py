"""What the numbers of many synthesised pictures come to: means with standard errors, beside chance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

TOP = 0.999  # percentile among photos from which a picture is counted as beyond them
LIKE_PHOTOS, APART = 0.75, 0.25  # shares of what photos have among themselves, for words on the path


def summarise_pictures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the numbers in synthesised.jsonl come to. A number that a picture lacks is not counted for it.

    Means over units: `retrieval`, `retrieval_photo`, `label_agrees`, `path`, `path_most`. Over pictures: the others.
    """
    ratios = sorted(row["ratio"] for row in rows if row["ratio"] is not None)
    found = [row for row in rows if row["retrieval"] is not None]
    places, units = [row["retrieval"] for row in found], [row["unit"] for row in found]
    every = [row["unit"] for row in rows]
    named = {key: mean_of([row[key] for row in rows], every) for key in ("label_agrees", "path", "path_most")}
    return {
        "units": len(set(every)),
        "pictures": len(rows),
        "reached": sum(row["reached"] for row in rows),
        "beyond": sum(row["percentile"] >= TOP for row in rows),
        "ratio": ratios[len(ratios) // 2] if ratios else None,
        "retrieval": mean_of([place["percentile"] for place in places], units),
        "retrieval_photo": mean_of([row["retrieval_photo"] for row in found], units),
        "top1": sum(place["rank"] == 1 for place in places) / len(places) if places else None,
        "top1_chance": sum(1 / place["of"] for place in places) / len(places) if places else None,
        **named,
        "independent": all(row["independent"] for row in rows),
    }


def mean_of(numbers: Sequence[float | None], units: Sequence[int]) -> dict[str, float | None] | None:
    """`mean` over units, its standard error `se` over them (None of one), and their `count`; None without a number.

    `units`: whose each number is. Pictures of one unit are alike, so they count once, by their mean.
    """
    own: dict[int, list[float]] = {}
    for unit, number in zip(units, numbers, strict=True):
        if number is not None:
            own.setdefault(unit, []).append(number)
    if not own:
        return None
    means = [sum(found) / len(found) for found in own.values()]
    mean, count = sum(means) / len(means), len(means)
    squares = sum((x - mean) ** 2 for x in means)
    return {"mean": mean, "se": math.sqrt(squares / (count - 1) / count) if count > 1 else None, "count": count}


def path_in_words(share: float | None) -> str | None:
    """Does the picture go through the network as the unit's photos do? None where that could not be measured."""
    if share is None:
        return None
    return "like its photos" if share >= LIKE_PHOTOS else "apart from its photos" if share < APART else "partly"
