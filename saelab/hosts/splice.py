"""Edits at a layer: tokens replaced on their way through the model, one copy of the batch or many, with gradients.

Most of a pass lies before the layer and is the same for every edit, so many edits of a batch run through the rest of
the model as one larger batch. That is right only where the layer *cuts* the graph: where whatever follows depends on
the pictures through the layer's tokens alone. `cuts` finds that out by trying.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.errors import UserError
from saelab.hosts import layers as places
from saelab.hosts.shortcut import Outputs, Recorder, taken
from saelab.hosts.tokens import Choice, Form, choose, from_tokens, pick, to_tokens

if TYPE_CHECKING:
    from saelab.hosts.host import Host

Replace = Callable[[Float[Tensor, "images tokens d_in"]], Float[Tensor, "images tokens d_in"]]
_MISFITS = (RuntimeError, ValueError, IndexError, AssertionError)  # what a model raises for sizes that don't fit
SAME = 1e-4  # relative difference up to which two ways of computing logits agree


def splice(
    host: "Host", batch: Tensor, layer: str, replace: Replace, policy: str = "all", grad: bool = False, thin: int = 1
) -> Float[Tensor, "copies outputs"]:
    """The model's answer with the layer's kept tokens replaced by `replace(tokens)`.

    `replace` may return a multiple of the batch, picture after picture: the rest of the model then runs on all copies.
    `grad`: the answer carries a graph back to the tokens that `replace` was given, and parameters are left out of it.
    `thin`: the batch holds each picture so many times in a row, for models that count their input; only one of each
    goes up to the layer. Raises ValueError where `replace` returns tokens of another shape.
    """
    places.check(layer, host.model, host._probe)
    patches = host._patches(*batch.shape[-2:])

    def see(name: str, output: Tensor) -> Tensor:
        form = host._as_now(name, output)
        choice = choose(policy, name, form, host.prefix, patches)
        return _edit(output, form, choice, replace, grad)

    with places.tap(host.model, [layer], see), mode(host.model, grad), _thin(host.model, len(batch), thin):
        return host._answer(batch.clone() if grad and batch.is_inference() else batch)


def cuts(host: "Host", layer: str) -> bool:
    """Does everything after the layer depend on the pictures through its tokens alone?

    Tried once a layer, and again once the weights have changed: the tokens of two pictures, put in the place of another
    picture's, have to give the answers of the two. A layer inside a residual branch, whose skip goes round it, fails
    (or the sum of two batch sizes does).
    """
    host.look()
    return _how(host, layer) is not None


def _how(host: "Host", layer: str) -> str | None:
    """How more copies than pictures go on from a layer: `free`; `counted`, the model counts its input; None: not."""
    if layer not in host._cuts:
        generator = torch.Generator().manual_seed(1)
        pictures = torch.randn(3, 3, *host.transform.size, generator=generator)
        with torch.inference_mode():
            own, kept = host._answer(pictures[:2]), host.tokens(pictures[:2], [layer])[layer]
            host._cuts[layer] = None
            for how, batch in (("free", pictures[2:]), ("counted", pictures[2:].expand(2, -1, -1, -1))):
                try:
                    found = splice(host, batch, layer, lambda _: kept, thin=len(batch))
                except _MISFITS:  # sizes of two batches
                    continue
                if found.shape == own.shape and _agree(found, own):
                    host._cuts[layer] = how
                    break
    return host._cuts[layer]


def resume(
    host: "Host", tokens: Float[Tensor, "images tokens d_in"], layer: str, grad: bool = False
) -> Float[Tensor, "images outputs"]:
    """The model's answer to tokens that stand in the layer's place; at most one blank picture runs up to the layer.

    Raises UserError for a layer that does not cut the graph.
    """
    if not cuts(host, layer):
        remedy = "choose the output of a whole block, or edit real passes with run() or fan_out()"
        raise UserError("layer", layer, "lies inside a branch: what follows needs more than its tokens", remedy)
    before = _before(host, layer)
    with taken(before):
        return _go_on(host, layer, lambda _: tokens, len(tokens), grad, there=bool(before))


def _go_on(
    host: "Host", layer: str, replace: Replace, images: int, grad: bool = False, there: bool = False
) -> Float[Tensor, "images outputs"]:
    """The answer from a layer on, of so many images, behind a blank picture. `there`: what it gives is known."""
    count = images if _how(host, layer) == "counted" else 1
    blank = torch.zeros(1, 3, *host.transform.size).expand(count, -1, -1, -1)
    return splice(host, blank, layer, replace, grad=grad, thin=1 if there else count)


def _before(host: "Host", layer: str) -> Outputs:
    """What the modules before the layer give for a blank picture; {} where going on from there is not to be trusted.

    Tried once for each layer, device and dtype, and again for new weights (`Host.look`). Once the host has seen a
    picture of another size, no more: a model may keep the size for later.
    """
    key = (host.weights.digest, layer, str(host.device), str(host.dtype))
    if host.one_size and key not in host._before:
        host._before[key] = {}
        with suppress(Exception):  # whatever a model raises that the long way doesn't ask for
            host._before[key] = _try(host, layer)
    return host._before[key] if host.one_size else {}


def _try(host: "Host", layer: str) -> Outputs:
    """Record a pass, show the model other pictures, and hold passes of two sizes of batch against the long way."""
    pictures, recorder = torch.randn(5, 3, *host.transform.size, generator=torch.Generator().manual_seed(2)), Recorder()
    with torch.inference_mode():
        kept = host.tokens(pictures, [layer])[layer]

        def go_on(tokens: Tensor, there: bool = False) -> Tensor:
            return _go_on(host, layer, lambda _: tokens, len(tokens), there=there)

        def stop(_: Tensor) -> Tensor:
            recorder.stop()
            return kept[:2]

        with recorder.watching(host.model):
            _go_on(host, layer, stop, 2)
        for tokens in (kept[:2], kept):
            whole = go_on(tokens)
            host._answer(pictures[:3])
            with taken(recorder.found):
                if not torch.equal(go_on(tokens, there=True), whole):
                    return {}
    return recorder.found


def fan_out(
    host: "Host", batch: Tensor, layer: str, edits: Sequence[Replace], policy: str = "all"
) -> Float[Tensor, "images edits outputs"]:
    """The model's answers to every edit of every picture; each picture runs up to the layer once, if it can."""
    count, images = len(edits), len(batch)

    def copies(tokens: Tensor) -> Tensor:
        new = [_same_shape(edit(tokens.clone()), tokens) for edit in edits]
        return torch.stack(new, dim=1).flatten(0, 1)

    with torch.inference_mode():
        if cuts(host, layer):
            thin = count if _how(host, layer) == "counted" else 1
            answers = splice(host, batch.repeat_interleave(thin, dim=0), layer, copies, policy, thin=thin)
        else:  # the pictures are repeated instead
            repeated = batch.repeat_interleave(count, dim=0)
            answers = splice(host, repeated, layer, lambda tokens: copies(tokens[::count]), policy)
    return answers.unflatten(0, (images, count))


@contextmanager
def _thin(model: nn.Module, images: int, thin: int) -> Iterator[None]:
    """While inside, the first part of the model that sees the batch gets every `thin`-th picture of it."""
    waiting = [thin > 1]

    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not waiting[0] or not args or not isinstance(args[0], Tensor) or len(args[0]) != images:
            return None
        waiting[0] = False
        return (args[0][::thin], *args[1:])

    leaves = [module for module in model.modules() if not any(module.children())] if thin > 1 else []
    handles = [leaf.register_forward_pre_hook(hook) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _edit(output: Tensor, form: Form, choice: Choice, replace: Replace, grad: bool) -> Tensor:
    tokens = to_tokens(output, form).clone()  # what follows may work in place
    kept = pick(tokens, choice)
    if grad:
        kept = kept.clone() if kept.requires_grad else kept.detach().clone().requires_grad_()
    new = replace(kept)
    if new.shape[1:] != kept.shape[1:]:
        raise ValueError(f"replace() gave {tuple(new.shape)} for tokens {tuple(kept.shape)}")
    if choice.index is not None and len(new) % len(tokens):
        raise ValueError(f"replace() gave {len(new)} images for {len(tokens)}")
    if len(new) != len(tokens):
        tokens = _repeat(tokens, len(new), choice)
    index = slice(None) if choice.index is None else torch.tensor(choice.index, device=tokens.device)
    tokens[:, index] = new.to(tokens)
    like = output if len(new) == output.shape[form.batch] else _like(output, form, len(new))
    made = from_tokens(tokens, like, form)
    return made.contiguous() if output.is_contiguous() else made  # a model may flatten what it gave contiguous


def _repeat(tokens: Tensor, images: int, choice: Choice) -> Tensor:
    """Room for `images` copies; the tokens that a policy drops are those of each copy's own picture."""
    if choice.index is None:
        return tokens.new_empty(images, *tokens.shape[1:])
    return tokens.repeat_interleave(images // len(tokens), dim=0)


def _like(output: Tensor, form: Form, images: int) -> Tensor:
    """Stands for an output of another batch size: its dtype, device and layout."""
    sizes = [images if axis == form.batch else size for axis, size in enumerate(output.shape)]
    return output.new_empty(()).expand(sizes)


def _same_shape(new: Tensor, tokens: Tensor) -> Tensor:
    if new.shape != tokens.shape:
        raise ValueError(f"an edit gave {tuple(new.shape)} for tokens {tuple(tokens.shape)}")
    return new


def _agree(a: Tensor, b: Tensor) -> bool:
    """Up to rounding: SAME of the largest number in float32, more in half precision."""
    a, b, eps = a.float(), b.float(), torch.finfo(b.dtype).eps
    return bool((a - b).abs().max() <= max(SAME, 8 * eps) * b.abs().max().clamp(min=1e-12))


@contextmanager
def mode(model: nn.Module, grad: bool) -> Iterator[None]:
    """While inside: inference, or gradients without those of parameters."""
    if not grad:
        with torch.inference_mode():
            yield
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
