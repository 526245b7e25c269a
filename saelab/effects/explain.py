"""Why this output on this picture: the units that carry it, how much, and where."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.effects.ablate import Active, centred
from saelab.effects.attribute import METHODS, exact, of_output, values_by
from saelab.hosts import Host
from saelab.units.bases import Projection

SCREENED = 2  # units are chosen by their first-order value; of so many times those shown the exact one is measured
ONE = np.zeros(1, np.int64)  # the only picture


@dataclass(frozen=True)
class OnePicture:
    """Answers of a host for one picture that is in no set; the ids that it is asked for are not looked at.

    The picture runs up to the layer once. Where the layer cuts the graph and all its tokens are kept, everything else
    goes on from these tokens; else each question is a pass from the picture, which gives the same numbers.
    """

    host: Host
    layer: str
    policy: str
    batch: Float[Tensor, "1 3 height width"]
    read: Callable[[Tensor], Tensor]  # the host's answer to named outputs
    known: Float[Tensor, "1 tokens d_in"] | None = None  # the layer's kept tokens, where a pass gave them already

    @cached_property
    def own(self) -> Float[Tensor, "1 tokens d_in"]:
        """The layer's kept tokens, float32, on the CPU."""
        if self.known is not None:
            return self.known.float().cpu()
        return self.host.tokens(self.batch, [self.layer], self.policy)[self.layer].float().cpu()

    @cached_property
    def before(self) -> Float[Tensor, "1 outputs"]:
        """The outputs as they are."""
        return self.logits(ONE, self.own[None])[0]

    @cached_property
    def resumed(self) -> bool:
        """Do answers go on from the tokens? A picture of another size than the transform's has other tokens."""
        usual = tuple(self.batch.shape[-2:]) == tuple(self.host.transform.size)
        return usual and self.host.choice(self.layer, self.policy).index is None and self.host.cuts(self.layer)

    def tokens(self, ids: Int[np.ndarray, "1"]) -> Float[Tensor, "1 tokens d_in"]:
        """As `own`."""
        return self.own

    def logits(
        self, ids: Int[np.ndarray, "1"], edited: Float[Tensor, "copies 1 tokens d_in"]
    ) -> Float[Tensor, "copies 1 outputs"]:
        """Outputs for every copy."""
        if self.resumed:
            answer = self.host.resume(edited[:, 0].to(self.host.device, self.host.dtype), self.layer)
        else:
            edits = [lambda own, new=new: new.to(own) for new in edited]
            answer = self.host.fan_out(self.batch, self.layer, edits, self.policy)[0]
        with torch.inference_mode():
            return self.read(answer).cpu()[:, None]

    def gradient(
        self, ids: Int[np.ndarray, "1"], tokens: Float[Tensor, "1 tokens d_in"], weights: Float[Tensor, "outputs"]
    ) -> Float[Tensor, "1 tokens d_in"]:
        """Gradient of the weighted sum of outputs with respect to the kept tokens."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = tokens.to(self.host.device, self.host.dtype).clone().requires_grad_()
            if self.resumed:
                answer = self.host.resume(leaf, self.layer, grad=True)
            else:
                answer = self.host.run(self.batch.clone(), self.layer, lambda _: leaf, self.policy, grad=True)
            value = (self.read(answer) @ weights.to(answer.device, torch.float32)).sum()
            return torch.autograd.grad(value, leaf)[0].float().cpu()


def look(
    host: Host,
    layers: Iterable[str],
    policy: str,
    batch: Float[Tensor, "1 3 height width"],
    read: Callable[[Tensor], Tensor],
) -> dict[str, OnePicture]:
    """One picture at several layers, which one pass runs up to."""
    tokens = host.tokens(batch, list(dict.fromkeys(layers)), policy)
    return {layer: OnePicture(host, layer, policy, batch, read, known) for layer, known in tokens.items()}


@dataclass(frozen=True)
class Share:
    """What one unit contributes to the output on the picture."""

    unit: int
    effect: float  # centred logit that is lost when the unit is taken out; > 0: it speaks for the output
    first_order: float  # the same by the method that screened
    tokens: Float[Tensor, "tokens"]  # that value token by token: where


@dataclass(frozen=True)
class Explanation:
    """The units of one basis that carry an output on a picture."""

    shares: list[Share]  # largest effect in size first
    whole: float  # the centred output
    units: float  # what all units together add to it: the output as it is, less the output without any
    summed: float  # all units' values, summed; far from `units` where gradient x part meets a rest that is not linear
    firing: int  # units that fire on the picture
    where: Float[Tensor, "tokens"]  # values of all units, token by token
    totals: Float[Tensor, "units"]  # value of every unit
    active: Active  # the picture's tokens with what every unit holds of them


def explain(
    answers: OnePicture,
    project: Projection,
    writes: Float[Tensor, "units d_in"],
    output: int,
    count: int = 10,
    method: str = METHODS[0],
) -> Explanation:
    """The `count` units whose ablation changes an output most, on one picture.

    Units are screened by `method` (`values_by`; gradient x part is one backward pass for all), then SCREENED x `count`
    of them are taken out one by one. Values are of the logit less the mean of all, which is what softmax sees. An SAE's
    bias and error are no unit, so that `whole` is more than `units`.
    """
    tokens, before = answers.own, answers.before
    active = Active.of(project, tokens)
    weights = of_output(output, before.shape[-1])
    values = values_by(method, answers, ONE, active, writes, weights)[0]  # [tokens, units]
    totals = values.sum(0)
    strongest = torch.argsort(totals.abs(), descending=True, stable=True)[: SCREENED * count]
    tried = [unit for unit in strongest.tolist() if float(totals[unit])]
    effects = exact(answers, ONE, active, writes, weights, tried)[0]
    order = torch.argsort(effects.abs(), descending=True, stable=True)[:count].tolist()
    shares = [Share(tried[i], float(effects[i]), float(totals[tried[i]]), values[:, tried[i]]) for i in order]
    without = answers.logits(ONE, (tokens - active.parts(writes))[None])[0]
    whole = float(centred(before)[0, output])
    units = whole - float(centred(without)[0, output])
    firing = int((active.acts[0] > 0).any(0).sum())
    return Explanation(shares, whole, units, float(totals.sum()), firing, values.sum(1), totals, active)


def grid_of(tokens: Float[Tensor, "tokens"], grid: tuple[int, int] | None) -> list[list[float]] | None:
    """Token values laid out as the picture; None where tokens have no place. Tokens before the grid are passed over."""
    if grid is None:
        return None
    return tokens[-grid[0] * grid[1] :].reshape(grid).tolist()


def top_outputs(logits: Float[Tensor, "outputs"], names: Sequence[str], count: int = 5) -> list[tuple[str, float]]:
    """The outputs with the highest logits and their softmax shares, highest first."""
    shares = logits.double().softmax(-1)
    order = torch.argsort(shares, descending=True, stable=True)[:count].tolist()
    return [(names[i], float(shares[i])) for i in order]
