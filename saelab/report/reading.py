"""Reading a run: `run.json` and the artifacts that it lists, checked for being whole and for fitting together."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import saelab
from saelab import settings
from saelab.artifacts import open_artifact, read_json, read_jsonl
from saelab.errors import UserError
from saelab.files import read_named
from saelab.images import ImageSet
from saelab.report import synthesised, vlm_answers, what_it_does

if TYPE_CHECKING:
    from saelab.units import HeatMaps

NEEDED = ("name", "version", "images", "encoder", "bases")
COMPARISON_SCHEMA = 1
NEEDED_OF_BASIS = ("name", "basis", "layer", "units", "labels", "evaluation")


@dataclasses.dataclass(frozen=True)
class ReadBasis:
    """One set of units with all its results."""

    name: str  # unique in the run
    short: str  # unique on its layer: what comparison.json calls it
    kind: str  # neuron | sae | pca | random_rotation | what the user calls it
    layer: str  # dotted name in the host
    seed: int | None  # the SAE's or the rotation's seed
    labels: list[dict[str, Any]]  # a line of labels.jsonl per unit, in unit order
    evaluation: list[dict[str, Any]]  # a line of evaluation.jsonl per unit, in unit order
    exemplars: dict[str, np.ndarray]  # positives, activations, contrasts, similarity: [units, k]
    acts: Any  # scipy csc_array [images, units] float32
    decoder: np.ndarray | None  # [units, d_in] unit rows of the SAE
    proposals: vlm_answers.Rows  # unit -> proposals
    sheets: Path | None  # the folder with the pictures that they saw
    verified: vlm_answers.Rows  # unit -> what models found when they looked again
    synthesised: synthesised.Made  # unit -> pictures made to raise it
    units: Path  # the folder of its activations
    sae: Path | None  # the SAE's folder
    quality: dict[str, Any] | None  # of the SAE (quality.json of the quality stage); None where it was not measured
    badges: dict[str, Any] | None  # units by badge, and the metric that decides (evaluation.json)
    recipes: dict[str, Any]  # stage -> recipe
    control: bool  # there only to be beaten
    effects: what_it_does.Measured | None  # what its units do; None where it was not measured
    random_host: bool  # of the host with random weights, through which no picture goes here
    sources: dict[str, str]  # label -> where it comes from, joined by +; empty where no vocabulary was kept

    def column(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """The images with an entry, in their order, and a unit's activations there; elsewhere it is 0."""
        part = slice(*self.acts.indptr[unit : unit + 2])
        return self.acts.indices[part], self.acts.data[part]

    @property
    def of_tokens(self) -> bool:
        """Are its units read from the layer's tokens? Planted ones are not: no new picture fires them."""
        return self.kind != "planted"

    @property
    def fired_by_pictures(self) -> bool:
        """Can a new picture fire its units? Those of the run's own host."""
        return self.of_tokens and not self.random_host


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read from disk."""

    path: Path  # its run.json
    facts: dict[str, Any]  # the content of run.json
    images: ImageSet
    bases: tuple[ReadBasis, ...]
    comparisons: tuple[dict[str, Any], ...]  # comparison.json of each layer


def read(run_json: Path | str) -> Run:
    """Everything a report needs. Raises UserError if a run is missing, half-written, moved or of another version."""
    path = Path(run_json)
    facts = read_record(path)
    images = ImageSet.read(artifact(path, facts["images"], "images"))
    several = len({entry["layer"] for entry in facts["bases"]}) > 1
    bases = tuple(_basis(path, entry, len(images), several) for entry in facts["bases"])
    names = [basis.name for basis in bases]
    if len(set(names)) < len(names):
        raise UserError(
            "run", path, f"gives two bases the same name: {', '.join(names)}", "name each basis differently"
        )
    return Run(path, facts, images, bases, tuple(_comparison(path, folder) for folder in _compared(facts)))


def choose(wanted: Any, bases: Sequence[ReadBasis]) -> list[ReadBasis]:
    """The bases that `wanted` names, as `saelab effects` does: by name, kind or layer; None: all.

    Raises UserError for one that the run lacks.
    """
    names = ((b.name, b.short, b.kind, b.layer, f"{b.layer} {b.short}") for b in bases)
    return settings.choose("bases", wanted, list(zip(bases, names)))


def read_record(path: Path) -> dict[str, Any]:
    """What run.json says. Raises UserError for a record that is missing, of another version, or lists no basis."""
    facts = open_record(path)
    _require(facts, NEEDED, path, facts)
    for entry in facts["bases"]:
        _require(entry, NEEDED_OF_BASIS, path, facts)
    if not facts["bases"]:
        raise UserError("run", path, "lists no basis", "run the labelling stage first")
    return facts


def open_record(path: Path) -> dict[str, Any]:
    """The content of a file that a person names as a run's record. Raises UserError where it can be none."""
    remedy = "give the .json of a finished run; `saelab quickstart` makes runs/quickstart.json"
    return read_named("run", path, "holds no record of a run", remedy)


def artifact(run: Path, name: str, what: str) -> Path:
    """A folder that run.json names, `what` for people. Raises UserError where it is gone, unfinished or damaged."""
    folder = run.parent / name
    if not folder.is_dir():
        raise UserError(
            "run",
            run,
            f"its {what} folder {name} is missing",
            "keep run.json beside the folders it names, or run again",
        )
    return open_artifact(folder).path


def find_made(run: Path, stage: str, digest: str) -> Path:
    """The folder of an artifact that a run used, by its recipe's digest. Raises UserError where it is gone."""
    found = next((run.parent / stage).glob(f"*-{digest[:10]}"), None)
    if found is None:
        raise UserError("run", run, f"its {stage} are not there any more", "run its stages again")
    return open_artifact(found).path


def open_maps(run: Path, basis: ReadBasis) -> "HeatMaps":
    """Where a basis' units fire within pictures. Raises UserError where the run's activations are gone."""
    import torch

    from saelab import cache, units

    store = cache.open(find_made(run, "activations", basis.recipes["units"]["cache"]))
    project = units.Projection.load(basis.units, basis.sae)
    return units.HeatMaps(store, project, torch.from_numpy(basis.exemplars["activations"][:, 0]))


def _compared(facts: dict[str, Any]) -> list[str]:
    one = [facts["comparison"]] if facts.get("comparison") else []
    return list((facts.get("comparisons") or {}).values()) or one


def _comparison(run: Path, folder: str) -> dict[str, Any]:
    found = read_json(artifact(run, folder, "comparison") / "comparison.json")
    if found.get("schema") != COMPARISON_SCHEMA:
        what = f"its comparison has schema {found.get('schema')}, this version reads {COMPARISON_SCHEMA}"
        raise UserError("run", run, what, "run the comparison again with this version")
    return found


def _require(found: Any, keys: tuple[str, ...], path: Path, facts: Any) -> None:
    missing = [k for k in keys if not isinstance(found, dict) or k not in found]
    if missing:
        version = facts.get("version", "?") if isinstance(facts, dict) else "?"
        what = f"lacks {', '.join(missing)} (written by saelab {version}; this is {saelab.__version__})"
        raise UserError(
            "run", path, what, "give the run.json of a finished run, or make the run again with this version"
        )


def _basis(run: Path, entry: dict[str, Any], n_images: int, several: bool) -> ReadBasis:
    from scipy.sparse import csc_array

    from saelab.units import UnitActivations, to_scipy

    name = entry["name"]
    at = {stage: artifact(run, entry[stage], f"{stage} of {name}") for stage in ("units", "labels", "evaluation")}
    acts = UnitActivations.load(at["units"]).acts
    columns = csc_array(to_scipy(acts) if acts.is_sparse_csr else acts.numpy())
    labels = sorted(read_jsonl(at["labels"] / "labels.jsonl"), key=lambda row: row["unit"])
    evaluation = sorted(read_jsonl(at["evaluation"] / "evaluation.jsonl"), key=lambda row: row["unit"])
    exemplars = _tensors(at["labels"] / "exemplars.safetensors")
    expected = f"{columns.shape[1]} units of {columns.shape[0]} images"
    for what, count in [("labels", len(labels)), ("evaluation", len(evaluation)), *_counts(exemplars)]:
        if count != columns.shape[1]:
            raise UserError(
                "run", run, f"{name}: activations are of {expected}, {what} of {count}", "run its stages again"
            )
    if columns.shape[0] != n_images:
        raise UserError(
            "run", run, f"{name}: activations are of {expected}, the run has {n_images}", "run its stages again"
        )
    sae = artifact(run, entry["sae"], f"sae of {name}") if entry.get("sae") else None
    folders = at | ({} if sae is None else {"sae": sae})
    recipes = {stage: read_json(folder / "recipe.json") for stage, folder in folders.items()}
    return ReadBasis(
        f"{entry['layer']} {name}" if several else name,
        name,
        entry["basis"],
        entry["layer"],
        entry.get("seed"),
        labels,
        evaluation,
        exemplars,
        columns,
        _decoder(sae),
        vlm_answers.proposals(at["labels"]),
        vlm_answers.sheets(run.parent, recipes["labels"]),
        vlm_answers.verification(run.parent, recipes["labels"]),
        synthesised.read(run.parent, recipes["units"]),
        at["units"],
        sae,
        _quality(run, entry),
        read_json(at["evaluation"] / "evaluation.json").get("badges"),
        recipes,
        bool(entry.get("control")),
        what_it_does.read(run.parent / entry["effects"]) if entry.get("effects") else None,
        bool(entry.get("random_host")),
        _sources(at["labels"] / "vocabulary.json"),
    )


def _quality(run: Path, entry: dict[str, Any]) -> dict[str, Any] | None:
    if not entry.get("quality"):
        return None
    found: dict[str, Any] = read_json(artifact(run, entry["quality"], f"quality of {entry['name']}") / "quality.json")
    return found


def _counts(exemplars: dict[str, np.ndarray]) -> list[tuple[str, int]]:
    return [(f"exemplars.{name}", len(array)) for name, array in exemplars.items()]


def _tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError("file", path, f"unreadable ({error})", "delete its folder, then run again") from None


def _sources(path: Path) -> dict[str, str]:
    found = read_json(path) if path.is_file() else {"labels": [], "sources": []}
    return {label: "+".join(sources) for label, sources in zip(found["labels"], found["sources"], strict=True)}


def _decoder(sae: Path | None) -> np.ndarray | None:
    if sae is None:
        return None
    from saelab.sae import SAE

    return SAE.load(sae / "sae.safetensors").W_dec.detach().numpy()
