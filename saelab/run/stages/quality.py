"""The quality stage: how well an SAE reconstructs, on the tokens it was trained on and on held-out ones, and more."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.artifacts import Artifact, ensure, write_json
from saelab.cache import ActivationCache, Batches
from saelab.hosts import Host
from saelab.images import ImageSet
from saelab.sae import SAE
from saelab.sae.fidelity import Probes, loss_recovered, measure
from saelab.units import UnitActivations

CODE = 1  # version of this stage; part of every recipe
FILE = "quality.json"


@dataclass(frozen=True)
class InHost:
    """What the SAE is spliced into, to see what the host still recognises."""

    host: Host
    policy: str
    batch_size: int
    workers: int


def measure_sae(
    sae: Artifact,
    others: Sequence[Artifact],
    store: ActivationCache,
    images: ImageSet,
    root: Path,
    inside: InHost | None = None,
    units: Artifact | None = None,
) -> Artifact:
    """The `quality` artifact of one SAE: quality.json with the parts of `saelab.sae.fidelity.Measures`.

    `others`: SAEs of the same recipe and other seeds, for their stability. `inside`: splice it into the host, over the
    test images. `units`: its pooled activations, for probes of the images' classes (left out where there is only one).
    """
    probed = units is not None and len(images.truth()[0]) > 1
    recipe: dict[str, Any] = {"stage": "quality", "code": CODE, "sae": sae.digest, "cache": store.digest}
    recipe |= {"others": [other.digest for other in others], "loss": inside is not None, "probes": probed}

    def build(folder: Path) -> None:
        found = measure(
            _load(sae),
            Batches(store.tokens, 4096, 0, rows=store.rows("mine")),
            Batches(store.tokens, 4096, 0, rows=store.rows("test")),
            splice=None if inside is None else _splice(inside, store.layer, images),
            probes=_probes(units, images) if probed and units is not None else None,
            others=[_load(other) for other in others],
        )
        write_json(folder / FILE, asdict(found))

    return ensure(root, "quality", sae.path.name.rpartition("-")[0], recipe, build)


def _load(sae: Artifact) -> SAE:
    return SAE.load(sae.path / "sae.safetensors")


def _splice(inside: InHost, layer: str, images: ImageSet) -> Callable[[SAE], dict[str, float | None]]:
    def batches() -> Iterator[tuple[Tensor, None]]:
        own = (inside.host.transform, inside.batch_size)
        for _, batch in images.batches(*own, workers=inside.workers, ids=images.ids("test")):
            yield batch, None

    return lambda sae: loss_recovered(inside.host, sae, layer, batches(), inside.policy)


def _probes(units: Artifact, images: ImageSet) -> Probes:
    acts, (_, member) = UnitActivations.load(units.path), images.truth()
    mine, test = images.ids("mine"), images.ids("test")

    def rows(ids: Any) -> Any:
        found = acts.rows(ids)
        return (found.to_dense() if found.layout != torch.strided else found).numpy()

    return Probes(rows(mine), member[mine], rows(test), member[test])
