"""A host's answers to edited tokens of one layer, for pictures of a set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache import ActivationCache
from saelab.hosts import Host
from saelab.images import ImageSet

AT_ONCE = 1 << 23  # numbers of edited tokens that run through the rest of the model at once: 32 MiB
Read = Callable[[Float[Tensor, "images answer"]], Float[Tensor, "images outputs"]]


class Answers(Protocol):
    """What measuring needs of a host."""

    def tokens(self, ids: Int[np.ndarray, "images"]) -> Float[Tensor, "images tokens d_in"]:
        """The layer's kept tokens of these pictures, float32, on the CPU."""
        ...

    def logits(
        self, ids: Int[np.ndarray, "images"], edited: Float[Tensor, "copies images tokens d_in"]
    ) -> Float[Tensor, "copies images outputs"]:
        """The outputs with the kept tokens replaced, on the CPU."""
        ...

    def gradient(
        self, ids: Int[np.ndarray, "images"], tokens: Float[Tensor, "images tokens d_in"], weights: Tensor
    ) -> Float[Tensor, "images tokens d_in"]:
        """Gradient of the weighted sum of outputs, `weights` [outputs], with respect to the kept tokens."""
        ...


@dataclass(frozen=True)
class HostAnswers:
    """Answers of a real host. Where the layer cuts the graph and the cache holds all its tokens, no picture is read."""

    host: Host
    store: ActivationCache
    images: ImageSet
    read: Read  # the host's answer to named outputs

    @property
    def whole(self) -> bool:
        """Does the cache hold every token of the layer?"""
        policy, layer = self.store.info["policy"], self.store.layer
        return self._complete and self.host.choice(layer, policy).index is None

    @property
    def resumed(self) -> bool:
        """Do passes start from cached tokens? Else each starts from its picture."""
        return self.whole and self.host.cuts(self.store.layer)

    def tokens(self, ids: Int[np.ndarray, "images"]) -> Float[Tensor, "images tokens d_in"]:
        """From the cache, or by the host where the cache kept a random share of the tokens."""
        if self._complete:
            return torch.from_numpy(np.stack([self.store.image_tokens(int(i)) for i in ids]))
        layer, policy = self.store.layer, self.store.info["policy"]
        parts = [self.host.tokens(self._batch([i]), [layer], policy)[layer] for i in ids]
        return torch.cat(parts).float().cpu()

    def logits(
        self, ids: Int[np.ndarray, "images"], edited: Float[Tensor, "copies images tokens d_in"]
    ) -> Float[Tensor, "copies images outputs"]:
        """Outputs for every copy, float32."""
        if not self.resumed:
            return torch.stack([self._from_picture(int(i), edited[:, n]) for n, i in enumerate(ids)], dim=1)
        flat = edited.flatten(0, 1)
        size = max(1, AT_ONCE // flat[0].numel())
        parts = [self._read(self.host.resume(self._there(part), self.store.layer)) for part in flat.split(size)]
        return torch.cat(parts).unflatten(0, edited.shape[:2])

    def gradient(
        self, ids: Int[np.ndarray, "images"], tokens: Float[Tensor, "images tokens d_in"], weights: Tensor
    ) -> Float[Tensor, "images tokens d_in"]:
        """One backward pass a batch."""
        size = max(1, AT_ONCE // (4 * tokens[0].numel()))
        places = np.array_split(np.arange(len(ids)), max(1, -(-len(ids) // size)))
        return torch.cat([self._gradient(ids[at], tokens[at], weights) for at in places])

    def _gradient(self, ids: np.ndarray, tokens: Tensor, weights: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = self._there(tokens).clone().requires_grad_()
            if self.resumed:
                answer = self.host.resume(leaf, self.store.layer, grad=True)
            else:
                layer, policy = self.store.layer, self.store.info["policy"]
                answer = self.host.run(self._batch(ids), layer, lambda _: leaf, policy, grad=True)
            value = (self.read(answer) @ weights.to(answer.device, torch.float32)).sum()
            return torch.autograd.grad(value, leaf)[0].float().cpu()

    def _from_picture(self, image: int, edited: Float[Tensor, "copies tokens d_in"]) -> Float[Tensor, "copies outputs"]:
        """One picture's copies, a few at once."""
        size = max(1, AT_ONCE // edited[0].numel())
        parts = []
        for part in self._there(edited).split(size):
            edits = [lambda own, new=new: new[None].to(own) for new in part]
            answers = self.host.fan_out(
                self._batch([image]), self.store.layer, edits, self.store.info["policy"]
            )  # [1, edits, answer]
            parts.append(self._read(answers[0]))
        return torch.cat(parts)

    @property
    def _complete(self) -> bool:
        return self.store.recipe.get("tokens_per_image") is None

    def _batch(self, ids: Sequence[int] | np.ndarray) -> Tensor:
        return self.host.load_images([self.images.load(int(i)) for i in ids])

    def _there(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.host.device, self.host.dtype)

    def _read(self, answer: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.read(answer).cpu()
