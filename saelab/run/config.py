"""Every setting of a run, as frozen dataclasses of plain values: what configs fill, recipes hold and records keep.

The groups that one of several makers takes (a source of images, a proposer) keep that maker's own options as they are;
the maker checks them by name. `RunConfig.of` reads the nested mapping that a YAML file or a record holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from saelab import settings, truth
from saelab.cache.decks import LEAST
from saelab.cache.layout import STORED
from saelab.cache.superblocks import PICTURES
from saelab.compare import Settings as CompareSettings
from saelab.errors import UserError
from saelab.hosts.layers import ROOT
from saelab.images.crops import describe_crops
from saelab.label import pipeline
from saelab.label.exemplars import MiningSettings
from saelab.label.settings import final_scorer
from saelab.run.basis import KINDS
from saelab.run.presets import preset
from saelab.run.stages.effects import read_effects
from saelab.run.stages.effects_auto import AUTO
from saelab.run.stages.sae import check_sae, vary_sae
from saelab.units import POOLS, SIGNED, GroupSettings

LISTS = ("layers", "bases", "seeds", "rotation_seeds", "scorer", "also")  # one value stands for a list of one
MODES = {"mode": "contrast", "units": "all", "seed": 0, "dry_run": False}  # of the stage; the rest is the proposer's


@dataclass(frozen=True)
class HostSettings:
    """The model that is looked into."""

    name: str = "efficientnet_lite0"  # timm:NAME, torchvision:NAME, transformers:NAME, open_clip:NAME, module:..., ...
    weights: str = "pretrained"  # pretrained, random, or a file
    seed: int = 0  # of random weights
    dtype: str | None = None  # float32, bfloat16 or float16; None: as loaded
    transform: dict[str, Any] = field(default_factory=dict)  # fields of saelab.hosts.Transform to override


@dataclass(frozen=True)
class EncoderSettings:
    """The image-text encoder that labels."""

    name: str = "conse"  # conse, open_clip:MODEL/WEIGHTS or transformers:NAME
    templates: tuple[str, ...] | None = None  # None: the encoder's own


@dataclass(frozen=True)
class ProposerSettings:
    """Who proposes labels, about which units."""

    name: str = "tagger"  # none, tagger, openai, agent, transformers or recorded
    mode: str = "contrast"  # what it sees: positives, contrast, or shuffled_contrast (the ablation)
    units: str = "all"  # which units: all, status:ok, top:100, usd:2.50, ...
    seed: int = 0  # of the order of photos, and of random units
    dry_run: bool = False  # only say what asking would take
    options: dict[str, Any] = field(default_factory=dict)  # the proposer's own settings, by name

    @property
    def synthesised(self) -> str:
        """Is the proposer shown pictures made to raise a unit: none, beside its photos, or alone?"""
        return str(self.options.get("synthesised", "none"))


@dataclass(frozen=True)
class LabelConfig:
    """How labels are mined, assigned and trusted."""

    final: str = "auto"  # the scorer whose label a unit carries; auto: the best for so many images
    templates: tuple[str, ...] | None = None  # None: the encoder's
    renormalize: bool = True  # unit length after the mean over templates
    nulls: int = 200  # permutations behind the null percentile of the unit's label
    rival_nulls: int | None = 40  # and behind those of the other scorers' labels; None: as many
    abstain_below: float = 0.95  # labels below this null percentile are marked `abstained`
    seed: int = 0  # of the permutations
    runners_up: int = 5  # next best labels kept per scorer
    meanings: bool = True  # split the positives of units that fall apart
    sets: float = 0.0  # coverage of each unit's label set; 0: no sets
    keep_underscores: bool = False  # embed labels with their underscores
    vocabulary: tuple[str, ...] = ("imagenet1k", "classes")  # sources, pooled in this order
    mining: MiningSettings = field(default_factory=MiningSettings)


@dataclass(frozen=True)
class ArraySettings:
    """Activations from a file instead of a host."""

    activations: str | None = None  # .npy, .h5 or .safetensors
    key: str | None = None  # which dataset or tensor of the file
    offsets: str | None = None  # for [tokens, d_in]: a .npy with images + 1 row numbers
    name: str = "arrays"  # stands for the layer in names


NAMED = dict.fromkeys(("host", "encoder", "proposer"), "name")  # groups that text names, and one of their settings
GROUPS = {"label": "final", "compare": "resamples", "groups": "support", "arrays": "activations"}


@dataclass(frozen=True)
class StreamSettings:
    """How SAEs train on activations that are never stored (docs/scale.md)."""

    pictures: int = PICTURES  # half of those whose tokens are in memory, at most
    device: str | None = None  # of the host: cuda:1, cpu, ...; None: the run's
    crop: str | None = None  # random: training sees a random crop of each picture, another one in each epoch


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. The defaults are those of `saelab quickstart`, which also says `effects="auto"`."""

    name: str = "quickstart"  # of the run's record and report
    root: str = "runs"  # the folder of all artifacts
    device: str = "auto"  # auto, cpu, cuda or mps
    workers: int = 2  # processes that decode pictures
    batch_size: int = 32  # pictures at once through host and encoder
    images: dict[str, Any] = field(default_factory=lambda: {"source": "packaged"})  # saelab.images.load's arguments
    host: HostSettings = field(default_factory=HostSettings)
    layers: tuple[str, ...] = ("_blocks.15", "in:_avg_pooling")  # dotted names; compared side by side
    policy: str = "all"  # which tokens: all, patches, cls, ...
    dtype: str = "float16"  # of the cached tokens
    tokens_per_image: int | None = None  # keep so many tokens of an image
    stream: StreamSettings | None = None  # never store activations: the host computes them when they are used
    arrays: ArraySettings = field(default_factory=ArraySettings)
    sae: dict[str, Any] = field(default_factory=lambda: preset("sae", "quickstart"))  # SAEConfig, expansion, train
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    proposer: ProposerSettings = field(default_factory=ProposerSettings)
    scorer: tuple[str, ...] = ("contrast_evidence", "csp", "csp_0.5", "semanticlens", "pearson", "cos_cubed")
    label: LabelConfig = field(default_factory=LabelConfig)
    bases: tuple[str, ...] = ("neuron", "sae", "random_rotation")
    pool: str = "max"  # tokens -> one number an image
    signed: str = "positive"  # positive, or split: two units of each direction
    seeds: tuple[int, ...] = (0, 1)  # one SAE each
    rotation_seeds: tuple[int, ...] = (0,)  # one random rotation each
    groups: GroupSettings = field(default_factory=GroupSettings)  # of the bases neuron_groups and sae_groups
    truth: str = "mention"  # when a label counts as true of a picture
    second_judge: str | None = "auto"  # reads captions and labels again, apart from the encoder that labels
    compare: CompareSettings = field(default_factory=CompareSettings)
    also: tuple[str, ...] = ()  # SAEs of other settings to compare with: "sae.k=8", "sae=matryoshka"
    random_host: bool = False  # compare with SAEs on the host with random weights
    effects: dict[str, Any] | str | None = None  # compare what units do: settings of `saelab effects`, or auto

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> "RunConfig":
        """From a nested mapping with the names of conf/pipeline.yaml. Raises UserError for a setting that is wrong."""
        given = dict(mapping)
        for name in LISTS:
            if name in given:
                given[name] = _flat(name, given[name])
        if "layers" in given:
            given["layers"] = as_layers(given["layers"])
        for name in (*NAMED, *GROUPS):
            given[name] = as_group(name, given.get(name))
        given["host"].pop("layers", None)
        given["host"] = settings.make(HostSettings, given["host"], "host.")
        given["encoder"] = settings.make(EncoderSettings, given["encoder"], "encoder.")
        given["proposer"] = read_proposer(given["proposer"])
        given["label"] = _label(given["label"])
        given["compare"] = settings.make(CompareSettings, given["compare"], "compare.")
        given["effects"] = _effects(given.get("effects"))
        given["groups"] = settings.make(GroupSettings, given["groups"], "groups.")
        given["stream"] = _stream(given.get("stream"))
        given["arrays"] = settings.make(ArraySettings, given["arrays"], "arrays.")
        return settings.make(cls, given, "").check()

    def check(self) -> "RunConfig":
        """Itself. Raises UserError for values that no run could use, as far as they show without any file."""
        if not self.name or Path(self.name).name != self.name:
            raise UserError(
                "name", self.name, "has to be the name of a file", "leave out slashes; root=PATH is the folder"
            )
        known = {"pool": (self.pool, POOLS), "signed": (self.signed, SIGNED), "truth": (self.truth, truth.RULES)}
        known["dtype"] = (self.dtype, tuple(STORED))
        for setting, (value, choices) in known.items():
            if value not in choices:
                near = settings.nearest(value, list(choices))
                raise UserError(setting, value, "unknown", f"{near}known: {', '.join(choices)}")
        for setting, least in (("batch_size", 1), ("workers", 0), ("tokens_per_image", 1)):
            value = getattr(self, setting)
            if value is not None and value < least:
                raise UserError(setting, value, f"expected a whole number of at least {least}")
        if self.stream is not None and self.stream.pictures < LEAST:
            what = f"expected a whole number of at least {LEAST}"
            raise UserError("stream.pictures", self.stream.pictures, what)
        describe_crops(self.stream.crop if self.stream is not None else None)
        if self.stream is not None and self.arrays.activations is not None:
            raise UserError("stream", "true", "there is no host that could compute arrays.activations", "leave one out")
        if not self.bases:
            raise UserError("bases", "[]", "expected at least one", f"known: {', '.join(KINDS)}")
        for kind in self.bases:
            if kind == ROOT:
                what = "is a layer, of which neurons are a basis"
                raise UserError("bases", kind, what, f"use layers=[{ROOT}] bases=[neuron]")
            if kind not in KINDS:
                near = settings.nearest(kind, list(KINDS))
                raise UserError("bases", kind, "unknown", f"{near}known: {', '.join(KINDS)}")
        if isinstance(self.effects, dict) and (groups := [kind for kind in self.bases if KINDS[kind].of]):
            remedy = "leave them out of bases, or effects out"
            raise UserError("effects", ", ".join(groups), "groups write nothing of their own", remedy)
        pipeline.check(self.label_settings(0))
        check_sae(self.sae)
        for text in self.also:
            vary_sae(text, self.sae)
        for setting in ("layers", "seeds", "rotation_seeds"):
            if not getattr(self, setting):
                raise UserError(setting, "[]", "expected at least one")
        return self

    def record(self) -> dict[str, Any]:
        """The nested mapping of plain values that `of` reads: what run.json keeps."""
        own = asdict(self)
        own["proposer"] = {k: v for k, v in own["proposer"].items() if k != "options"} | self.proposer.options
        return own

    def label_settings(self, mine: int) -> pipeline.LabelSettings:
        """How labels are assigned, for so many mining images; `final` is named where it is `auto`."""
        own = self.label
        names = ("renormalize", "nulls", "rival_nulls", "abstain_below", "seed", "runners_up", "meanings", "sets")
        return pipeline.LabelSettings(
            self.scorer,
            final_scorer(own.final, self.scorer, mine),
            own.templates or self.encoder.templates,
            **{name: getattr(own, name) for name in names},
        )


def as_tuple(value: Any) -> tuple[Any, ...]:
    """A setting that may be one value or a list, as a tuple without repetitions."""
    return tuple(dict.fromkeys(value if isinstance(value, list | tuple) else [value]))


def _flat(name: str, value: Any) -> tuple[Any, ...]:
    """`as_tuple` of a setting. UserError for lists and settings in it, and for a seed that stands there twice."""
    for entry in value if isinstance(value, list | tuple) else [value]:
        if isinstance(entry, list | tuple | Mapping):
            what = "is no name of a layer" if name == "layers" else "is no name and no number"
            raise UserError(name, entry, what, "give a list without lists in it")
    found = as_tuple(value)
    if name in ("seeds", "rotation_seeds") and isinstance(value, list | tuple) and len(found) < len(value):
        raise UserError(name, list(value), "names a seed twice, which would make the same again", "give each once")
    return found


def as_layers(names: Sequence[Any]) -> tuple[str, ...]:
    """Names of layers, of which those of nn.Sequential are numbers. Raises UserError for what names no layer.

    A number with a point is refused, for 3.1 may have been 3.10 before it was read.
    """
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | Integral):
            number = isinstance(name, float)
            quoted = f"write it as text: \"layers=['{name}']\" on the command line, layers=['{name}'] in Python"
            remedy = quoted if number else "`saelab layers host=NAME` lists those of a model"
            raise UserError("layers", name, "is no name of a layer", remedy)
    return tuple(dict.fromkeys(str(name) for name in names))


def as_group(name: str, value: Any) -> dict[str, Any]:
    """A group of settings: as it is given, none for None, and text as the name of what has one. Else: UserError."""
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    if name in NAMED and isinstance(value, str):
        return {"name": value}
    expected = "expected a name or settings" if name in NAMED else "expected settings"
    raise UserError(name, value, expected, f"for example {name}={{'{NAMED.get(name) or GROUPS[name]}': ...}}")


def read_proposer(given: Mapping[str, Any]) -> ProposerSettings:
    """The settings of the stage, and under `options` those of the proposer itself."""
    own = {field.name for field in fields(ProposerSettings)} - {"options"}
    known = {name: value for name, value in given.items() if name in own}
    return settings.make(
        ProposerSettings, known | {"options": {k: v for k, v in given.items() if k not in own}}, "proposer."
    )


def _effects(given: Any) -> dict[str, Any] | str | None:
    """Settings of `saelab effects`, checked; other text than `auto` says which units, true stands for the defaults."""
    if given is None or given is False:
        return None
    if given == AUTO:
        return AUTO
    own = {} if given is True else dict(given) if isinstance(given, Mapping) else {"units": str(given)}
    read_effects(own)
    return own


def _stream(given: Any) -> StreamSettings | None:
    """True stands for the defaults, false and null for a cache."""
    if given is None or isinstance(given, StreamSettings):
        return given
    if isinstance(given, bool):
        return StreamSettings() if given else None
    if not isinstance(given, Mapping):
        raise UserError("stream", given, "expected true, false or settings", "for example stream={pictures:512}")
    return settings.make(StreamSettings, given, "stream.")


def _label(given: Mapping[str, Any]) -> LabelConfig:
    own = dict(given)
    if "vocabulary" in own:
        own["vocabulary"] = as_tuple(own["vocabulary"])
    own["mining"] = settings.make(MiningSettings, own.get("mining") or {}, "label.mining.")
    return settings.make(LabelConfig, own, "label.")
