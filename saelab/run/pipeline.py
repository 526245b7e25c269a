"""`saelab.Pipeline`: from photos and a model to labelled, measured, compared units, in a script or a notebook."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from saelab import hosts, report
from saelab.artifacts import read_json, read_jsonl
from saelab.cache.arrays import count_images
from saelab.encoders import Encoder
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.images.rows import rows
from saelab.report.reading import open_record
from saelab.run import given as brought
from saelab.run import record
from saelab.run.basis import Basis
from saelab.run.config import RunConfig, as_layers
from saelab.run.effect_views import Classes, EditedConcept, Effects, Explained
from saelab.run.making import Stages
from saelab.run.picture_views import Pictures
from saelab.run.presets import ELSEWHERE, names_file, preset
from saelab.run.stages.edit import EditSettings
from saelab.run.stages.effects import EffectsSettings
from saelab.run.stages.explain import ExplainSettings
from saelab.run.stages.synthesis import choose_units, read_request
from saelab.run.views import ByBasis, Comparison, Evaluation, Labels, only
from saelab.sae import SAE
from saelab.settings import check_names, make
from saelab.units import UnitActivations

PLAIN = (str, Path, Mapping)  # what stands for settings; anything else is an object of the caller's


class Pipeline(Stages):
    """Every stage of a run, made when it is asked for and reused when it is there.

        p = Pipeline(images="photos/", host="timm:resnet50", layers=["layer4"], sae={"k": 32})
        p.labels["sae"].table()

    All other settings are those of `RunConfig`, by name: `pool="mean"`, `scorer=["csp"]`, `label={"nulls": 50}`.
    """

    def __init__(
        self,
        images: str | Path | Mapping[str, Any] | ImageSet | None = None,
        host: str | Mapping[str, Any] | hosts.Host | nn.Module | None = None,
        layers: Sequence[str] | str | None = None,
        sae: str | Path | Mapping[str, Any] | SAE | Sequence[SAE] | None = None,
        encoder: str | Mapping[str, Any] | Encoder | None = None,
        vocabulary: str | Sequence[str] | None = None,
        *,
        transform: Any = None,
        activations: Any = None,
        embeddings: Any = None,
        captions: Sequence[str | None] | None = None,
        classes: Sequence[Any] | None = None,
        **settings: Any,
    ) -> None:
        """Eleven parameters: each is a stage's setting (text or a dict) or an object of your own in its place.

        `images`: a folder, the settings of an image source, or an ImageSet; the packaged photos by default.
        `host`: a name such as `timm:resnet50`, settings, a Host, or a torch.nn.Module with its `transform` (a callable,
        or fields of saelab.hosts.Transform). `layers`: dotted names.
        `sae`: settings over those of the quickstart ({"k": 32}), the name of a preset (`matryoshka`), or SAEs trained
        elsewhere (an SAE, its file, or a list of them).
        `encoder`: a name such as `conse` or `open_clip:ViT-B-32/...`, or a saelab.encoders.Encoder.
        `vocabulary`: your words as a list, or a source such as `imagenet1k` or `file:PATH` as text.
        `activations`: an array or a file instead of a host ({layer: array} for several). `embeddings`: the images'
        vectors in the encoder's space (an array or a file), or {"images": ..., "labels": ...} with a row for each word
        of `vocabulary`.
        `captions`, `classes`: what is known of each row, where there are arrays but no pictures.
        Raises UserError for a setting that does not exist or can't be used, naming the nearest.
        """
        check_names(settings, _keywords())
        if host is not None and activations is not None:
            raise UserError("host, activations", "both", "stand for the same", "leave one out: arrays need no host")
        words = None if vocabulary is None or isinstance(vocabulary, str) else list(vocabulary)
        if isinstance(vocabulary, str):
            settings["label"] = dict(settings.get("label", {})) | {"vocabulary": [vocabulary]}
        vectors, own_encoder = brought.as_embeddings(embeddings, words) if embeddings is not None else (None, None)
        if vectors is not None and own_encoder is None and encoder is None:
            what = "are the vectors of images alone: what labels mean in their space is missing"
            remedy = 'give {"images": ..., "labels": ...} and vocabulary=[...], or the encoder=... of that space'
            raise UserError("embeddings", vectors, what, remedy)
        arrays = {} if activations is None else brought.as_activations(activations, _names(layers))
        objects = brought.Given(
            images=_images(images, arrays, captions, classes, settings),
            host=_host(host, transform),
            encoder=own_encoder if encoder is None or isinstance(encoder, PLAIN) else brought.as_encoder(encoder),
            activations=arrays,
            embeddings=vectors,
            vocabulary=None if words is None else brought.as_vocabulary(words),
            saes=_saes(sae),
        )
        plain: dict[str, Any] = {k: str(value) if isinstance(value, Path) else value for k, value in settings.items()}
        for name, value in {"images": images, "host": host, "encoder": encoder}.items():
            if isinstance(value, PLAIN):
                plain[name] = _group(name, value)
        if layers is not None:
            plain["layers"] = _names(layers)
        elif host is not None and not arrays:
            raise UserError("layers", None, "a host needs them", "`saelab layers host=NAME` lists those of a model")
        plain["sae"] = _sae_settings(sae)
        named = plain.get("encoder", {}).get("name", "conse")
        if "proposer" not in plain and (
            vectors is not None or objects.encoder is not None or not named.startswith("conse")
        ):
            plain["proposer"] = {"name": "none"}  # the tagger reads ConSE's class probabilities
        super().__init__(RunConfig.of(plain), objects)

    def __repr__(self) -> str:
        """What it is about; nothing is made for it."""
        given, own = self.given, self.config
        images = given.images or own.images.get("root") or own.images.get("source")
        host = "arrays" if self.weights_are_given else given.host.name if given.host is not None else own.host.name
        layers = list(given.activations) or list(own.layers)
        bases = ", ".join(own.bases)
        return f"Pipeline({own.name}: {images}, {host}, layers {', '.join(layers)}, bases {bases}, root {self.root})"

    @classmethod
    def read(cls, run: str | Path) -> "Pipeline":
        """The pipeline of a finished run, from its record (runs/quickstart.json). Raises UserError for other files."""
        path = Path(run).expanduser()
        open_record(path)
        return cls(**record.read_config(path).record())

    @property
    def saes(self) -> ByBasis[SAE]:
        """The SAEs by the name of their basis, trained when asked for."""
        own = [basis for basis in self.bases if basis.sae is not None]
        return ByBasis(own, lambda some: only(some, lambda b: SAE.load(b.sae.path / "sae.safetensors")))  # type: ignore[union-attr]

    @property
    def units(self) -> ByBasis[UnitActivations]:
        """[images, units] of each basis, one number an image."""
        return ByBasis(self.bases, lambda some: only(some, lambda b: UnitActivations.load(b.units.path)))

    @property
    def labels(self) -> ByBasis[Labels]:
        """The labels of each basis, or of all bases of a kind, with their held-out numbers."""
        return ByBasis(self.evaluated, lambda some: Labels(some, self.images))

    @property
    def evaluations(self) -> ByBasis[Evaluation]:
        """Means of the held-out numbers, by basis and scorer."""
        return ByBasis(self.evaluated, Evaluation)

    @property
    def effects(self) -> ByBasis[Effects]:
        """What units do to the host's outputs, of each basis; `.measure(units="all")` for more than 100 units."""
        return _effects(self)

    @property
    def control_effects(self) -> ByBasis[Effects]:
        """The same of the controls that the run lacks: what any set of units would do."""
        return _effects(self.controls)

    @property
    def class_units(self) -> ByBasis[Classes]:
        """What the host's classes are made of in each basis: `.table()`; and the least typical `.pictures()`."""

        def load(basis: Basis) -> Classes:
            assert basis.labels is not None
            labels = [row["label"] for row in read_jsonl(basis.labels.path / "labels.jsonl")]
            return Classes(self.measure_classes(basis).path, labels, self.images)

        return ByBasis(self.acting, lambda some: only(some, load))

    @property
    def comparison(self) -> Comparison:
        """Are SAE features better than neurons here, and how sure is it?"""
        return Comparison({layer: read_json(a.path / "comparison.json") for layer, a in self.comparisons.items()})

    def explain(self, image: str | Path, bases: str | None = None, **changes: Any) -> Explained:
        """Why the host says what it says of a picture: which units carry its first choice, how much, and where.

        `bases`: a basis, a kind, a group or a layer; all of them by default. `changes`: fields of ExplainSettings
        (`output="tench"`, `top=20`, `head="probe"`). Raises UserError for a file that is no picture, a host without
        named outputs, and a setting that can't be used.
        """
        own = make(ExplainSettings, changes)
        chosen = None if bases is None else ByBasis(self.acting, lambda some: some)[bases]
        return Explained(self.explain_picture(image, own, chosen))

    def edit(self, photos: str | Path, concepts: Sequence[str], basis: str = "sae", **changes: Any) -> EditedConcept:
        """Take out the units named as one of the concepts: what a classifier then does on each group of pictures.

        `photos`: a folder with photos.csv (file, class, group, split). `basis`: one basis. `changes`: fields of
        EditSettings (`match="exact"`, `draws=100`). Raises UserError for pictures that no edit can be judged on, where
        no unit is named so, and for a setting that can't be used.
        """
        own = make(EditSettings, {"concepts": [concepts] if isinstance(concepts, str) else list(concepts)} | changes)
        chosen = ByBasis(self.acting, lambda some: only(some, lambda b: b))[basis]
        return EditedConcept(self.edit_concepts(Path(photos).expanduser(), own, chosen))

    def synthesise(
        self, basis: str = "sae", units: str | int | Sequence[int] = "random:20", **changes: Any
    ) -> Pictures:
        """Pictures made to raise units of one basis, each with what it is worth; those that are there are reused.

        `basis`: a name, kind, group or layer; of several bases that it covers, the first.
        `units`: as of `saelab synthesise`, a number, or a list of numbers. `changes`: fields of SynthesisSettings
        (`method="maco"`, `count=4`, `steps=256`). Raises UserError for a setting that can't be used.
        """
        spec = units if isinstance(units, str) else str(units) if isinstance(units, int) else ",".join(map(str, units))
        own = read_request(changes | {"units": spec})
        chosen = ByBasis(self.acting, lambda some: some[0])[basis]
        return Pictures(self.synthesise_units(chosen, own), choose_units(chosen, own))

    def save(self) -> Path:
        """Write the run's record, <root>/<name>.json, and return its path."""
        return record.write(self.outcome(), self.root, self.config.name)

    def report(self, out: str | Path | None = None, shown: int = 30) -> Path:
        """Build the report, or find it built, and return the path of its first page.

        Raises UserError where the run has no pictures to show.
        """
        if not self.images.sizes:
            raise UserError(
                "images", self.images.name, "has no pictures to show", "give images=FOLDER beside the arrays"
            )
        own = Path(out) if out is not None else self.root / "report" / self.config.name
        return report.build(self.save(), own, shown=shown)


def _effects(made: Stages) -> ByBasis[Effects]:
    calls = (made.measure_effects, made.measure_simulation, made.find_words)
    return ByBasis(made.acting, lambda some: Effects(some, EffectsSettings(), *calls))


def _keywords() -> list[str]:
    """What Pipeline takes: its own parameters, then the other settings of a run."""
    own = [p.name for p in signature(Pipeline).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return list(dict.fromkeys([*own, *(setting.name for setting in fields(RunConfig))]))


def _names(layers: Sequence[str] | str | None) -> list[str] | None:
    if layers is None:
        return None
    return list(as_layers([layers] if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)))


def _images(
    images: Any, arrays: Mapping[str, Any], captions: Any, classes: Any, settings: Mapping[str, Any]
) -> ImageSet | None:
    if isinstance(images, ImageSet):
        return images
    if images is None and arrays:
        count = count_images(next(iter(arrays.values())))
        return rows(count, captions, classes, name=str(settings.get("name", "arrays")))
    if captions is not None or classes is not None:
        raise UserError(
            "captions, classes", "given", "belong to arrays without pictures", "use images={...} with a table"
        )
    if images is not None and not isinstance(images, PLAIN):
        raise UserError("images", type(images).__name__, "expected a folder, settings or an ImageSet")
    return None


def _host(host: Any, transform: Any) -> hosts.Host | None:
    if isinstance(host, hosts.Host):
        return host
    if isinstance(host, nn.Module):
        return brought.as_host(host, transform)
    if host is not None and not isinstance(host, PLAIN):
        raise UserError("host", type(host).__name__, "expected a name, settings, a Host or a torch.nn.Module")
    return None


def _group(name: str, value: Any) -> dict[str, Any]:
    """Text that stands for a group of settings, as settings."""
    if isinstance(value, Mapping):
        return dict(value)
    return {"source": "folder", "root": str(value)} if name == "images" else {"name": str(value)}


def _saes(sae: Any) -> tuple[Any, ...]:
    if isinstance(sae, SAE | Path) or (isinstance(sae, str) and names_file(sae)):
        return (sae,)
    if not isinstance(sae, list | tuple):
        return ()
    for own in sae:
        if not isinstance(own, SAE | Path | str):
            raise UserError("sae", type(own).__name__, "expected an SAE or its file", ELSEWHERE)
    return tuple(sae)


def _sae_settings(sae: Any) -> dict[str, Any]:
    if isinstance(sae, str) and not _saes(sae):
        return preset("sae", sae)
    base = preset("sae", "quickstart")
    if sae is None or _saes(sae):
        return base
    if isinstance(sae, nn.Module) or (
        isinstance(sae, Mapping) and any(getattr(own, "shape", ()) for own in sae.values())
    ):
        what = "holds weights, where settings or an SAE of saelab's are expected"
        raise UserError("sae", type(sae).__name__, what, ELSEWHERE)
    if not isinstance(sae, Mapping):
        raise UserError("sae", sae, "expected settings, a preset's name, or SAEs", 'for example sae={"k": 32}')
    own = dict(sae)
    if "train" in own:
        own["train"] = base["train"] | dict(own["train"])
    return base | own
