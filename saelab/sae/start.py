"""Where training starts: weights drawn from the seed, or those of an SAE that exists; the optimiser that moves them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache.batches import Batches
from saelab.errors import UserError
from saelab.files import check_folder
from saelab.sae import rough, rules, sparse
from saelab.sae.archetypal import Hull
from saelab.sae.config import SAEConfig, TrainConfig
from saelab.sae.distributed import Group, World, draw_rows
from saelab.sae.model import SAE
from saelab.sae.rules.rule import Weights
from saelab.sae.select import widen


def check_given(data: Any, configs: Any, train: Any, folders: Any) -> None:
    """Raise UserError for what `fit` can't train on or by: no array, settings that are none, a file for a folder."""
    array = isinstance(data, Batches | Iterable) or hasattr(data, "ndim")
    if not array or isinstance(data, str | bytes | Path | Mapping):
        what, remedy = "expected an array [tokens, d_in], Batches, or chunks", "read a file first, as by numpy.load"
        raise UserError("data", type(data).__name__, what, remedy)
    wanted = [("config", config, SAEConfig) for config in configs] + [("train", train, TrainConfig)]
    for setting, given, kind in wanted:
        if not isinstance(given, kind):
            what = f"expected a saelab.sae.{kind.__name__}"
            raise UserError(setting, type(given).__name__, what, f"of settings: {kind.__name__}(**settings)")
    for folder in folders or ():
        check_folder("folder", Path(folder))


def measure(
    x: Float[Tensor, "batch d_in"], given_mean: Float[Tensor, "d_in"] | None, given_variance: float | None, data: Group
) -> tuple[Float[Tensor, "d_in"], Float[Tensor, ""]]:
    """Mean and total variance (summed over dimensions) in float32: the given ones, else those of the first batch.

    x: this process' share of the batch over `data`. Raises UserError for a mean of another width, and where nothing
    varies.
    """
    exact = widen(x)
    count, d_in = data.size * len(x), x.shape[1]
    first = data.sum_(exact.sum(0)) / count
    mean = first if given_mean is None else torch.as_tensor(given_mean, dtype=torch.float64)
    if mean.shape != (d_in,):
        raise UserError("mean", tuple(mean.shape), f"[{d_in}], the SAE's d_in", "use the cache's own")
    if given_variance is None:
        variance = data.sum_((exact - first).square().sum()) / count
    else:
        variance = torch.tensor(float(given_variance), dtype=torch.float64)
    if not variance > 0:
        raise UserError("activations", "constant", "at least two different tokens", "check the layer")
    return mean.float().to(x.device), variance.float().to(x.device)


def decoder_moves(config: SAEConfig) -> bool:
    """Whether the optimiser moves the decoder's rows themselves."""
    return config.decoder == "free" and config.frozen != "decoder"


def build_optimizer(
    config: SAEConfig, weights: Weights, hull: Hull | None, per_unit: float, graph: bool = False
) -> torch.optim.Optimizer:
    """Adam, or AdamW, with a `rate` for each group of parameters: encoder and decoder, biases, thresholds, the hull.

    `per_unit`: the activations' spread per dimension, in which biases are measured. `graph`: rates are tensors on the
    device, which a CUDA graph reads.
    """
    lr, device = config.learning_rate, weights["W_enc"].device
    free = ["W_enc", "W_dec"] if decoder_moves(config) else ["W_enc"]
    groups = [
        {"params": [weights[name] for name in free], "rate": lr, "weight_decay": config.weight_decay},
        {"params": [weights["b_enc"], weights["b_dec"]], "rate": lr * per_unit, "weight_decay": 0.0},
    ]
    if "threshold" in weights:  # has the size of a latent's value, which is that of a whole token
        whole = lr * per_unit * config.d_in**0.5
        groups.append({"params": [weights["threshold"]], "rate": whole, "weight_decay": 0.0})
    if hull is not None:
        groups.append({"params": hull.parameters(), "rate": lr, "weight_decay": 0.0})
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    if graph:
        groups = [{**group, "lr": torch.tensor(lr, device=device)} for group in groups]
    return kind(groups, lr=lr, fused=device.type in ("cpu", "cuda"), capturable=graph)


def draw(
    config: SAEConfig, x: Float[Tensor, "batch d_in"], mean: Float[Tensor, "d_in"], variance: Tensor, world: World
) -> tuple[Weights, Hull | None]:
    """Random decoder rows of length 1 (archetypal: among the tokens x), encoder rows along them, b_dec = mean.

    The encoder rows have length `encoder_length`, or less where reconstructions of x would be longer than x.
    """
    rule = rules.find(config.rule)
    generator = torch.Generator().manual_seed(config.seed)
    own, shards = world.rows(config.latents), world.latents
    rows = draw_rows(torch.randn, config.latents, config.d_in, own, generator).to(mean.device)
    hull = None
    if config.decoder == "archetypal":
        hull = Hull.start(config, world.data.gather(x) - mean, variance.sqrt(), generator, own)
        rows = hull.rows()
    W_dec = torch.nn.functional.normalize(rows, dim=1)
    centred = x - mean
    balance = _balance(rule.rebuild_first(centred, W_dec, config.k, shards), centred, world)
    weights = {
        "W_enc": W_dec * min(config.encoder_length, balance),
        "b_enc": torch.zeros(len(W_dec), device=mean.device),
        "W_dec": W_dec,
        "b_dec": mean.clone(),
    }
    if rule.threshold == "learned":
        found = rule.first_threshold(world.data.gather(centred), W_dec, config.k, variance.sqrt(), shards)
        weights["threshold"] = torch.full_like(weights["b_enc"], found)
    return weights, hull


def _balance(rebuilt: Float[Tensor, "batch d_in"] | None, centred: Float[Tensor, "batch d_in"], world: World) -> float:
    """The factor, at most 1, by which reconstructions become as long as the input; 1 where there are none.

    (Gao et al. 2025, appendix A.1, match the lengths, up and down.)
    """
    if rebuilt is None:
        return 1.0
    wanted, found = (float(world.data.sum_(widen(part).square().sum())) for part in (centred, rebuilt))
    return min(1.0, (wanted / found) ** 0.5) if found else 1.0


def take_over(
    sae: SAE, config: SAEConfig, x: Float[Tensor, "batch d_in"], spread: Tensor, world: World
) -> tuple[Weights, None]:
    """Copies of an SAE's weights, scaled so that decoder rows have length 1 and each latent adds what it added.

    Where decoder rows had other lengths, TopK ranks the latents by what they add from then on. A rule that learns a
    threshold takes the SAE's, or begins as usual where it has none.
    """
    rule = rules.find(config.rule)
    rows = world.rows(config.latents)
    own = {name: tensor if name == "b_dec" else tensor[rows] for name, tensor in sae.tensors().items()}
    tensors = {name: tensor.to(x.device, torch.float32).clone() for name, tensor in own.items()}
    length = torch.linalg.vector_norm(tensors["W_dec"], dim=1).clamp(min=1e-12)
    for name, tensor in tensors.items():
        if name != "b_dec":
            factor = 1 / length if name == "W_dec" else length
            tensor.mul_(factor.unsqueeze(1) if tensor.ndim == 2 else factor)
    threshold = tensors.pop("threshold", None)
    if rule.threshold == "learned":
        if threshold is None:
            centred = world.data.gather(x - tensors["b_dec"])
            found = rule.first_threshold(centred, tensors["W_enc"], config.k, spread, world.latents)
            threshold = torch.full_like(tensors["b_enc"], found)
        tensors["threshold"] = threshold
    return tensors, None


def check_pieces(config: SAEConfig, pieces: int, tokens: int = 0) -> None:
    """Raise UserError where a step can't go through a process' tokens (0: as many as will be) in equal pieces."""
    supports = rules.find(config.rule).supports
    if pieces > 1 and not ("accumulate" in supports or config.choose_by_piece):
        consent = ", or choose_by_piece=true, and each piece keeps k times its own tokens"
        remedy = "set it to 1" + (consent if "choose_by_piece" in supports else "")
        raise UserError("accumulate", pieces, f"needs {rules.name_supporting('accumulate')}", remedy)
    if tokens % pieces:
        what = f"has to divide the {tokens} tokens that a process takes a step"
        raise UserError("accumulate", pieces, what, "choose another")


def check_device(config: SAEConfig, device: str | torch.device, graph: bool = False, processes: int = 1) -> None:
    """Raise UserError for a screen, kernels or a graph that the device, or so many processes, can't have."""
    device = torch.device(device)
    if config.screen == "int8" and device.type != "cpu":
        raise UserError("screen", "int8", f"needs the CPU, not {device}", "use screen=auto")
    if config.screen == "float8" and not rough.has_float8(device):
        needs = f"needs a card that multiplies it (compute capability 9.0 or above), not {device}"
        raise UserError("screen", "float8", needs, "use screen=auto")
    if config.precision == "bfloat16" and not rough.has_fast_bfloat16(device):
        raise UserError("precision", "bfloat16", f"needs a device that multiplies it, not this {device}", "use float32")
    sparse.products(config.kernels, device)
    if graph and device.type != "cuda":
        raise UserError("graph", True, f"needs a CUDA device, not {device}", "set it to false")
    if graph and processes > 1:
        raise UserError("graph", True, f"needs one process, not {processes}", "set it to false")


def check_fits(sae: SAE, config: SAEConfig) -> None:
    """Raise UserError where training of this config can't start from the SAE."""
    if (sae.latents, sae.d_in) != (config.latents, config.d_in):
        expected = f"latents={config.latents}, d_in={config.d_in} as the config says"
        raise UserError("start", f"[{sae.latents}, {sae.d_in}]", expected, "set latents and d_in to the SAE's")
    if sae.meta.source.get("transcoder"):
        raise UserError("start", "a transcoder's encoder", "has no decoder for the layer it reads", "start from an SAE")
    if sae.meta.input_norm != "none":
        expected = "training takes activations as they are, this SAE normalises each token"
        raise UserError("start", f"input_norm={sae.meta.input_norm}", expected, "start from another SAE")
    if config.decoder != "free":
        raise UserError("start", f"decoder={config.decoder}", "an existing SAE has no hull", "use decoder=free")


def pull_back(rows: Float[Tensor, "latents d_in"], start: Float[Tensor, "latents d_in"], least: float) -> None:
    """Turn unit rows whose cosine with their start is below `least` back to it, by the shortest way: in place."""
    cosine = (rows * start).sum(1, keepdim=True)
    aside = torch.nn.functional.normalize(rows - cosine * start, dim=1)
    rows.copy_(torch.where(cosine < least, least * start + (1 - least**2) ** 0.5 * aside, rows))
