"""SAEs of other packages, in and out.

`load(path)` recognises the format by its files and folds the package's input convention into the four weights, so that
`encode(raw)` is right with nothing else known:

    pre = W x + b, with no centring         -> b_enc = b + W b_dec
    a scale on the input                    -> into W_enc, W_dec and b_dec
    values times the decoder's norms        -> into W_enc, b_enc and W_dec
    batch norm after the encoder (frozen)   -> into W_enc and b_enc

Nothing is unpickled but plain tensors (torch.load with weights_only=True).
"""

import io
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelab.artifacts import atomic, read_json, write_json
from saelab.errors import UserError
from saelab.sae.model import SAE, Meta

Config = dict[str, Any]
Tensors = dict[str, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]  # W_enc [latents, d_in], b_enc, W_dec, b_dec


def load(path: Path | str, k: int | None = None) -> SAE:
    """An SAE from a local file or folder, or from the Hugging Face hub: "org/name" or "org/name/folder".

    Reads saelab, SAELens, dictionary_learning, sparsify, overcomplete, ViT-Prisma and saev. `k` is needed only where
    the file doesn't hold it (an overcomplete state dict). Raises UserError for a format that is not known or an
    architecture that can't be expressed (gated, transcoders), and for files that are nothing but pickle.
    """
    place = Path(path)
    place = place if place.exists() else _from_hub(str(path))
    folder = place if place.is_dir() else place.parent
    first = folder / "cfg.json"
    if (place / "sae_weights.safetensors").is_file():
        return _saelens(read_json(first), load_file(place / "sae_weights.safetensors"))
    if (place / "sae.safetensors").is_file() and first.is_file():
        return _sparsify(read_json(first), load_file(place / "sae.safetensors"))
    if place.suffix == ".safetensors" or (place / "sae.safetensors").is_file():
        return SAE.load(place)
    if place.is_dir():
        files = [place / name for name in ("ae.pt", "weights.pt", "sae.pt") if (place / name).is_file()]
        if not files:
            raise UserError("sae", place, "no format that is known", "see docs/sae.md for those that are")
        place = files[0]
    with place.open("rb") as opened:
        if opened.read(1) == b"{":
            return _saev(place)
    state = _tensors(place)
    config: Config = next((read_json(folder / n) for n in ("config.json", "cfg.json") if (folder / n).is_file()), {})
    if "dictionary._weights" in state:
        return _overcomplete(state, k)
    if "trainer" in config or "encoder.weight" in state:
        return _dictionary_learning(config.get("trainer", {}), state)
    if {"W_enc", "W_dec"} <= set(state):
        return _prisma(config, state)
    raise UserError("sae", place, f"tensors of a known format, found {sorted(state)[:6]}", "see docs/sae.md")


def save_saelens(sae: SAE, folder: Path | str, quality: dict[str, Any] | None = None) -> None:
    """Write SAELens' format (cfg.json, sae_weights.safetensors) and a model card, README.md.

    SAELens reads it with `SAE.load_from_disk(folder)`. Raises UserError for what SAELens has no word for.
    """
    folder = Path(folder)
    names = {"topk": "topk", "relu": "standard", "jumprelu": "jumprelu", "batchtopk": "jumprelu"}
    norms = {"none": "none", "layer": "layer_norm"}
    if sae.meta.input_norm not in norms:
        raise UserError("input_norm", sae.meta.input_norm, "SAELens has no such input convention", "save saelab's own")
    architecture = "topk" if sae.threshold is None and sae.meta.rule == "batchtopk" else names[sae.meta.rule]
    config: Config = {"architecture": architecture, "d_in": sae.d_in, "d_sae": sae.latents, "dtype": "float32"}
    config |= {"device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": norms[sae.meta.input_norm]}
    config |= {"metadata": {"made_by": "saelab", **sae.meta.source}}
    if architecture == "topk":
        config |= {"k": sae.meta.k, "rescale_acts_by_decoder_norm": False}
    tensors = {"W_enc": sae.W_enc.T, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if architecture == "jumprelu":
        assert sae.threshold is not None
        tensors["threshold"] = sae.threshold.clamp(min=0)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "sae_weights.safetensors") as temporary:
        save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, temporary)
    write_json(folder / "cfg.json", config)
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(model_card(sae, quality or {}), encoding="utf-8")


def model_card(sae: SAE, quality: dict[str, Any]) -> str:
    """A model card from what the SAE and its quality table hold: Markdown with the hub's header."""
    facts = {"rule": sae.meta.rule, "k": sae.meta.k or "none", "d_in": sae.d_in, "latents": sae.latents}
    facts |= {"input": sae.meta.input_norm, "source": json.dumps(sae.meta.source) if sae.meta.source else "saelab"}
    numbers = {n: f"{v:.4g}" for n, v in quality.items() if isinstance(v, int | float)}
    tables = [_table("Property", facts), _table("Quality", numbers)] if numbers else [_table("Property", facts)]
    head = (
        "---\nlibrary_name: saelab\ntags: [sparse-autoencoder, interpretability, vision]\n---\n# Sparse autoencoder\n\n"
    )
    return head + "\n\n".join(tables) + "\n"


def _table(title: str, rows: dict[str, Any]) -> str:
    return "\n".join([f"| {title} | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _saelens(config: Config, tensors: Tensors) -> SAE:
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


def _sparsify(config: Config, tensors: Tensors) -> SAE:
    if config.get("transcode") or config.get("skip_connection"):
        raise UserError("sae", "transcode", "a transcoder maps one layer to another and has no reconstruction")
    if config.get("activation", "topk") != "topk":
        raise UserError("sae", config["activation"], "only sparsify's topk activation is supported")
    source = {"format": "sparsify"}
    parts = (tensors["encoder.weight"], tensors["encoder.bias"], tensors["W_dec"], tensors["b_dec"])
    return _sae(parts, "topk", config["k"], source)


def _dictionary_learning(trainer: Config, state: Tensors) -> SAE:
    name = trainer.get("dict_class") or _guess(state)
    source = {"format": "dictionary_learning", "dict_class": name}
    k = int(state["k"]) if "k" in state else int(trainer.get("k") or 0)
    if name in ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"):
        b_dec = state["bias"] if name == "AutoEncoder" else state["b_dec"]
        parts = (state["encoder.weight"], state["encoder.bias"], state["decoder.weight"].T, b_dec)
        if name == "BatchTopKSAE":
            return _sae(parts, "batchtopk", k, source, True, _everywhere(state["threshold"], len(parts[1])))
        return _sae(parts, "topk" if name == "AutoEncoderTopK" else "relu", k, source)
    if name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        jump = name == "JumpReluAutoEncoder"
        centred = bool(trainer.get("apply_b_dec_to_input", False)) if jump else True
        threshold = _everywhere(state["threshold"], len(state["b_enc"]))
        return _sae(_four(state), "jumprelu" if jump else "batchtopk", k, source, centred, threshold)
    raise UserError("dict_class", name, "can't be expressed as one SAE (gated, or not known)", "see docs/sae.md")


def _guess(state: Tensors) -> str:
    if "gate_bias" in state or "r_mag" in state:
        return "GatedAutoEncoder"
    if "W_enc" in state:
        return "MatryoshkaBatchTopKSAE" if "group_sizes" in state else "JumpReluAutoEncoder"
    return "AutoEncoder" if "bias" in state else "AutoEncoderTopK"


def _overcomplete(state: Tensors, k: int | None) -> SAE:
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


def _prisma(config: Config, state: Tensors) -> SAE:
    kwargs = config.get("activation_fn_kwargs") or {}
    rule = _known(config.get("activation_fn_str", "relu"), {"relu": "relu", "topk": "topk"}, "activation_fn_str")
    _known(config.get("architecture", "standard"), {"standard": "standard", "vanilla": "vanilla"}, "architecture")
    norm = str(config.get("normalize_activations") or "none")
    names = {"none": "none", "layer_norm": "layer", "False": "none", "constant_norm_rescale": "unit"}
    input_norm = _known(norm, names, "normalize_activations")
    source = {"format": "ViT-Prisma", "normalize_activations": norm}
    scale = float(len(state["b_dec"])) ** 0.5 if input_norm == "unit" else 1.0
    return _sae(_four(state), rule, int(kwargs.get("k") or 0), source, scale=scale, input_norm=input_norm)


def _saev(file: Path) -> SAE:
    """A line of JSON, then the weights. The first releases (no schema in that line) took b_dec off the input.

    BatchTopK chooses by token, and since schema 3 by a threshold, which the file then holds.
    """
    with file.open("rb") as opened:
        header = json.loads(opened.readline())
        state = _tensors(io.BytesIO(opened.read()))
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


def _tensors(file: Path | io.BytesIO) -> Tensors:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        remedy = (
            "where you trust it: torch.save(torch.load(FILE, weights_only=False).state_dict(), NEW), or safetensors"
        )
        raise UserError("sae", file, f"holds pickled objects, which could run code ({_first(error)})", remedy) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {str(n): t for n, t in found.items() if isinstance(t, Tensor)}


def _from_hub(name: str) -> Path:
    parts = name.split("/")
    if len(parts) < 2 or name.startswith((".", "/", "~")):
        raise UserError("sae", name, "there is no such file or folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    inside = "/".join(parts[2:])
    try:
        root = snapshot_download("/".join(parts[:2]), allow_patterns=[f"{inside}/*"] if inside else None)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError("sae", name, f"no such path here, and the hub has none ({_first(error)})") from None
    return Path(root) / inside


def _known(value: str, names: dict[str, str], setting: str) -> str:
    if value not in names:
        raise UserError(setting, value, f"can't be expressed; known: {', '.join(names)}")
    return names[value]


def _everywhere(threshold: Tensor, latents: int) -> Tensor:
    return threshold.float().expand(latents).clone()


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
