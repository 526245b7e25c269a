"""The stage of SAEs: from a config's `sae` to SAEConfig and TrainConfig, with a line for each slip, and artifacts."""

import types
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from command import plain
from processes import ensure_together

from saelab.artifacts import Artifact
from saelab.cache.batches import Batches
from saelab.errors import UserError
from saelab.sae import SAEConfig, TrainConfig, fit_many
from saelab.sae.select import settled

if TYPE_CHECKING:
    from stages import Run

Kind = TypeVar("Kind")
NAMES = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", tuple: "a list"}


def configs(settings: dict[str, Any], d_in: int, seeds: Sequence[int]) -> tuple[list[SAEConfig], TrainConfig]:
    """One SAEConfig for each seed, and how they are trained. `latents`, or `expansion` times d_in of them.

    Raises UserError for a setting that does not exist, one of another type, and values that can't be trained.
    """
    settings = dict(settings)
    train = _made(TrainConfig, settings.pop("train"), "sae.train.")
    expansion, latents = settings.pop("expansion", None), settings.pop("latents", None)
    if latents is None:
        if not isinstance(expansion, int | float):
            raise UserError("sae.expansion", expansion, "has to be a number where sae.latents is null")
        latents = round(expansion * d_in)
    own = {"d_in": d_in, "latents": latents}
    return [_made(SAEConfig, settings | own | {"seed": seed}, "sae.") for seed in seeds], train


def trained(run: "Run", layer: str, logger: Any = None) -> list[Artifact]:
    """One SAE for each seed, trained on the mine tokens in one pass; `logger` as saelab.sae.fit takes it."""
    store = run.caches[layer]
    found, train = configs(plain(run.cfg.sae), store.d_in, run.cfg.seeds)
    found = [settled(config, run.device) for config in found]
    recipes = [{"stage": "sae", "code": 5, "cache": store.digest, "sae": c, "train": train} for c in found]
    kept = "" if found[0].rule == "relu" else f"-k{found[0].k}"
    wanted = [(f"{layer}-{c.latents}{kept}-seed{c.seed}", recipe) for c, recipe in zip(found, recipes)]

    def build(folders: dict[int, Path]) -> None:
        batches = Batches(store.tokens, train.batch_size, train.seed, rows=store.rows("mine"))
        positions = list(folders)
        missing = [found[i] for i in positions]
        fit_many(
            batches,
            missing,
            train,
            list(folders.values()),
            mean=store.mean,
            variance=store.variance,
            device=run.device,
            logger=None if logger is None else lambda which, *told: logger(positions[which], *told),
        )

    with run.timed("sae"):
        return ensure_together(run.root, "sae", wanted, build)


def _made(kind: type[Kind], settings: dict[str, Any], prefix: str) -> Kind:
    known = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    for name, value in settings.items():
        if name not in known:
            raise UserError(prefix + name, value, "there is no such setting", f"known: {', '.join(known)}")
        wanted = [get_origin(t) or t for t in _options(known[name])]
        if not any(_is(value, t) for t in wanted):
            raise UserError(prefix + name, value, " or ".join(NAMES.get(t, "null") for t in wanted))
    return kind(**settings)


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, {float: (int, float), tuple: (list, tuple)}.get(kind, kind))
