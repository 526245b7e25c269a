"""The trainer: one full optimiser step on a batch, without a wait for the device.

A step is forward, backward, projection of the decoder's gradient, Adam, renormalising of the decoder and counters.
Weights stay in the units of the raw activations; since Adam's steps don't scale with the gradient, biases and
thresholds get the learning rate times the activations' spread per dimension, which is the same as training on
activations of unit spread.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import UserError
from saelab.sae import auxk, dense, objectives, rules, select
from saelab.sae.archetypal import Hull
from saelab.sae.config import SOFT_COSINE, SAEConfig
from saelab.sae.distributed import World
from saelab.sae.graph import Graph
from saelab.sae.model import SAE, Meta
from saelab.sae.parts import Holding
from saelab.sae.revive import resample
from saelab.sae.rules.rule import Weights
from saelab.sae.shards import Shard
from saelab.sae.start import (
    build_optimizer,
    check_device,
    check_fits,
    check_pieces,
    decoder_moves,
    draw,
    measure,
    pull_back,
    take_over,
)
from saelab.sae.watch import PRODUCTS, Watch

RECALL_EVERY = 1000  # steps between measurements of the screen
THRESHOLD_MEMORY = 0.999  # of batchtopk's running mean of the smallest kept value, at most
THRESHOLD_SHARE = 10  # ... which in shorter runs looks back over about a tenth of the steps so far


class Trainer:
    """Trains one SAE, batch by batch.

    `mean` [d_in] and `variance` (total: summed over units of the activations) come from the cache's header; where they
    are None, the first batch gives them. The weights are drawn from `config.seed` when both are known, or are those of
    `start`, an SAE of the same shape. A step goes through its batch in `accumulate` equal pieces, one after the other,
    and is one CUDA graph with `graph`. Raises UserError where training can't start from `start`, or a step be a graph.
    Eight parameters: the config is enough; the others have defaults and stand alone.
    """

    def __init__(
        self,
        config: SAEConfig,
        device: str | torch.device = "cpu",
        mean: Float[Tensor, "d_in"] | None = None,
        variance: float | None = None,
        start: SAE | None = None,
        world: World | None = None,
        accumulate: int = 1,
        graph: bool = False,
    ) -> None:
        if start is not None:
            check_fits(start, config)
        self.config, self.device, self.world = config, torch.device(device), world or World()
        check_device(config, self.device, graph, self.world.all.size)
        self.rule, self.accumulate = rules.find(config.rule), accumulate
        self.watch = Watch(config, self.device, self.world)
        self.recall: Tensor | None = None  # of the screen, where this step or the start measured it
        self.counts_silent = self.device.type == "cpu"  # elsewhere, a count waits for the device
        self.steps = 0
        self.graph = Graph() if graph else None
        self._given, self._from = (mean, variance), start
        self.weights: Weights = {}

    def start(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Draw the weights; `x` gives the mean and variance where they were not given, and archetypal's candidates."""
        mean, variance = measure(x, *self._given, self.world.data)
        if self._from is None:
            weights, hull = draw(self.config, x, mean, variance, self.world)
        else:
            weights, hull = take_over(self._from, self.config, x, variance.sqrt(), self.world)
        for tensor in weights.values():
            self.world.data.from_first(tensor)
        self.world.latents.from_first(weights["b_dec"])
        held = weights["W_dec"].clone() if self.config.frozen == "soft_decoder" else None
        self._lay_out(weights, hull, variance, held)
        self._look_at_screen(x - weights["b_dec"])

    @property
    def screen(self) -> str:
        """The product that chooses latents: float32 | bfloat16 | int8 | float8."""
        return self.watch.screen

    @property
    def screened(self) -> bool:
        """Whether a rough product chooses the candidates."""
        return self.screen != "float32"

    def _look_at_screen(self, centred: Tensor) -> None:
        before = self.screen
        parts = list(objectives.cut(centred, self.accumulate, self.config))
        self.recall = self.watch.look(self.weights, parts, self.steps)
        if self.graph is not None and self.screen != before:
            self.graph.forget()

    def _lay_out(self, weights: Weights, hull: Hull | None, variance: Tensor, held: Tensor | None) -> None:
        self.weights, self.hull, self.variance, self.held = weights, hull, variance, held
        self.silent = torch.zeros(len(weights["W_enc"]), dtype=torch.int64, device=self.device)  # tokens since
        self.threshold = torch.zeros((), device=self.device)  # batchtopk
        self.pace = torch.ones((), device=self.device)  # by which it moves towards a step's smallest value
        self._pre: Tensor | None = None
        written = ("W_enc", "W_dec") if isinstance(self.rule, rules.Selection) else ()
        sets = min(2, self.accumulate)  # the sum of the pieces so far, and the next piece's
        self._grads = [{name: torch.empty_like(weights[name]) for name in written} for _ in range(sets)]
        self.per_unit = float(variance.sqrt()) / self.config.d_in**0.5  # the activations' spread per dimension
        self.optimizer = build_optimizer(self.config, weights, hull, self.per_unit, self.graph is not None)
        if self.graph is not None:
            self.graph.forget()

    @torch.no_grad()
    def step(self, x: Float[Tensor, "batch d_in"], lr_factor: float = 1.0) -> dict[str, Tensor]:
        """One full optimiser step on raw activations (this process' share of the batch).

        Returns 0-d tensors on the device: loss, fvu, l0, silent (latents silent for `dead_after` tokens), auxk where it
        ran (0 where nothing was silent), and screen_recall where it was measured. Raises UserError where x has another
        width than `d_in`, and where it can't be taken in pieces.
        """
        if x.ndim != 2 or x.shape[1] != self.config.d_in:
            raise UserError("activations", tuple(x.shape), f"[batch, {self.config.d_in}]", "set d_in to the cache's")
        check_pieces(self.config, self.accumulate, len(x))
        x = x.to(self.device, torch.float32, non_blocking=self.device.type == "cuda")
        if not self.weights:
            self.start(x)
        elif self.screened and self.steps % RECALL_EVERY == 0:
            self._look_at_screen(x - self.weights["b_dec"])
        self._set_pace(lr_factor)
        if self.graph is None or self._resamples:
            found = self._update(x)
        else:
            found = self.graph.step(self._update, x)
        self.steps += 1
        measured = {} if self.recall is None else {"screen_recall": self.recall}
        self.recall = None
        return {**found, **measured}

    def _set_pace(self, lr_factor: float) -> None:
        """What depends on the step's number: rates, and how much of a batch's smallest value the threshold takes."""
        self.pace.fill_(1 - min(THRESHOLD_MEMORY, self.steps / (self.steps + THRESHOLD_SHARE)))
        for group in self.optimizer.param_groups:
            rate = group["rate"] * lr_factor
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    def _update(self, x: Tensor) -> dict[str, Tensor]:
        """The step on the device; in it nothing of the host changes from step to step but whether it resamples."""
        tokens = len(x) * self.world.data.size
        found = self._gradients(x, tokens)
        for tensor in (*found.grads.values(), *found.metrics.values()):
            self.world.data.sum_(tensor)
        self.world.latents.from_first(found.grads["b_dec"])  # all shards hold it: no rounding may part them
        fired = self.world.data.any(found.fired)
        if found.threshold is not None:
            self._follow(self.world.all.gather(found.threshold).view(self.world.all.size, -1).amin(0))
        if self.config.frozen != "all":
            self._apply(found.grads)
            self._revive()
        self.silent.add_(tokens).masked_fill_(fired, 0)
        silent = self.world.latents.sum_((self.silent >= self.config.dead_after).sum())
        return {**found.metrics, "silent": silent}

    def _revive(self) -> None:
        if "revive" in self.rule.supports and self.config.revive:
            columns, silent = auxk.find_silent(self.silent, self.config, self.counts_silent)
            if len(columns):
                auxk.revive(self.weights, columns, silent, self.config.revive)

    def _gradients(self, x: Tensor, tokens: int) -> objectives.Gradients:
        if isinstance(self.rule, rules.Gate):
            return self._by_autograd(x, tokens)
        weights, pieces = self.weights, self.accumulate
        centred = x - weights["b_dec"]
        found, errors = None, []
        for part in objectives.cut(centred, pieces, self.config):
            pre, out = self._multiply(part), self._grads[found is not None]
            more, error = objectives.sparse_gradients(
                weights, part, pre, self.watch.chosen, self.variance, tokens, out, self.world
            )
            found = more if found is None else found.add(more)
            errors.append(error)
        assert found is not None
        error, pre = objectives.join(errors, self.config), pre if pieces == 1 else None
        columns, silent = auxk.find_silent(self.silent, self.config, self.counts_silent)
        if self.config.auxk_weight and sum(auxk.silent_of_shards(columns, silent, self.world.latents)):
            given = (weights, centred, pre, error, columns, silent, self.config, self.world, pieces)
            grads, loss = auxk.gradients(*given)
            for name in ("W_enc", "b_enc", "W_dec"):
                found.grads[name].index_add_(0, columns, grads[name])
            found.grads["b_dec"] += grads["b_dec"]
            found.metrics["auxk"] = loss if silent is None else loss * self.world.latents.any(silent.any())
        return found

    def _multiply(self, centred: Tensor) -> Tensor | None:
        """All pre-activations of these tokens, in a kept buffer; None where they are too many or a screen chooses."""
        chunks = "screen" in self.rule.supports and len(centred) > select.rows_at_once(len(self.weights["W_enc"]))
        if self.screened or chunks:
            return None
        if self._pre is None or len(self._pre) != len(centred):
            self._pre = centred.new_empty(len(centred), len(self.weights["W_enc"]))
        return torch.addmm(self.weights["b_enc"], centred, self.weights["W_enc"].T, out=self._pre)

    def _by_autograd(self, x: Tensor, tokens: int) -> objectives.Gradients:
        given = (self.weights, x, self.config, self.variance, tokens, self.world, self.accumulate)
        found, error = dense.dense_gradients(*given)
        if self._resamples:
            self._resample(x, error, found.grads)
        return found

    @property
    def _resamples(self) -> bool:
        """Whether silent latents are resampled at this step."""
        every = self.config.resample_every
        return bool(every and self.steps and self.steps % every == 0)

    def _resample(self, x: Tensor, error: Tensor, grads: Weights) -> None:
        silent = self.silent >= self.config.dead_after
        adam = {n: [self.optimizer.state[t][m] for m in ("exp_avg", "exp_avg_sq")] for n, t in self.weights.items()}
        resample(self.weights, adam, silent, x, error, self.config.seed * 1_000_003 + self.steps, self.world)
        for name in ("W_enc", "W_dec", "b_enc"):
            grads[name][silent] = 0
        self.silent[silent] = 0

    def _follow(self, smallest: Float[Tensor, "pieces"]) -> None:
        """Move batchtopk's inference threshold towards this batch's smallest kept value: the mean of its pieces'."""
        says = ~smallest.isinf()  # what keeps nothing says nothing
        mean = torch.where(says, smallest, 0).sum() / says.sum()
        self.threshold.lerp_(torch.where(says.any(), mean, self.threshold), self.pace)

    def _apply(self, grads: Weights) -> None:
        if self.config.frozen == "decoder":
            grads = {name: gradient for name, gradient in grads.items() if name != "W_dec"}
        if self.config.clip:
            squares = {name: gradient.square().sum() for name, gradient in grads.items()}
            for name in squares:
                if name != "b_dec":  # which is the same in all shards
                    self.world.latents.sum_(squares[name])
            norm = torch.stack(list(squares.values())).sum().sqrt()
            shrink = (self.config.clip / norm.clamp(min=1e-30)).clamp(max=1.0)
            for gradient in grads.values():
                gradient.mul_(shrink)
        for name, gradient in grads.items():
            self.weights[name].grad = gradient
        if self.hull is not None:
            self.hull.backward(grads["W_dec"])
        self.optimizer.step()
        if self.config.frozen != "decoder":
            self._project()

    def _project(self) -> None:
        """Bring the decoder's rows back to where they may be: length 1, in archetypal's hull, near a soft start."""
        W_dec = self.weights["W_dec"]
        if self.hull is not None:
            self.hull.project()
            W_dec.copy_(self.hull.rows())
        W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True).clamp(min=1e-12))
        if self.held is not None:
            pull_back(W_dec, self.held, SOFT_COSINE)

    @property
    def sae(self) -> SAE:
        """The SAE as it stands (the same tensors, not copies); this process' shard of it, where there are several."""
        config = self.config
        threshold = self.weights.get("threshold")
        if self.rule.threshold == "followed" and self.steps:
            threshold = self.threshold.expand(len(self.weights["W_enc"]))
        meta = Meta(config.rule, config.k if self.rule.has_k else 0, prefixes=config.prefix_sizes)
        named = {name: self.weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if self.world.latents.size > 1:
            return Shard(named, meta, threshold, self.world.latents)
        return SAE(**named, meta=meta, threshold=threshold)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, for a checkpoint (the same tensors, not copies)."""
        state = {f"weights.{name}": tensor for name, tensor in self.weights.items()}
        state |= {f"hull.{name}": tensor for name, tensor in (self.hull.tensors() if self.hull else {}).items()}
        for i, parameter in enumerate(self._parameters()):
            state |= {f"adam.{i}.{name}": value for name, value in self.optimizer.state[parameter].items()}
        state |= {} if self.held is None else {"held": self.held}
        state |= {"silent": self.silent, "threshold": self.threshold, "variance": self.variance}
        return {**state, "steps": torch.tensor(self.steps), "screened": torch.tensor(PRODUCTS.index(self.screen))}

    @property
    def holding(self) -> Holding:
        """What of the whole trainer's state this process holds."""
        place = 2 + decoder_moves(self.config)  # of b_dec among the optimiser's parameters
        moments = (f"adam.{place}.{name}" for name in ("exp_avg", "exp_avg_sq"))
        shared = frozenset({"weights.b_dec", "hull.candidates", *moments})
        return Holding(self.config.latents, shared, self.world, self.device)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Become the trainer that `state` was taken from."""
        state = {name: tensor.clone() for name, tensor in state.items()}
        hull = _under("hull.", state, self.device)
        delta = self.config.delta * state["variance"].sqrt().to(self.device)
        variance = state["variance"].to(self.device)
        held = state["held"].to(self.device) if "held" in state else None
        weights = _under("weights.", state, self.device)
        self._lay_out(weights, Hull(**hull, delta=delta) if hull else None, variance, held)
        self.silent.copy_(state["silent"])
        self.threshold.copy_(state["threshold"])
        for i, parameter in enumerate(self._parameters()):
            self.optimizer.state[parameter] = _under(f"adam.{i}.", state, parameter.device)
        self.steps = int(state["steps"])
        if "screened" in state:  # older checkpoints don't say, or whether bfloat16's screen was used
            self.watch.screen = PRODUCTS[int(state["screened"])]

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _under(prefix: str, state: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t.to(device) for name, t in state.items() if name.startswith(prefix)}
