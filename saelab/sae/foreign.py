"""How other packages' SAEs are read: one reader a format, from its config and tensors to the four weights.

Each folds its package's input convention into the weights, so that `encode(raw)` is right with nothing else known:

    pre = W x + b, with no centring         -> b_enc = b + W b_dec
    a scale on the input                    -> into W_enc, W_dec and b_dec
    values times the decoder's norms        -> into W_enc, b_enc and W_dec
    batch norm after the encoder (frozen)   -> into W_enc and b_enc
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import UserError
from saelab.sae.model import SAE, Meta

Config = dict[str, Any]
Tensors = dict[str, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]  # W_enc [latents, d_in], b_enc, W_dec, b_dec


def saelens(config: Config, tensors: Tensors) -> SAE:
    """cfg.json and sae_weights.safetensors, of training and for inference."""
    architecture = config.get("architecture", "standard")
    kinds = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "batchtopk": "jumprelu"}
    kinds |= {"matryoshka_batchtopk": "jumprelu"}
    if config.get("activation_fn_str", config.get("activation_fn")) == "topk":
        architecture = "topk"
    rule = _known(architecture, kinds, "SAELens architecture")
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k") or 0
    centred = config.get("apply_b_dec_to_input", True)
    W_enc, W_dec = tensors["W_enc"].T, tensors["W_dec"]
    b_enc, threshold = tensors["b_enc"], _saelens_threshold(tensors) if rule == "jumprelu" else None
    if config.get("rescale_acts_by_decoder_norm"):
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms[:, None], b_enc * norms, W_dec / norms[:, None]
    if "scaling_factor" in tensors and not torch.allclose(tensors["scaling_factor"], torch.ones(())):
        raise UserError("sae", "scaling_factor", "a finetuned SAELens scaling factor is not supported")
    norm = config.get("normalize_activations") or "none"
    scale = float(len(tensors["b_dec"])) ** 0.5 if norm == "constant_norm_rescale" else 1.0
    kinds_of_norm = {"none": "none", "expected_average_only_in": "none", "layer_norm": "layer"}
    input_norm = _known(norm, {**kinds_of_norm, "constant_norm_rescale": "unit"}, "normalize_activations")
    source = {"format": "SAELens", "architecture": architecture, "normalize_activations": norm}
    if norm == "expected_average_only_in":
        source["note"] = "expects activations already scaled to a mean norm of sqrt(d_in)"
    return _sae((W_enc, b_enc, W_dec, tensors["b_dec"]), rule, k, source, centred, threshold, scale, input_norm)


def _saelens_threshold(tensors: Tensors) -> Tensor:
    """JumpReLU's threshold; BatchTopK's single one, as its training checkpoints have it; the logarithm of old files."""
    if "threshold" in tensors:
        return tensors["threshold"]
    if "log_threshold" in tensors:
        return tensors["log_threshold"].exp()
    if "topk_threshold" in tensors:
        return _everywhere(tensors["topk_threshold"], len(tensors["b_enc"]))
    raise UserError("sae", "threshold", "this architecture needs one, the file has none", "save the SAE anew")


def sparsify(config: Config, tensors: Tensors) -> SAE:
    """cfg.json and sae.safetensors."""
    if config.get("transcode") or config.get("skip_connection"):
        raise UserError("sae", "transcode", "a transcoder maps one layer to another and has no reconstruction")
    if config.get("activation", "topk") != "topk":
        raise UserError("sae", config["activation"], "only sparsify's topk activation is supported")
    source = {"format": "sparsify"}
    parts = (tensors["encoder.weight"], tensors["encoder.bias"], tensors["W_dec"], tensors["b_dec"])
    return _sae(parts, "topk", config["k"], source)


def dictionary_learning(file: Path, trainer: Config, state: Tensors, k: int | None = None) -> SAE:
    """The class that config.json's `trainer` names; without one, the class that alone has such tensors."""
    name = trainer.get("dict_class") or _class_of(state, file)
    source = {"format": "dictionary_learning", "dict_class": name}
    k = int(state["k"]) if "k" in state else int(trainer.get("k") or k or 0)
    if name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        jump = name == "JumpReluAutoEncoder"
        centred = bool(trainer.get("apply_b_dec_to_input", False)) if jump else True
        threshold = _everywhere(state["threshold"], len(state["b_enc"]))
        return _sae(_four(state), "jumprelu" if jump else "batchtopk", k, source, centred, threshold)
    biases = {
        "AutoEncoder": "bias",
        "AutoEncoderNew": "decoder.bias",
        "AutoEncoderTopK": "b_dec",
        "BatchTopKSAE": "b_dec",
    }
    if name not in biases:
        raise UserError("dict_class", name, "can't be expressed as one SAE (gated, or not known)", "see docs/sae.md")
    parts = (state["encoder.weight"], state["encoder.bias"], state["decoder.weight"].T, state[biases[name]])
    if name == "BatchTopKSAE":
        return _sae(parts, "batchtopk", k, source, True, _everywhere(state["threshold"], len(parts[1])))
    if name == "AutoEncoderTopK":
        return _sae(parts, "topk", k, source)
    return _sae(parts, "relu", 0, source, name == "AutoEncoder")


def _class_of(state: Tensors, file: Path) -> str:
    """AutoEncoderTopK, since it has a threshold, and BatchTopKSAE have the same tensors: UserError."""
    if "gate_bias" in state or "r_mag" in state:
        return "GatedAutoEncoder"
    if "W_enc" in state:
        return "MatryoshkaBatchTopKSAE" if "group_sizes" in state else "JumpReluAutoEncoder"
    if "threshold" in state:
        told = "dictionary_learning's TopK and BatchTopK have the same tensors, and no config.json beside it says which"
        wanted = '{"trainer": {"dict_class": "AutoEncoderTopK"}} or "BatchTopKSAE"'
        raise UserError("sae", file, told, f"put its config.json there, or write one: {wanted}")
    for tensor, name in (("bias", "AutoEncoder"), ("decoder.bias", "AutoEncoderNew")):
        if tensor in state:
            return name
    return "AutoEncoderTopK"


def overcomplete(state: Tensors, k: int | None) -> SAE:
    """A state dict, which holds neither k nor the activation: `k` None is ReLU."""
    weight, bias = state.get("encoder.final_block.0.weight"), state.get("encoder.final_block.0.bias")
    if weight is None or bias is None or any("mlp_blocks" in n for n in state):
        raise UserError("sae", "encoder", "only overcomplete's linear encoder is supported")
    if "encoder.final_block.1.running_var" in state:  # its batch norm, as frozen for evaluation
        norm = {n: state[f"encoder.final_block.1.{n}"] for n in ("running_mean", "running_var", "weight", "bias")}
        gain = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        weight, bias = weight * gain[:, None], (bias - norm["running_mean"]) * gain + norm["bias"]
    rows = state["dictionary._weights"]
    rows = rows / rows.norm(dim=1, keepdim=True)  # its default normalisation
    if "dictionary.multiplier" in state:
        rows = rows * state["dictionary.multiplier"].exp()
    rule, source = ("topk" if k else "relu"), {"format": "overcomplete"}
    return _sae((weight, bias, rows, torch.zeros(rows.shape[1])), rule, k or 0, source, False)


def prisma(file: Path, config: Config, state: Tensors) -> SAE:
    """ViT-Prisma's weights, whose config.json says how they are applied."""
    if not config:
        told = "no config.json beside it says which activation these weights have"
        wanted = '{"activation_fn_str": "relu"}, or "topk" with "activation_fn_kwargs": {"k": 32}'
        raise UserError("sae", file, told, f"put it there, or write one: {wanted}")
    if "threshold" in state:
        raise UserError("sae", file, "has a threshold, which ViT-Prisma's SAEs don't", "see docs/sae.md")
    kwargs = config.get("activation_fn_kwargs") or {}
    rule = _known(config.get("activation_fn_str", "relu"), {"relu": "relu", "topk": "topk"}, "activation_fn_str")
    _known(config.get("architecture", "standard"), {"standard": "standard", "vanilla": "vanilla"}, "architecture")
    norm = str(config.get("normalize_activations") or "none")
    names = {"none": "none", "layer_norm": "layer", "False": "none", "constant_norm_rescale": "unit"}
    input_norm = _known(norm, names, "normalize_activations")
    source = {"format": "ViT-Prisma", "normalize_activations": norm}
    scale = float(len(state["b_dec"])) ** 0.5 if input_norm == "unit" else 1.0
    return _sae(_four(state), rule, int(kwargs.get("k") or 0), source, scale=scale, input_norm=input_norm)


def saev(header: Config, state: Tensors) -> SAE:
    """The first releases (no schema in the header) took b_dec off the input.

    BatchTopK chooses by token, and since schema 3 by a threshold, which the file then holds.
    """
    config = header.get("cfg", header)
    activation = config.get("activation") or {"cls": header.get("cls", "Relu"), "params": config}
    kind = activation["cls"] if activation["cls"] in ("TopK", "BatchTopK") else "Relu"
    k = int(activation["params"].get("top_k", 32)) if kind != "Relu" else 0
    source = {"format": "saev", "activation": kind}
    if "activation.threshold" in state:
        threshold = _everywhere(state["activation.threshold"], len(state["b_enc"]))
        return _sae(_four(state), "batchtopk", k, source, False, threshold)
    return _sae(_four(state), "relu" if kind == "Relu" else "topk", k, source, "schema" not in header)


def _sae(
    parts: Four,
    rule: str,
    k: int,
    source: dict[str, Any],
    centred: bool = True,
    threshold: Tensor | None = None,
    scale: float = 1.0,
    input_norm: str = "none",
) -> SAE:
    """Fold the conventions. `centred`: b_dec is taken off the input; `scale`: factor on the (normed) input."""
    W_enc, b_enc, W_dec, b_dec = (t.detach().float().contiguous() for t in parts)
    if not centred:
        b_enc = b_enc + W_enc @ b_dec
    if rule == "topk" and not 0 < k <= len(W_dec):
        raise UserError("k", k, f"1 to {len(W_dec)} for a TopK SAE", "give k=... : the file doesn't hold it")
    meta = Meta(rule, k, input_norm, source=source)
    threshold = None if threshold is None else threshold.detach().float()
    return SAE(W_enc * scale, b_enc, W_dec / scale, b_dec / scale, meta, threshold)


def _four(state: Tensors) -> Four:
    """The weights by their usual names, W_enc stored as [d_in, latents]."""
    return state["W_enc"].T, state["b_enc"], state["W_dec"], state["b_dec"]


def _known(value: str, names: dict[str, str], setting: str) -> str:
    if value not in names:
        raise UserError(setting, value, f"can't be expressed; known: {', '.join(names)}")
    return names[value]


def _everywhere(threshold: Tensor, latents: int) -> Tensor:
    return threshold.float().expand(latents).clone()
