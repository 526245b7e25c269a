"""WordNet's tree of nouns, read from its own files where they are installed (Debian: wordnet-base)."""

from functools import cache
from pathlib import Path

PLACES = (Path("/usr/share/wordnet"), Path("usr/share/wordnet"))  # installed; below the user's cache folder


def folder() -> Path | None:
    """Where WordNet's noun files lie; None where there are none. Nothing is fetched."""
    from saelab.images.user_cache import user_cache

    places = (PLACES[0], user_cache("wordnet") / PLACES[1])
    return next((p for p in places if (p / "index.noun").is_file() and (p / "data.noun").is_file()), None)


@cache
def senses(place: Path) -> dict[str, tuple[str, ...]]:
    """Lemma (lower case, underscores) -> its synsets as ImageNet writes them ("n02084071"), most frequent first."""
    found = {}
    for line in (place / "index.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue  # the licence
        parts = line.split()
        found[parts[0]] = tuple(f"n{offset}" for offset in parts[-int(parts[2]) :])
    return found


@cache
def parents(place: Path) -> dict[str, tuple[str, ...]]:
    """Synset -> its hypernyms, those of instances too."""
    found = {}
    for line in (place / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue
        parts = line.split(" | ")[0].split()
        words = int(parts[3], 16)
        pointers = parts[5 + 2 * words :]
        found[f"n{parts[0]}"] = tuple(
            f"n{pointers[i + 1]}" for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")
        )
    return found


def ancestors(synset: str, place: Path) -> set[str]:
    """Every synset above this one, itself not."""
    above: set[str] = set()
    waiting = [synset]
    while waiting:
        new = [p for p in parents(place).get(waiting.pop(), ()) if p not in above]
        above.update(new)
        waiting += new
    return above
