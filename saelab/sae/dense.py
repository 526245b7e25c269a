"""The loss of a gate and its gradients, through autograd: its codes are not sparse from the start.

Where processes hold the latents between them, codes stay where they are: only reconstructions [batch, d_in] are summed,
and the gradient of b_dec.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.sae import rules, sparse
from saelab.sae.config import SAEConfig
from saelab.sae.distributed import World
from saelab.sae.objectives import Gradients
from saelab.sae.rules.rule import Weights


def dense_gradients(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    config: SAEConfig,
    variance: Tensor,
    tokens: int,
    world: World | None = None,
    pieces: int = 1,
) -> tuple[Gradients, Float[Tensor, "batch d_in"]]:
    """Gradients of `dense_loss`, of so many equal pieces of x one after the other; also x^ - x of the whole SAE.

    The decoder's gradient has its radial part removed. `tokens` is the batch size over all processes.
    """
    world, parts = world or World(), x.split(len(x) // pieces)
    total = world.all.sum_ if pieces == 1 else _total(parts, weights, config, variance, tokens, world)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    found, errors = None, []
    for part in parts:
        with torch.enable_grad():
            loss, metrics, fired, error = dense_loss(leaves, part, config, variance, tokens, world, total)
        each = torch.autograd.grad(loss, list(leaves.values()))
        grads = {name: grad.contiguous() for name, grad in zip(leaves, each, strict=True)}  # as fused Adam reads them
        more = Gradients(grads, fired, metrics)
        found = more if found is None else found.add(more)
        errors.append(error)
    assert found is not None
    dW_dec, W_dec = found.grads["W_dec"], weights["W_dec"]
    sparse.remove_radial(dW_dec, W_dec, (dW_dec * W_dec).sum(1))
    return found, errors[0] if pieces == 1 else torch.cat(errors)


def _total(
    parts: Sequence[Float[Tensor, "piece d_in"]],
    weights: Weights,
    config: SAEConfig,
    variance: Tensor,
    tokens: int,
    world: World,
) -> Callable[[Tensor], Tensor]:
    """What sums a gate's number over the batch (`Gate.open`), where the gate sees one piece after the other."""
    rule, asked = rules.find(config.rule), []
    assert isinstance(rule, rules.Gate)
    if not rule.needs_batch:  # its number is logged only: the mean of the pieces' is the batch's
        return lambda number: world.all.sum_(number).mul_(len(parts))

    def note(number: Tensor) -> Tensor:
        asked.append(number)
        return number

    with torch.no_grad():
        for part in parts:
            pre = multiply(part - weights["b_dec"], weights["W_enc"].T, config, weights["b_enc"]).relu_()
            rule.open(pre, weights, config, variance.sqrt(), tokens, note)
    whole = world.all.sum_(torch.stack(asked).sum())
    return lambda _: whole


def dense_loss(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    config: SAEConfig,
    variance: Tensor,
    tokens: int,
    world: World | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor], Bool[Tensor, "latents"], Float[Tensor, "batch d_in"]]:
    """Loss of a gate, for autograd: FVU plus the rule's penalty; numbers for the log; who fired; x^ - x.

    `tokens` is the batch size over all processes, and `total` sums over the batch (None: x is each process' share). The
    loss is the part of it that the latents held here have a share in; its gradients are those of the whole.
    """
    rule, world = rules.find(config.rule), world or World()
    assert isinstance(rule, rules.Gate)
    shards = world.latents
    centred = x - _Common.apply(weights["b_dec"], shards)
    pre = multiply(centred, weights["W_enc"].T, config, weights["b_enc"]).relu()
    made = rule.open(pre, weights, config, variance.sqrt(), tokens, total or world.all.sum_)
    error = _Sum.apply(multiply(made.codes, weights["W_dec"], config), shards) + weights["b_dec"] - x
    fvu = error.square().sum() / (tokens * variance)
    loss = fvu.detach() + made.value * (len(x) / tokens)
    metrics = {"loss": loss, "fvu": fvu.detach(), "l0": shards.sum_(made.l0.detach().clone())}
    return fvu + made.penalty, metrics, (made.codes.detach() > 0).any(0), error.detach()


def multiply(
    left: Float[Tensor, "n inner"],
    right: Float[Tensor, "inner m"],
    config: SAEConfig,
    bias: Float[Tensor, "m"] | None = None,
) -> Float[Tensor, "n m"]:
    """left @ right, plus a bias, by the config's `precision`; for autograd."""
    if config.precision == "bfloat16":
        found = _Narrow.apply(left, right)
        return found if bias is None else found + bias
    return left @ right if bias is None else torch.addmm(bias, left, right)


class _Narrow(torch.autograd.Function):
    """A product of bfloat16 numbers, and gradients by such products: all sums in float32.

    On CUDA results are float32's; elsewhere torch rounds them to bfloat16.
    """

    @staticmethod
    def forward(ctx, left, right):
        left, right = left.bfloat16(), right.bfloat16()
        ctx.save_for_backward(left, right)
        return widened(left, right)

    @staticmethod
    def backward(ctx, grad):
        (left, right), grad = ctx.saved_tensors, grad.bfloat16()
        return widened(grad, right.T), widened(left.T, grad)


def widened(left: Float[Tensor, "n inner"], right: Float[Tensor, "inner m"]) -> Float[Tensor, "n m"]:
    """The product of bfloat16 numbers in float32."""
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


class _Sum(torch.autograd.Function):
    """The sum of all shards' parts: what comes after it is the same in all of them, and so is each part's gradient."""

    @staticmethod
    def forward(ctx, part, shards):
        ctx.mark_dirty(part)
        return shards.sum_(part)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _Common(torch.autograd.Function):
    """A tensor that all shards hold alike: what comes after it differs, so its gradient is the sum of all shards'."""

    @staticmethod
    def forward(ctx, tensor, shards):
        ctx.shards = shards
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad):
        return ctx.shards.sum_(grad.clone()), None
