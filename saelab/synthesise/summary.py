"""What the numbers of many synthesised pictures come to: means with standard errors, beside chance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

TOP = 0.999  # percentile among photos from which a picture is counted as beyond them
LIKE_PHOTOS, APART = 0.75, 0.25  # shares of what photos have among themselves, for words on the path


def summarise_pictures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over pictures of the numbers in synthesised.jsonl. A number that a picture lacks is not counted for it."""
    ratios = sorted(row["ratio"] for row in rows if row["ratio"] is not None)
    found = [row for row in rows if row["retrieval"] is not None]
    places, real = [row["retrieval"] for row in found], [row["retrieval_photo"] for row in found]
    return {
        "units": len({row["unit"] for row in rows}),
        "pictures": len(rows),
        "reached": sum(row["reached"] for row in rows),
        "beyond": sum(row["percentile"] >= TOP for row in rows),
        "ratio": ratios[len(ratios) // 2] if ratios else None,
        "retrieval": mean_of([place["percentile"] for place in places]),
        "retrieval_photo": mean_of(real),
        "top1": sum(place["rank"] == 1 for place in places) / len(places) if places else None,
        "top1_chance": sum(1 / place["of"] for place in places) / len(places) if places else None,
        "label_agrees": mean_of([row["label_agrees"] for row in rows]),
        "path": mean_of([row["path"] for row in rows]),
        "path_most": mean_of([row["path_most"] for row in rows]),
        "independent": all(row["independent"] for row in rows),
    }


def mean_of(numbers: Sequence[float | None]) -> dict[str, float | None] | None:
    """`mean`, its standard error `se` over pictures (None of one), and `count`; None where there is no number."""
    there = [x for x in numbers if x is not None]
    if not there:
        return None
    mean, count = sum(there) / len(there), len(there)
    squares = sum((x - mean) ** 2 for x in there)
    return {"mean": mean, "se": math.sqrt(squares / (count - 1) / count) if count > 1 else None, "count": count}


def path_in_words(share: float | None) -> str | None:
    """Does the picture go through the network as the unit's photos do? None where that could not be measured."""
    if share is None:
        return None
    return "like its photos" if share >= LIKE_PHOTOS else "apart from its photos" if share < APART else "partly"
