"""The sae stage: dictionaries on a layer's cached tokens, one for each seed, trained in one pass."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saelab import settings
from saelab.artifacts import Artifact, ensure, file_digest
from saelab.cache import ActivationCache, Batches, UnstoredActivations, stream
from saelab.cache.decks import count_superblocks, mixing
from saelab.errors import UserError
from saelab.images.crops import describe_crops
from saelab.run.distributed import ensure_together
from saelab.run.presets import preset
from saelab.sae import RULES, SAE, SAEConfig, TrainConfig, fit_layers, fit_many
from saelab.sae.config import drop_rounding, settle
from saelab.sae.fit import LayerLogger
from saelab.sae.quality import chunks

CODE = 5  # version of this stage; part of every recipe
LATER = {"jumprelu": 6}  # ... of rules that have come to train otherwise since: silent latents are revived
HELD_OUT = 1 << 14  # tokens that training doesn't see, on which the SAE is measured at its end, at the most
ANY = "default"  # the layer that stands for all, in a check before any is known
Logger = Callable[..., None]  # as saelab.sae.fit_many takes it


def sae_configs(
    given: Mapping[str, Any], layer: str, d_in: int, seeds: Sequence[int]
) -> tuple[list[SAEConfig], TrainConfig]:
    """One SAEConfig for each seed of a layer, and how they are trained. `latents`, or `expansion` times d_in of them.

    `expansion` may be a number for each layer by name, with `default` for the others. Raises UserError for a setting
    that does not exist, one of another type, and values that can't be trained.
    """
    own = dict(given)
    train = settings.make(TrainConfig, own.pop("train", {}), "sae.train.")
    expansion, latents = own.pop("expansion", None), own.pop("latents", None)
    if latents is None:
        named = by_layer(expansion) if isinstance(expansion, Mapping) else {"default": expansion}
        wrong = [times for times in named.values() if isinstance(times, bool) or not isinstance(times, int | float)]
        times = named.get(layer, named.get("default"))
        if wrong or times is None:
            remedy = "give a number, or one for each layer by name and a `default`"
            raise UserError("sae.expansion", expansion, "has to be a number where sae.latents is null", remedy)
        for factor in (*named.values(), times):
            if not 0 < factor < math.inf or (factor is times and not round(times * d_in)):
                what = "must be positive and finite, and give at least one latent"
                remedy = f"latents are expansion times d_in{f' ({d_in})' if layer != ANY else ''}; or give sae.latents"
                raise UserError("sae.expansion", factor, what, remedy)
        latents = round(times * d_in)
    own["latents"] = latents
    filled = [{"d_in": d_in, "seed": seed} for seed in seeds]
    return [settings.make(SAEConfig, own, "sae.", fixed, beside=("expansion", "train")) for fixed in filled], train


def by_layer(expansion: Mapping[Any, Any]) -> dict[str, Any]:
    """`expansion` by the names of layers, of which those of nn.Sequential are numbers."""
    return {str(layer): times for layer, times in expansion.items()}


def check_sae(given: Mapping[str, Any]) -> None:
    """Raise UserError for names and types; whether it fits a layer is checked with the layer's width."""
    sae_configs(given, ANY, 1 << 20, [0])


def check_names(given: Mapping[str, Any], layers: Sequence[str]) -> None:
    """Raise UserError where `expansion` names a layer that is not among `layers`, save those that the preset names."""
    named = given.get("expansion")
    if isinstance(named, Mapping):
        shipped = preset("sae", "quickstart")["expansion"]
        for layer in by_layer(named).keys() - {"default", *layers, *shipped}:
            remedy = f"{settings.nearest(layer, list(layers))}layers of this run: {', '.join(layers)}"
            raise UserError("sae.expansion", layer, "is no layer of this run", remedy)


def vary_sae(text: str, base: dict[str, Any]) -> dict[str, Any]:
    """SAE settings such as `sae.k=8`, `sae.k=32 sae.expansion=4` or `sae=matryoshka sae.k=8` over those of the run."""
    import yaml

    parts = str(text).split()
    if not parts or any("=" not in part or not part.startswith(("sae.", "sae=")) for part in parts):
        remedy = 'give some like "sae.k=8", "sae=matryoshka" or "sae.k=8 sae.expansion=4"'
        raise UserError("also", text, "is no setting of an SAE", remedy)
    given = dict(base)
    for part in parts:
        name, _, value = part.partition("=")
        if name == "sae":
            given = preset("sae", value)
            continue
        path, read = name.removeprefix("sae.").split("."), yaml.safe_load(value)
        if path[0] == "train" and len(path) == 2:
            given["train"] = dict(given.get("train", {})) | {path[1]: read}
        else:
            given[".".join(path)] = read
    check_sae(given)
    return given


def train_saes(
    store: ActivationCache,
    given: Mapping[str, Any],
    seeds: Sequence[int],
    root: Path,
    device: str,
    logger: Logger | None = None,
) -> list[Artifact]:
    """One `sae` artifact for each seed, trained on the mine tokens and measured on these and on some of show.

    `logger(place in seeds, step, numbers)`.
    """
    configs, train = sae_configs(given, store.layer, store.d_in, seeds)
    configs = [settle(config, device) for config in configs]
    wanted = [_recipe(store, config, train) for config in configs]

    def build(folders: dict[int, Path]) -> None:
        batches = Batches(store.tokens, train.batch_size, train.seed, rows=store.rows("mine"))
        places = list(folders)
        fit_many(
            batches,
            [configs[i] for i in places],
            train,
            list(folders.values()),
            mean=store.mean,
            variance=store.variance,
            held_out=draw_held_out(store, train.batch_size),
            device=device,
            logger=None if logger is None else lambda which, *numbers: logger(places[which], *numbers),
        )

    return ensure_together(root, "sae", wanted, build)


def draw_held_out(store: ActivationCache, batch_size: int) -> Batches | None:
    """Tokens of the show split, drawn at random where it has many; None where it has none.

    What they say of an SAE chooses nothing, and the test split is left to the quality stage. Raises UserError for one
    with NaN or an infinity, before SAEs are trained that could not be measured.
    """
    rows = store.rows("show")
    if not len(rows):
        return None
    if len(rows) > HELD_OUT:
        rows = np.sort(np.random.default_rng(0).choice(rows, HELD_OUT, replace=False))
    found = Batches(store.tokens, batch_size, rows=rows)
    for _ in chunks(found):
        pass
    return found


def stream_saes(
    stores: Mapping[str, UnstoredActivations],
    wanted: Sequence[tuple[Mapping[str, Any], Sequence[int]]],
    root: Path,
    device: str,
    pictures: int,
    crop: str | None = None,
    logger: LayerLogger | None = None,
) -> list[dict[str, list[Artifact]]]:
    """For each (settings, seeds) wanted, the `sae` artifacts of every layer, trained on streams of the mine tokens.

    SAEs of equal `train` settings share one pass of the host, whatever their layer, settings and seed. `pictures` and
    `crop` are `cache.stream`'s. `logger(layer, place among all the layer's SAEs, step, numbers)`.
    """
    planned = [
        (which, layer, settle(config, device), train)
        for which, (given, seeds) in enumerate(wanted)
        for layer, store in stores.items()
        for configs, train in [sae_configs(given, layer, store.d_in, seeds)]
        for config in configs
    ]
    found: list[dict[str, list[Artifact]]] = [{layer: [] for layer in stores} for _ in wanted]
    for train in dict.fromkeys(train for *_, train in planned):
        own = [(which, layer, config) for which, layer, config, other in planned if other == train]
        images, cropped = next(iter(stores.values())).forward.images, describe_crops(crop)
        superblocks = count_superblocks(len(images.ids("mine")), pictures, bool(cropped))
        more = {"stream": {"superblocks": superblocks} | mixing(superblocks) | cropped}
        named = [_recipe(stores[layer], config, train, more) for _, layer, config in own]

        def build(folders: dict[int, Path], own: Any = own, train: TrainConfig = train) -> None:
            _train_layers(stores, [entry[1:] for entry in own], train, folders, device, pictures, crop, logger)

        for (which, layer, _), artifact in zip(own, ensure_together(root, "sae", named, build), strict=True):
            found[which][layer].append(artifact)
    return found


def _train_layers(
    stores: Mapping[str, UnstoredActivations],
    wanted: Sequence[tuple[str, SAEConfig]],
    train: TrainConfig,
    folders: Mapping[int, Path],
    device: str,
    pictures: int,
    crop: str | None,
    logger: LayerLogger | None,
) -> None:
    """The SAEs of `wanted` that have a folder, by their place in it: those that are not there yet.

    Eight parameters: what `stream_saes` hands on, and the SAEs that train together.
    """
    every = {layer: [i for i, (own, _) in enumerate(wanted) if own == layer] for layer in stores}
    missing = {layer: [i for i in own if i in folders] for layer, own in every.items() if set(own) & set(folders)}

    def log(layer: str, which: int, step: int, numbers: dict[str, float]) -> None:
        assert logger is not None
        logger(layer, every[layer].index(missing[layer][which]), step, numbers)

    fit_layers(
        stream({layer: stores[layer] for layer in missing}, train.batch_size, train.seed, pictures, crop),
        {layer: [wanted[i][1] for i in own] for layer, own in missing.items()},
        train,
        {layer: [folders[i] for i in own] for layer, own in missing.items()},
        device=device,
        logger=None if logger is None else log,
    )


def _recipe(
    store: ActivationCache, config: SAEConfig, train: TrainConfig, more: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The name and recipe of an SAE's artifact."""
    kept = f"-k{config.k}" if RULES[config.rule].has_k else ""
    code, (config, train) = LATER.get(config.rule, CODE), drop_rounding(config, train)
    recipe = {"stage": "sae", "code": code, "cache": store.digest, "sae": config, "train": train} | dict(more or {})
    return f"{store.layer}-{config.latents}{kept}-seed{config.seed}", recipe


def adopt_sae(sae: SAE | Path | str, d_in: int, root: Path) -> Artifact:
    """The `sae` artifact of an SAE that somebody trained elsewhere: an SAE, its file, or a folder with it.

    Raises UserError where its d_in is not the layer's.
    """
    if not isinstance(sae, SAE):
        path = Path(sae).expanduser()
        if path.is_file() and path.suffix != ".safetensors":
            raise UserError("sae", path, "is not saelab's format", f'give sae=saelab.sae.convert.load("{path}")')
        if not path.exists():
            raise UserError("sae", path, "there is no such file or folder", "give the file of an SAE")
        sae = SAE.load(path / "sae.safetensors" if path.is_dir() else path)
    if sae.d_in != d_in:
        raise UserError("sae", sae.d_in, f"the layer's tokens have {d_in} dimensions", "give an SAE of this layer")
    staged = root / "sae" / ".adopted.safetensors"
    staged.parent.mkdir(parents=True, exist_ok=True)
    sae.save(staged)
    recipe = {"stage": "sae", "code": CODE, "given": file_digest(staged)}
    try:
        return ensure(root, "sae", f"given-{sae.latents}", recipe, lambda folder: sae.save(folder / "sae.safetensors"))
    finally:
        staged.unlink(missing_ok=True)
