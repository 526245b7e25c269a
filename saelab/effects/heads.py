"""Heads: what turns a host's answer into outputs with names. Its own classifier, a probe, or text vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.effects.targets import Outputs, imagenet_outputs
from saelab.errors import UserError

HEADS = ("host", "probe", "text")
DECAY = 1e-2  # L2 penalty of a probe's weights on standardised inputs
SURE = 1.645  # standard errors that a probe's accuracy has to be above chance: one-sided 5 %


@dataclass(frozen=True)
class Head:
    """Named outputs, linear in the host's answer (after its length is set to 1, for text vectors)."""

    outputs: Outputs
    how: str  # host | probe | text
    weight: Float[Tensor, "outputs answer"] | None = None  # None: the answer is the outputs
    bias: Float[Tensor, "outputs"] | None = None
    unit_length: bool = False
    accuracy: float | None = None  # of a probe, on test pictures
    chance: float | None = None  # accuracy of always naming the commonest class

    def __call__(self, answer: Float[Tensor, "images answer"]) -> Float[Tensor, "images outputs"]:
        """Outputs, float32 (float64 stays)."""
        answer = answer if answer.dtype == torch.float64 else answer.float()
        if self.unit_length:
            answer = normalize(answer, dim=-1)
        if self.weight is None:
            return answer
        logits = answer @ self.weight.to(answer).T
        return logits if self.bias is None else logits + self.bias.to(answer)


def host_head(model: Any, width: int) -> Head:
    """The host's own classifier. Raises UserError where nothing says what its `width` outputs are called."""
    names = _own_names(model, width)
    if names is not None:
        return Head(Outputs(names), "host")
    if width == 1000:
        return Head(imagenet_outputs(), "host")
    remedy = "use head=probe with pictures that have classes, or head=text with an image-text host"
    raise UserError("head", "host", f"its {width} outputs have no names", remedy)


def _own_names(model: Any, width: int) -> tuple[str, ...] | None:
    """Names that the model itself carries (Hugging Face's id2label), unless they are numbers."""
    found = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(found, dict) or len(found) != width:
        return None
    names = tuple(str(found.get(i, found.get(str(i)))) for i in range(width))
    return None if all(name.upper().startswith("LABEL_") for name in names) else names


def fit_probe(
    mine: Float[Tensor, "mine answer"],
    mine_classes: Sequence[Sequence[str]],
    test: Float[Tensor, "test answer"],
    test_classes: Sequence[Sequence[str]],
) -> Head:
    """Logistic regression from the host's answers to the pictures' classes, fitted on `mine`, measured on `test`.

    A picture of several classes counts for each in equal parts. Pictures without a class are left out. Raises
    UserError for fewer than two classes, and where accuracy on test pictures is not above that of always naming the
    commonest class.
    """
    names = sorted({name for own in mine_classes for name in own})
    if len(names) < 2:
        raise UserError("head", "probe", f"the pictures have {len(names)} classes", "give pictures with classes")
    x, y = _shares(mine, mine_classes, names)
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias = _fit((x - mean) / std, y)
    weight = weight / std
    bias = bias - weight @ mean
    seen, truth = _shares(test, test_classes, names)
    if not len(seen):
        raise UserError("head", "probe", "no test picture has a class of `mine`", "give more pictures")
    accuracy = float(truth[torch.arange(len(seen)), (seen @ weight.T + bias).argmax(1)].gt(0).double().mean())
    chance = float(truth[:, y.sum(0).argmax()].gt(0).double().mean())
    if accuracy <= chance + SURE * math.sqrt(max(chance * (1 - chance), 1e-12) / len(seen)):
        what = f"names {accuracy:.0%} of the test pictures right, the commonest class alone {chance:.0%}"
        raise UserError("head", "probe", what, "choose pictures whose classes the host can tell")
    return Head(Outputs(tuple(names)), "probe", weight.float(), bias.float(), accuracy=accuracy, chance=chance)


def text_head(labels: Sequence[str], vectors: Float[Tensor, "labels d_text"], width: int) -> Head:
    """100 x the cosine of the picture's vector and each label's, for hosts that answer in an image-text space.

    Raises UserError where the host's answer has another width than the labels' vectors.
    """
    if vectors.shape[1] != width:
        what = f"the host answers with {width} numbers, the encoder's labels have {vectors.shape[1]}"
        raise UserError("head", "text", what, "use the host's own model as encoder")
    return Head(Outputs(tuple(labels)), "text", 100 * normalize(vectors.float(), dim=-1), unit_length=True)


def _shares(x: Tensor, classes: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Pictures that have a known class, float64, and the share of each class in them."""
    place = {name: i for i, name in enumerate(names)}
    y = torch.zeros(len(x), len(names), dtype=torch.float64)
    for i, own in enumerate(classes):
        known = [place[name] for name in own if name in place]
        y[i, known] = 1 / max(1, len(known))
    kept = y.sum(1) > 0
    return x.double().cpu()[kept], y[kept]


def _fit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS: convex, so there is one answer."""
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = -(y * torch.log_softmax(x @ weight.T + bias, 1)).sum(1).mean() + DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach()
