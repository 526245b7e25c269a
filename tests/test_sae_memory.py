"""What a step takes beyond weights, gradients and optimiser, counted tensor by tensor: two pre-activation buffers."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saelab.sae import SAEConfig, Trainer

D, LATENTS, BATCH = 48, 2048, 512  # d_in to batch as 384 to 4096
BUFFER = BATCH * LATENTS * 4  # bytes of the batch's pre-activations in float32


class Held(TorchDispatchMode):
    """Within the block, counts the bytes of what torch allocates until it is freed, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.known = 0, 0, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in storages((args, kwargs))}
        for storage in storages(found):
            place = storage.data_ptr()
            if place and place not in given and place not in self.known:
                self.known[place] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, place)
        return found

    def freed(self, place: int) -> None:
        self.now -= self.known.pop(place)


def storages(values: Any) -> list[torch.UntypedStorage]:
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]


def test_the_count_is_of_what_is_held_at_once():
    x = torch.ones(1000)
    with Held() as held:
        kept = x * 2
        for _ in range(5):
            (x + 1).mul_(kept).view(10, 100)
        assert held.now == 4000 and held.peak == 8000
        both = torch.cat([x, x])
        assert held.now == 12_000 == held.peak and len(both) == 2000
        del both, kept
    assert held.now == 0


def held_by_a_step(config: SAEConfig, share: float) -> float:
    """Peak of a step's tensors, the kept pre-activations included, in buffers; `share` of the latents are silent."""
    x = torch.randn(BATCH, D, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(config)
    for _ in range(2):
        trainer.step(x)
    trainer._pre = None
    trainer.silent[:] = 0
    trainer.silent[: round(share * LATENTS)] = config.dead_after
    with Held() as held:
        metrics = trainer.step(x)
    assert ("auxk" in metrics) == (share > 0) and int(metrics["silent"]) <= share * LATENTS
    return held.peak / BUFFER


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 1.0])
@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_a_step_holds_two_buffers_at_most_however_many_latents_auxk_works_on(rule, stride, share):
    config = SAEConfig(D, LATENTS, rule=rule, k=8, auxk_stride=stride, dead_after=10**6)
    assert 1 < held_by_a_step(config, share) <= 2
