"""Host: the vision model that is looked into. Pictures in, tokens of named layers out."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from saelab.errors import UserError
from saelab.hosts import layers as places
from saelab.hosts import splice as edits
from saelab.hosts.heads import count_heads
from saelab.hosts.layers import Layer, Probe
from saelab.hosts.memory_format import find_format
from saelab.hosts.shortcut import Outputs
from saelab.hosts.splice import Replace
from saelab.hosts.tokens import Choice, Prefix, choose, first_tensor, pick, prefix_of, to_tokens
from saelab.hosts.transform import Transform
from saelab.hosts.usual import usual
from saelab.hosts.weights import Weights, training_part

_PROBED = 2  # pictures in the probing pass: more than one, so that the batch axis shows


class _Enough(Exception):
    """No error: it ends a forward pass whose rest nobody needs."""


class Host:
    """A vision model with its transform, its layers by name, and the tokens that they give.

    The model is put in evaluation mode and never trained; where somebody else trains it, `digest` follows its weights,
    and it is refused while a part of it is in training mode. Its device and dtype are those of its parameters; batches
    are moved to them.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Transform,
        name: str,
        prefix: Prefix | None = None,
        call: Callable[[nn.Module, Tensor], Any] | None = None,
    ) -> None:
        """`prefix`: tokens before the patches; None: from the model's own facts. `call(model, batch)`: the forward
        pass, if not `model(batch)`. A compiled or data-parallel model is looked into as what it wraps.
        """
        model = unwrap(model)
        self.model, self.transform, self.name = model.eval(), transform, name
        self.prefix = prefix_of(model) if prefix is None else prefix
        self._call = call or (lambda model, batch: model(batch))
        self._cuts: dict[str, str | None] = {}  # by layer, as far as tried; see saelab.hosts.splice
        self._before: dict[tuple[str, str, str, str], Outputs] = {}  # likewise, by weights, layer, device and dtype
        self.one_size = True  # have all pictures had the transform's size?
        self.weights = Weights(model)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights; of a model that moves or is cast as it is loaded, of those that were read."""
        before = self.weights.digest
        self._forget(before, self.weights.look_closely())
        return self.weights.digest

    def look(self) -> None:
        """Have the weights changed since they were last looked at? If so, forget what was found out with others."""
        before = self.weights.digest
        self._forget(before, self.weights.look())

    def _forget(self, before: str, changed: bool) -> None:
        if changed:
            self._cuts, self._before = {}, {key: kept for key, kept in self._before.items() if key[0] == before}

    @property
    def transform_spec(self) -> dict[str, Any]:
        """The transform as plain data, for recipes."""
        return self.transform.spec

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self._tensors(), torch.zeros(())).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.float32)

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides a layer's tokens for a picture: to be part of every recipe made from them."""
        facts = {"name": self.name, "weights": self.digest, "transform": self.transform_spec}
        return facts | {"dtype": str(self.dtype).removeprefix("torch.")}

    def layers(self, pattern: str = "**") -> list[Layer]:
        """The layers that give tokens, in the order of running; `in:**` lists inputs."""
        reasons = usual(self._modules, self._probe)
        found = []
        for name in self.resolve([pattern]):
            form = places.check(name, self.model, self._probe)
            module = self._modules[places.Site.parse(name).path]
            found.append(Layer(name, form.kind, form.shape, form.d_in, type(module).__name__, reasons.get(name, "")))
        return found

    def usual_layers(self) -> list[Layer]:
        """The layers that people usually look at: outputs in the order of running, then inputs."""
        return [layer for pattern in ("**", "in:**") for layer in self.layers(pattern) if layer.usual]

    def resolve(self, patterns: Sequence[str]) -> list[str]:
        """Layer names for names and patterns, without doubles. Raises UserError where one covers no layer."""
        names: list[str] = []
        for pattern in patterns:
            if "*" not in pattern:
                places.check(pattern, self.model, self._probe)
            covered = places.matches(pattern, self._names) if "*" in pattern else [pattern]
            if not covered:
                near = places.nearest(pattern.replace("*", ""), self._names)
                raise UserError("layer", pattern, "covers no layer", f"nearest: {', '.join(near)}")
            names += [name for name in covered if name not in names]
        return names

    def choice(self, layer: str, policy: str = "all") -> Choice:
        """Which tokens a policy keeps of a layer, for pictures of the transform's size. UserError if it can't."""
        form = places.check(layer, self.model, self._probe)
        return choose(policy, layer, form, self.prefix, self._patches(*self.transform.size))

    def d_in(self, layer: str) -> int:
        """Width of the layer's tokens."""
        return places.check(layer, self.model, self._probe).d_in

    def heads(self, layer: str) -> int:
        """How many attention heads' outputs the layer's tokens hold. Raises UserError where it holds none."""
        return count_heads(self._modules, layer, self.d_in(layer))

    def tokens(
        self,
        batch: Float[Tensor, "images 3 height width"],
        layers: Sequence[str],
        policy: str = "all",
        grad: bool = False,
    ) -> dict[str, Float[Tensor, "images tokens d_in"]]:
        """Tokens of several layers in one pass, in the model's dtype and on its device.

        The pass ends after the last layer asked for. The tensors are copies: an in-place activation that follows the
        layer does not change them. With `grad` they carry a graph back to the batch; parameters get no gradient.
        Raises UserError for an unknown layer or a policy that it can't give.
        """
        forms = {name: places.check(name, self.model, self._probe) for name in layers}
        patches = self._patches(*batch.shape[-2:])
        taken: dict[str, Tensor] = {}

        def take(name: str, output: Tensor) -> None:
            form = self._as_now(name, output)
            kept = pick(to_tokens(output, form), choose(policy, name, form, self.prefix, patches))
            taken[name] = kept.clone(memory_format=torch.contiguous_format)
            if len(taken) == len(forms):
                raise _Enough

        with places.tap(self.model, list(forms), take), edits.mode(self.model, grad), contextlib.suppress(_Enough):
            self._forward(batch)
        for name in forms:
            if name not in taken:
                raise UserError("layer", name, "did not run for this batch", "choose a layer that always runs")
        return {name: taken[name] for name in layers}

    @torch.inference_mode()
    def logits(self, batch: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images outputs"]:
        """The model's last answer: class logits where it classifies, else its pooled embedding."""
        return answer(self._forward(batch))

    def logits_with(
        self,
        batch: Float[Tensor, "images 3 height width"],
        layer: str,
        replace: Replace,
        policy: str = "all",
    ) -> Float[Tensor, "images outputs"]:
        """`logits` with the layer's tokens replaced by `replace(tokens)` on their way through the model.

        Only the tokens that `policy` keeps are replaced. For an `in:` layer, only that module sees the change.
        """
        return self.run(batch, layer, replace, policy)

    def run(
        self,
        batch: Float[Tensor, "images 3 height width"],
        layer: str,
        replace: Replace,
        policy: str = "all",
        grad: bool = False,
    ) -> Float[Tensor, "images outputs"]:
        """`logits_with`, with gradients if asked for.

        With `grad`, `replace` is given the graph's own tokens, so `torch.autograd.grad(logits[:, c].sum(), tokens)` is
        the gradient of an output with respect to them. Parameters get none and keep their `requires_grad`.
        """

        def same(tokens: Tensor) -> Tensor:
            new = replace(tokens)
            if new.shape != tokens.shape:
                raise ValueError(f"replace() gave {tuple(new.shape)} for tokens {tuple(tokens.shape)}")
            return new

        return edits.splice(self, batch, layer, same, policy, grad)

    def fan_out(
        self,
        batch: Float[Tensor, "images 3 height width"],
        layer: str,
        replaces: Sequence[Replace],
        policy: str = "all",
    ) -> Float[Tensor, "images edits outputs"]:
        """`logits_with` for many edits of the same pictures, which run up to the layer once where it cuts the graph."""
        return edits.fan_out(self, batch, layer, replaces, policy)

    def cuts(self, layer: str) -> bool:
        """Does whatever follows the layer depend on the pictures through its tokens alone? Tried once."""
        return edits.cuts(self, layer)

    def resume(
        self, tokens: Float[Tensor, "images tokens d_in"], layer: str, grad: bool = False
    ) -> Float[Tensor, "images outputs"]:
        """The logits of all the layer's tokens, as `tokens(batch, [layer])` gives them, without their pictures.

        Raises UserError for a layer that does not cut the graph.
        """
        return edits.resume(self, tokens, layer, grad)

    def load_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "images 3 height width"]:
        """Pictures through the transform, as one batch."""
        return torch.stack([self.transform(image) for image in images])

    @cached_property
    def _probe(self) -> Probe:
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(_PROBED, 3, *self.transform.size, generator=generator)
        outputs = []
        try:
            with torch.inference_mode():
                tried = self.memory_format  # found by passes of its own, before anybody looks into one
                found = places.probe(self.model, lambda: outputs.append(self._forward(batch)), _PROBED)
                if tried != torch.channels_last:  # else two passes have agreed already
                    outputs.append(self._forward(batch))
        except UserError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            shape = list(batch.shape)
            raise UserError(
                "host", self.name, f"fails on a batch {shape}: {why}", "set host.transform to its size"
            ) from error
        if not _repeats(outputs):
            what = "gives one batch another answer each time, although in evaluation mode"
            remedy = "take the randomness out of its forward pass (dropout, masks, noise), or use another model"
            raise UserError("host", self.name, what, remedy)
        return found

    @cached_property
    def _names(self) -> list[str]:
        return self._probe.names()

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules(remove_duplicate=False))

    def _refuse_training(self) -> None:
        part = training_part(self.model)
        if part is not None:
            what = f"is in training mode{f' ({part})' if part else ''}: answers would change, and batch norms with them"
            raise UserError("host", self.name, what, "call its eval() first")

    def _forward(self, batch: Tensor) -> Any:
        self._refuse_training()
        self.one_size &= tuple(batch.shape[-2:]) == tuple(self.transform.size)
        with _eager():
            return self._call(self.model, batch.to(self.device, self.dtype, memory_format=self.memory_format))

    @property
    def memory_format(self) -> torch.memory_format:
        """How pictures lie in memory on their way in: see `find_format`; as given but for float32 on the CPU.

        A host's first pass there follows two on random pictures that find it.
        """
        plain = self.device.type != "cpu" or self.dtype != torch.float32
        return torch.preserve_format if plain else self._format

    @cached_property
    def _format(self) -> torch.memory_format:
        self._refuse_training()

        def see(batch: Tensor) -> Tensor:
            with torch.inference_mode(), _eager():
                return answer(self._call(self.model, batch))

        return find_format(self.model, self.transform.size, see)

    def _answer(self, batch: Tensor) -> Tensor:
        return answer(self._forward(batch))

    def _as_now(self, name: str, output: Tensor) -> Any:
        """The layer's layout with this pass's sizes. UserError if the number of axes or d_in is another one."""
        form = places.check(name, self.model, self._probe)
        if output.ndim != len(form.shape) + 1 or output.shape[form.channels] != form.d_in:
            shape = tuple(output.shape)
            raise UserError(
                "layer", name, f"gave {shape} here and {form.shape} an image before", "give pictures one size"
            )
        return dataclasses.replace(form, shape=tuple(s for i, s in enumerate(output.shape) if i != form.batch))

    def _patches(self, height: int, width: int) -> tuple[int, int] | None:
        patch = self._probe.patch
        return None if patch is None else (height // patch[0], width // patch[1])

    def _tensors(self) -> Any:
        yield from self.model.parameters()
        yield from self.model.buffers()


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled modules run as they are written, for what is compiled calls no hooks.

    Nothing is compiled where no compiler was imported: asking it to stand aside would import it, in four seconds.
    """
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def _repeats(outputs: Sequence[Any]) -> bool:
    """Do a model's outputs for one batch agree, as far as they are finite numbers?"""
    if len(outputs) < 2 or first_tensor(outputs[0]) is None:
        return True
    one, two = (answer(output).float() for output in outputs)
    if one.shape != two.shape:
        return False
    finite = one.isfinite() & two.isfinite()
    return not finite.any() or edits._agree(one[finite], two[finite])


def answer(output: Any) -> Tensor:
    """The tensor that a model's output stands for: logits, image embedding, pooled vector, or the first tensor."""
    for field in ("logits", "image_embeds", "pooler_output"):
        value = getattr(output, field, None)
        if isinstance(value, Tensor):
            return value
    tensor = first_tensor(output)
    if tensor is None:
        raise UserError("host", type(output).__name__, "the model's output holds no tensor")
    return tensor


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and data parallel wrappers."""
    for attribute in ("_orig_mod", "module"):
        wrapper = "OptimizedModule" if attribute == "_orig_mod" else "Parallel"
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module) and wrapper in type(model).__name__:
            return unwrap(inner)
    return model
