"""SAEs of other packages, in and out.

`load(path)` recognises the format by its files; how each is read stands in `foreign.py`. Nothing is unpickled but plain
tensors (torch.load with weights_only=True).
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
from saelab.sae import foreign
from saelab.sae.foreign import Config, Tensors
from saelab.sae.model import SAE


def load(path: Path | str, k: int | None = None) -> SAE:
    """An SAE from a local file or folder, or from the Hugging Face hub: "org/name" or "org/name/folder".

    Reads saelab, SAELens, dictionary_learning, sparsify, overcomplete, ViT-Prisma and saev. `k` is needed only where
    the file doesn't hold it (an overcomplete state dict). Raises UserError for a format that is not known, a file that
    doesn't say what it is, an architecture that can't be expressed (gated, transcoders), and for files that are nothing
    but pickle.
    """
    place = Path(path)
    place = place if place.exists() else _from_hub(str(path))
    try:
        return _read(place, k)
    except KeyError as error:
        raise UserError("sae", place, f"looks like a format that is known, but lacks {error}", "save it anew") from None


def _read(place: Path, k: int | None) -> SAE:
    folder = place if place.is_dir() else place.parent
    first = folder / "cfg.json"
    if (place / "sae_weights.safetensors").is_file():
        return foreign.saelens(read_json(first), load_file(place / "sae_weights.safetensors"))
    if (place / "sae.safetensors").is_file() and first.is_file():
        return foreign.sparsify(read_json(first), load_file(place / "sae.safetensors"))
    if place.suffix == ".safetensors" or (place / "sae.safetensors").is_file():
        return SAE.load(place)
    if place.is_dir():
        files = [place / name for name in ("ae.pt", "weights.pt", "sae.pt") if (place / name).is_file()]
        if not files:
            raise UserError("sae", place, "no format that is known", "see docs/sae.md for those that are")
        place = files[0]
    with place.open("rb") as opened:
        if opened.read(1) == b"{":
            opened.seek(0)
            header = json.loads(opened.readline())
            return foreign.saev(header, _tensors(io.BytesIO(opened.read())))
    state = _tensors(place)
    config: Config = next((read_json(folder / n) for n in ("config.json", "cfg.json") if (folder / n).is_file()), {})
    if "dictionary._weights" in state:
        return foreign.overcomplete(state, k)
    if "trainer" in config or "encoder.weight" in state or ("threshold" in state and not config):
        return foreign.dictionary_learning(place, config.get("trainer", {}), state, k)
    if {"W_enc", "W_dec"} <= set(state):
        return foreign.prisma(place, config, state)
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


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
