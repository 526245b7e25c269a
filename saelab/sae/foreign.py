"""How other packages' SAEs are read: one reader a format, from its settings and tensors to the four weights.

Each takes what it knows (`Source`), says how the package applies it (`Weights`), and `build` folds that into weights
with which `encode(raw)` is right with nothing else known:

    pre = W x + b, with no centring         -> b_enc = b + W b_dec
    a scale on the input                    -> into W_enc, W_dec and b_dec
    values times the decoder's norms        -> into W_enc, b_enc and W_dec
    batch norm after the encoder (frozen)   -> into W_enc and b_enc
    the k largest by absolute value         -> twice the latents, of one sign each
"""

from typing import Any

import torch
from torch import Tensor

from saelab.errors import UserError
from saelab.sae import training_settings as training
from saelab.sae.model import SAE
from saelab.sae.source import Source, Weights, build

Config = dict[str, Any]
Tensors = dict[str, Tensor]

_NORMS = {
    "none": "none",
    None: "none",
    False: "none",
    "False": "none",
    "layer_norm": "layer",
    "constant_norm_rescale": "unit",
    "expected_average_only_in": "mean",
}
# What a cfg.json says at the least, for weights that their owner writes one for.
SPARSIFY = '{"k": 32}'
SAELENS = (
    '{"architecture": "standard"} for ReLU, {"architecture": "topk", "k": 32}, or {"architecture": "jumprelu"}, '
    'with "apply_b_dec_to_input": false where b_dec is not subtracted from the input'
)


def saelens(source: Source, scaler: Config | None = None) -> SAE:
    """cfg.json and sae_weights.safetensors, of training or for inference; `scaler`: its activation_scaler.json."""
    kinds = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "batchtopk": "jumprelu"}
    kinds |= {"matryoshka_batchtopk": "jumprelu", "transcoder": "relu", "skip_transcoder": "relu"}
    kinds |= {"jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu"}
    architecture = source.config.get("architecture", "standard")
    rule = source.choice("architecture", kinds, "standard")
    if _activation(source, ("activation_fn_str", "activation_fn")) == "topk":
        if architecture not in ("standard", "topk"):
            raise source.refuse("activation_fn=topk", f"contradicts the architecture {architecture}")
        architecture, rule = "topk", "topk"
    kwargs = _kwargs(source)
    k = source.k(source.count("k", whole="batchtopk" not in architecture), kwargs)
    transcoder = "transcoder" in architecture
    W_enc, b_enc, W_dec = source.take("W_enc").T, source.take("b_enc"), source.take("W_dec")
    weights = Weights(W_enc, b_enc, W_dec, source.take("b_dec"), transcoder=transcoder)
    weights.centred = source.setting("apply_b_dec_to_input", True) not in (False, 0) and not transcoder
    if rule == "jumprelu":
        weights.threshold = _saelens_threshold(source)
    if "skip_transcoder" in architecture:
        source.take("W_skip")  # a part of the output alone
    if source.switch("rescale_acts_by_decoder_norm"):
        norms = W_dec.norm(dim=1).clamp(min=1e-8)
        weights.W_enc, weights.b_enc, weights.W_dec = W_enc * norms[:, None], b_enc * norms, W_dec / norms[:, None]
    if bool((source.tensors.pop("scaling_factor", torch.ones(())) != 1).any()):
        raise source.refuse("scaling_factor", "of a finetuned SAE is not supported")
    source.pass_over(["finetuning_scaling_factor"])  # all ones, or refused above
    source.choice("reshape_activations", {"none": "none", None: "none", "hook_z": "hook_z"}, "none")
    widths = source.counts("matryoshka_widths")
    weights.prefixes = tuple(dict.fromkeys([*widths, len(W_dec)])) if widths else ()
    norm = source.config.get("normalize_activations") or "none"
    weights.input_norm, weights.scale = _saelens_norm(source, scaler or {}, W_enc.shape[1])
    source.pass_over(training.SAELENS)
    return build(source, weights, rule, k, architecture=architecture, normalize_activations=norm)


def _saelens_norm(source: Source, scaler: Config, d_in: int) -> tuple[str, float]:
    """The input norm, and the factor on the (normed) input that goes with it."""
    kind = source.choice("normalize_activations", {**_NORMS, True: "mean"}, "none")
    factor, given = scaler.get("scaling_factor"), source.options.scale
    for value in (factor, given):
        usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
        if value is not None and not usable:
            raise source.refuse(f"scale {value!r}", "is no factor above 0", "look into activation_scaler.json")
    if kind != "mean":
        if factor not in (None, 1) or given not in (None, 1):
            remedy = "set normalize_activations to expected_average_only_in, or delete activation_scaler.json"
            raise source.refuse(f"a scale of {factor or given:g}", "contradicts normalize_activations", remedy)
        return kind, float(d_in) ** 0.5 if kind == "unit" else 1.0
    if factor is None and given is None:
        remedy = "put its activation_scaler.json there, or load it with scale=... (1 if your activations are scaled)"
        raise source.refuse("expected_average_only_in", "needs the scale of the input in training", remedy)
    if factor is not None and given is not None and abs(factor - given) > 1e-6 * factor:
        raise UserError("scale", given, f"{source.file.parent} says {factor:g}", "leave scale out")
    known = factor if given is None else given
    assert known is not None
    return "none", float(known)


def _saelens_threshold(source: Source) -> Tensor:
    """JumpReLU's threshold; BatchTopK's single one, as its training checkpoints have it; the logarithm of old files."""
    if "log_threshold" in source.tensors:
        return source.take("log_threshold").exp()
    return source.take("topk_threshold" if "topk_threshold" in source.tensors else "threshold")


def _activation(source: Source, names: tuple[str, ...]) -> str:
    found = {source.choice(name, {"relu": "relu", "topk": "topk"}) for name in names if source.config.get(name)}
    source.pass_over(names)
    if len(found) > 1:
        raise source.refuse("activation_fn", f"is {' and '.join(sorted(found))}")
    return found.pop() if found else "relu"


def _kwargs(source: Source) -> float | None:
    """k out of `activation_fn_kwargs`, where nothing else may stand."""
    kwargs = source.setting("activation_fn_kwargs") or {}
    if not isinstance(kwargs, dict) or set(kwargs) - {"k"}:
        raise source.refuse(f"activation_fn_kwargs={kwargs!r}", "can't be expressed; known: k")
    return Source(source.file, source.format, {}, kwargs).count("k")


def sparsify(source: Source) -> SAE:
    """cfg.json and sae.safetensors; `signed` ones and transcoders too."""
    transcoder = source.switch("transcode")
    skips = source.switch("skip_connection")
    source.choice("activation", {"topk": "topk"}, "topk")
    signed = source.switch("signed")
    weights = Weights(
        source.take("encoder.weight"),
        source.take("encoder.bias"),
        source.take("W_dec"),
        source.take("b_dec"),
        centred=not transcoder,
        transcoder=transcoder or skips,
        signed=signed,
    )
    if skips:
        weights.centre = None if transcoder else weights.b_dec
        source.take("W_skip")
    latents = source.config.get("num_latents")
    source.is_size("num_latents", len(weights.W_enc))
    source.pass_over(["normalize_decoder", "multi_topk", "lookup_max_order", "gram_table_hash"])
    factor, d_in = source.count("expansion_factor"), weights.W_enc.shape[-1]
    if factor and not latents and factor * d_in != len(weights.W_enc):
        said = f"expansion_factor={factor:g}"
        raise source.refuse(said, f"contradicts {len(weights.W_enc)} latents of a d_in of {d_in}")
    return build(source, weights, "topk", source.k(source.count("k")))


def dictionary_learning(source: Source) -> SAE:
    """The class that config.json's `trainer` names; without one, the class that alone has such tensors."""
    name = source.setting("dict_class") or _class_of(source)
    state = source.tensors
    held = source.number("k") if "k" in state else None
    trained = source.count("k")
    k = source.k(held if held is not None else trained)
    wide = name == "JumpReluAutoEncoder" or name == "MatryoshkaBatchTopKSAE"
    biases = {
        "AutoEncoder": "bias",
        "AutoEncoderNew": "decoder.bias",
        "AutoEncoderTopK": "b_dec",
        "BatchTopKSAE": "b_dec",
    }
    if not isinstance(name, str) or (not wide and name not in biases):
        raise source.refuse(f"dict_class={name!r}", "can't be expressed as one SAE (gated, or not known)")
    if wide:
        weights = _four(source)
    else:
        linear = (source.take("encoder.weight"), source.take("encoder.bias"), source.take("decoder.weight").T)
        weights = Weights(*linear, source.take(biases[name]))
    rules = {
        "AutoEncoder": "relu",
        "AutoEncoderNew": "relu",
        "AutoEncoderTopK": "topk",
        "JumpReluAutoEncoder": "jumprelu",
    }
    rule = rules.get(name, "batchtopk")
    if name == "AutoEncoderNew":
        weights.centred = False
    if name == "JumpReluAutoEncoder":
        weights.centred = source.switch("apply_b_dec_to_input")
    if name == "AutoEncoderTopK":
        state.pop("threshold", None)  # its encode uses it only where it is asked to
    elif rule != "relu":
        weights.threshold = source.take("threshold")
    if "group_sizes" in state and name == "MatryoshkaBatchTopKSAE":
        weights.prefixes = tuple(source.take("group_sizes").cumsum(0).tolist())
    source.is_size("activation_dim", weights.W_enc.shape[1])
    source.is_size("dict_size", len(weights.W_enc))
    source.pass_over(training.DICTIONARY)
    return build(source, weights, rule, k if rule != "relu" else 0, dict_class=name)


def _class_of(source: Source) -> str:
    """AutoEncoderTopK, since it has a threshold, and BatchTopKSAE have the same tensors: UserError."""
    state = source.tensors
    if "gate_bias" in state or "r_mag" in state:
        return "GatedAutoEncoder"
    if "W_enc" in state:
        return "MatryoshkaBatchTopKSAE" if "group_sizes" in state else "JumpReluAutoEncoder"
    if "threshold" in state:
        why = "dictionary_learning's TopK and BatchTopK have the same tensors, and no config.json beside it says which"
        wanted = '{"trainer": {"dict_class": "AutoEncoderTopK"}} or "BatchTopKSAE"'
        raise UserError("sae", source.file, why, f"put its config.json there, or write one: {wanted}")
    for tensor, name in (("bias", "AutoEncoder"), ("decoder.bias", "AutoEncoderNew")):
        if tensor in state:
            return name
    return "AutoEncoderTopK"


def overcomplete(source: Source) -> SAE:
    """A state dict, which holds neither k nor the activation: the caller's k says both (0: ReLU)."""
    k, state = source.options.k, source.tensors
    if "encoder.final_block.0.weight" not in state or any("mlp_blocks" in n for n in state):
        raise source.refuse("encoder", "is not overcomplete's linear one, which alone is supported")
    if k is None:
        why = "overcomplete's files hold neither the activation nor k"
        raise UserError("k", None, f"{source.file}: {why}", "load it with k=... for a TopKSAE, k=0 for a plain SAE")
    weight, bias = source.take("encoder.final_block.0.weight"), source.take("encoder.final_block.0.bias")
    if "encoder.final_block.1.running_var" in state:  # its batch norm, as frozen for evaluation
        names = ("running_mean", "running_var", "weight", "bias")
        norm = {n: source.take(f"encoder.final_block.1.{n}") for n in names}
        state.pop("encoder.final_block.1.num_batches_tracked", None)
        gain = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        weight, bias = weight * gain[:, None], (bias - norm["running_mean"]) * gain + norm["bias"]
    rows = source.take("dictionary._weights")
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)  # its default normalisation
    if "dictionary.multiplier" in state:
        rows = rows * source.take("dictionary.multiplier").exp()
    weights = Weights(weight, bias, rows, torch.zeros(rows.shape[-1]), centred=False)
    return build(source, weights, "topk" if k else "relu", k)


def prisma(source: Source) -> SAE:
    """ViT-Prisma's weights, whose config.json says how they are applied; its transcoders too."""
    if not source.config:
        why = "no config.json beside it says which activation these weights have"
        wanted = '{"activation_fn_str": "relu"}, or "topk" with "activation_fn_kwargs": {"k": 32}'
        raise UserError("sae", source.file, why, f"put it there, or write one: {wanted}")
    if "threshold" in source.tensors:
        raise source.refuse("the file", "has a threshold, which ViT-Prisma's SAEs don't")
    rule = _activation(source, ("activation_fn_str",))
    source.choice("architecture", {"standard": "standard", "vanilla": "vanilla"}, "standard")
    k = source.k(_kwargs(source))
    transcoder = source.switch("is_transcoder") or "b_dec_out" in source.tensors
    norm = source.config.get("normalize_activations") or "none"
    input_norm = source.choice(
        "normalize_activations", {n: kind for n, kind in _NORMS.items() if kind != "mean"}, "none"
    )
    scale = float(source.tensors["b_dec"].numel()) ** 0.5 if input_norm == "unit" and "b_dec" in source.tensors else 1.0
    weights = _four(source)
    weights.scale, weights.input_norm, weights.transcoder = scale, input_norm, transcoder
    if transcoder:
        weights.centre, weights.b_dec = weights.b_dec, source.take("b_dec_out")
    else:
        source.pass_over(["d_out"])
    if source.switch("transcoder_with_skip_connection") and transcoder:
        source.take("W_skip")
    source.pass_over(training.PRISMA)
    return build(source, weights, rule, k, normalize_activations=norm)


def saev(source: Source) -> SAE:
    """A header of JSON, then the state dict. The first releases (no schema in the header) took b_dec off the input.

    BatchTopK chooses by token, and since schema 3 by a threshold, which the file then holds.
    """
    schema = source.setting("schema")
    if isinstance(schema, bool) or schema not in (None, 1, 2, 3, 4, 5):
        raise source.refuse(f"schema {schema!r}", "is unknown; known: none, 1 to 5", "update saelab")
    source.pass_over(["commit", "lib"])
    named, config = source.setting("cls"), source.setting("cfg")
    if isinstance(config, dict):
        source.config |= config
    elif schema is not None:
        raise source.refuse("the header", "has no cfg")
    activation = source.setting("activation")
    if activation is None:
        plain = named in ("Relu", "TopK", "BatchTopK")
        activation = {"cls": named if plain else "Relu", "params": {"top_k": source.setting("top_k")}}
    if not isinstance(activation, dict) or not isinstance(activation.get("params", {}), dict):
        raise source.refuse(f"activation={activation!r}", "is no activation of saev")
    part = Source(source.file, source.format, {}, {**activation.get("params", {}), "cls": activation.get("cls")})
    kind = part.choice("cls", {n: n for n in ("Relu", "TopK", "BatchTopK")})
    k = source.k(part.count("top_k")) if kind != "Relu" else 0
    part.pass_over(["sparsity", "aux", "momentum", "key", "kind", "top_k"])
    part.finish()
    weights = _four(source)
    source.is_size("d_vit", weights.W_enc.shape[1])
    source.is_size("d_model", weights.W_enc.shape[1])
    source.pass_over(training.SAEV)
    if "activation.threshold" in source.tensors:
        weights.threshold, weights.centred = source.take("activation.threshold"), False
        return build(source, weights, "batchtopk", k, activation=kind)
    weights.centred = schema is None
    return build(source, weights, "relu" if kind == "Relu" else "topk", k, activation=kind)


def _four(source: Source) -> Weights:
    """The weights by their usual names, W_enc stored as [d_in, latents]."""
    return Weights(source.take("W_enc").T, source.take("b_enc"), source.take("W_dec"), source.take("b_dec"))
