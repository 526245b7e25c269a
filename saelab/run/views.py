"""What a pipeline shows: tables, pictures in a notebook, the answer of a comparison."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from saelab.artifacts import read_json, read_jsonl
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.run.basis import Basis
from saelab.settings import nearest

if TYPE_CHECKING:
    from pandas import DataFrame

T = TypeVar("T")
HELD_OUT = ("scs", "caption_r", "truth_r", "auprc", "f1", "iou")  # columns of tables, where a unit has the number
THUMB_PX = 96


class ByBasis(Mapping[str, T], Generic[T]):
    """Values by the name of their basis. A kind ("sae"), a group ("SAE features") or a layer names all its bases."""

    def __init__(self, bases: Sequence[Basis], make: Callable[[list[Basis]], T]) -> None:
        self._bases, self._make = list(bases), make

    def __getitem__(self, key: str) -> T:
        found = [b for b in self._bases if key in (b.name, f"{b.layer} {b.name}", b.kind, b.group, b.layer)]
        if not found:
            known = list(dict.fromkeys([*self, *(b.kind for b in self._bases)]))
            raise UserError("basis", key, "is not in this run", f"{nearest(key, known)}it has {', '.join(known)}")
        return self._make(found)

    def __iter__(self) -> Iterator[str]:
        several = len({b.layer for b in self._bases}) > 1
        return iter(f"{b.layer} {b.name}" if several else b.name for b in self._bases)

    def __len__(self) -> int:
        return len(self._bases)

    def __contains__(self, key: object) -> bool:
        return any(key in (b.name, f"{b.layer} {b.name}", b.kind, b.group, b.layer) for b in self._bases)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"


def only(bases: Sequence[Basis], load: Callable[[Basis], T]) -> T:
    """The one basis' value. Raises UserError where a name covers several."""
    if len(bases) > 1:
        several = len({b.layer for b in bases}) > 1
        names = ", ".join(f"{b.layer} {b.name}" if several else b.name for b in bases)
        raise UserError("basis", bases[0].kind, f"names {len(bases)} bases", f"name one of {names}")
    return load(bases[0])


@dataclass(frozen=True)
class Labels:
    """The labels of one basis or several, with their held-out numbers."""

    bases: Sequence[Basis]  # labelled and evaluated
    images: ImageSet

    def rows(self) -> list[dict[str, Any]]:
        """The lines of labels.jsonl, basis by basis, each with its `layer` and its `held_out` numbers."""
        found = []
        for basis in self.bases:
            assert basis.labels is not None and basis.evaluation is not None
            numbers = {r["unit"]: r["final"] for r in read_jsonl(basis.evaluation.path / "evaluation.jsonl")}
            for row in read_jsonl(basis.labels.path / "labels.jsonl"):
                found.append(row | {"basis": basis.name, "layer": basis.layer, "held_out": numbers[row["unit"]]})
        return found

    def table(self) -> "DataFrame":
        """A row a unit: basis, layer, status, label, abstained, score, margin, null_percentile, held-out numbers."""
        import pandas as pd

        lines = []
        for row in self.rows():
            own = row["scores"].get(row["final"], {})
            line = {name: row[name] for name in ("basis", "layer", "unit", "status", "label", "abstained")}
            line |= {name: own.get(name) for name in ("score", "margin", "null_percentile")}
            lines.append(line | {name: row["held_out"].get(name) for name in HELD_OUT})
        table = pd.DataFrame(lines)
        return table.dropna(axis="columns", how="all") if len(table) else table

    def show(self, count: int = 12, pictures: int = 8) -> "Gallery":
        """The `count` units whose labels hold best on test images, each with its strongest pictures."""
        best = [name for name in HELD_OUT if any(row["held_out"].get(name) is not None for row in self.rows())]
        named = [row for row in self.rows() if row["label"] is not None]
        if best:
            own = next((name for name in ("caption_r", "truth_r") if name in best), best[0])
            named.sort(key=lambda row: -(row["held_out"].get(own) if row["held_out"].get(own) is not None else -9.0))
        return Gallery(named[:count], self.images, pictures)

    def _repr_html_(self) -> str:
        return str(self.table().to_html(max_rows=20, index=False))


@dataclass(frozen=True)
class Gallery:
    """Units with their strongest pictures, drawn in a notebook."""

    rows: list[dict[str, Any]]
    images: ImageSet
    pictures: int

    def _repr_html_(self) -> str:
        return "".join(self._unit(row) for row in self.rows)

    def _unit(self, row: dict[str, Any]) -> str:
        ids = [i for i in row["positives"] if i >= 0][: self.pictures]
        shown = "".join(_thumb(self.images, i) for i in ids)
        title = f"{row['basis']} {row['unit']}: <b>{html.escape(str(row['label']))}</b>"
        marks = " (abstained)" if row["abstained"] else ""
        return f'<div style="margin:8px 0"><div>{title}{marks}</div><div>{shown}</div></div>'

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Evaluation:
    """Held-out numbers of one basis or several."""

    bases: Sequence[Basis]

    def table(self) -> "DataFrame":
        """Basis x scorer: means over all units, and how many distinct labels were given."""
        import pandas as pd

        lines = []
        for basis in self.bases:
            assert basis.evaluation is not None
            for scorer, entry in read_json(basis.evaluation.path / "evaluation.json")["by_scorer"].items():
                means = {name: entry["metrics"][name]["mean_all"] for name in HELD_OUT if name in entry["metrics"]}
                line = {"layer": basis.layer, "basis": basis.name, "scorer": scorer}
                lines.append(line | means | {"distinct": entry["distinct"]})
        return pd.DataFrame(lines)

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False))


@dataclass(frozen=True)
class Comparison:
    """The answer of a comparison, by layer."""

    by_layer: Mapping[str, dict[str, Any]]  # comparison.json

    @property
    def verdict(self) -> str:
        """The conclusion of every layer in a sentence or two."""
        return "\n".join(f"{layer}: {found['conclusion']}" for layer, found in self.by_layer.items())

    def table(self) -> "DataFrame":
        """A row a pair of groups, matching and metric: means, difference, interval, corrected p."""
        import pandas as pd

        lines = []
        for layer, found in self.by_layer.items():
            for pair in [*found["pairs"], *found.get("causal", {"pairs": []})["pairs"]]:
                own = {"layer": layer} | {name: pair[name] for name in ("a", "b", "matching", "role")}
                lines += [own | {k: v for k, v in r.items() if not isinstance(v, list | dict)} for r in pair["results"]]
        return pd.DataFrame(lines)

    def __str__(self) -> str:
        return self.verdict

    def _repr_html_(self) -> str:
        return "".join(f"<p>{html.escape(line)}</p>" for line in self.verdict.splitlines())


def _thumb(images: ImageSet, image: int) -> str:
    if not images.sizes:
        return f"<code>{html.escape(images.files[image])}</code> "
    picture = images.load(image)
    picture.thumbnail((THUMB_PX, THUMB_PX))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    text = base64.b64encode(data.getvalue()).decode()
    words = html.escape(images.captions[image] or images.files[image], quote=True)
    return f'<img src="data:image/jpeg;base64,{text}" title="{words}" alt="{words}" style="margin:2px">'
