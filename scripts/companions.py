"""What a comparison can add to the pipeline's own bases: other SAEs of the same layers, and SAEs on a random host."""

from dataclasses import dataclass, replace
from functools import cached_property

from bases import Basis, of_kind
from command import plain, several
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from stages import Run

from saelab.errors import UserError


@dataclass(frozen=True)
class OnRandomHost(Basis):
    """An SAE on the same network with random weights: a control, for a real basis has to beat it."""

    @property
    def control(self) -> bool:
        """Always."""
        return True


class Companions(Run):
    """A run whose bases are joined by those of `also` and `random_host`: one vocabulary and one comparison for all."""

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.others = {text: self._variant(text) for text in several(cfg.also)}
        if cfg.random_host and plain(cfg.proposer).get("tiles", "raw") != "raw":
            raise UserError(
                "proposer.tiles", cfg.proposer.tiles, "can't show where an SAE on a random host fires", "use raw"
            )

    @cached_property
    def bases(self) -> list[Basis]:
        """The pipeline's own, and the SAEs that join them."""
        found = Run.bases.func(self)  # what the cached property computes
        for text, other in self.others.items():
            other.__dict__ |= {"images": self.images, "timings": self.timings, "host": self.host, "caches": self.caches}
            found += [self._named(basis, text) for layer in other.caches for basis in self._saes(other, layer)]
        if self.cfg.random_host:
            found += [_on_random_host(b) for layer in self.random.caches for b in self._saes(self.random, layer)]
        return found

    @cached_property
    def random(self) -> Run:
        """The same network with random weights, and what comes of it."""
        cfg = self.cfg.copy()
        cfg.host.weights = "random"
        other = Run(cfg)
        other.__dict__ |= {"images": self.images, "timings": self.timings}
        return other

    def per_layer(self) -> int:
        """How many bases a layer is to have."""
        return super().per_layer() + (len(self.others) + bool(self.cfg.random_host)) * len(self.cfg.seeds)

    def _saes(self, other: Run, layer: str) -> list[Basis]:
        return of_kind(other, "sae", layer)

    def _variant(self, text: str) -> Run:
        """A run with other settings of its SAEs, such as `sae.k=8` or `sae.k=32 sae.expansion=4`."""
        cfg, given = self.cfg.copy(), str(text).split()
        if not given or any(not part.startswith("sae.") or "=" not in part for part in given):
            raise UserError(
                "also", text, "is no setting of an SAE", 'give some like "sae.k=8" or "sae.k=8 sae.expansion=4"'
            )
        try:
            cfg.merge_with_dotlist(given)
        except OmegaConfBaseException as error:
            raise UserError("also", text, str(error).splitlines()[0], f"known: {', '.join(self.cfg.sae)}") from None
        return Run(cfg)

    def _named(self, basis: Basis, text: str) -> Basis:
        own = text.replace("sae.", "")
        return replace(basis, name=f"sae {own} seed {basis.seed}", group=f"SAE features, {own}")


def _on_random_host(basis: Basis) -> OnRandomHost:
    name, group = f"SAE on random host, seed {basis.seed}", "SAE on a random host"
    return OnRandomHost(name, group, basis.kind, basis.seed, basis.layer, basis.units, basis.sae)
