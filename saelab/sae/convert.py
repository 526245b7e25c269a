"""SAEs of other packages, in and out.

`load(path)` recognises the format by its files; how each is read stands in `foreign.py`. Nothing is unpickled but plain
tensors (torch.load with weights_only=True).
"""

import io
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from saelab import tables, tensor_files
from saelab.artifacts import atomic, read_json, write_json
from saelab.errors import UserError
from saelab.sae import fetch, foreign
from saelab.sae.foreign import Config, Tensors
from saelab.sae.model import SAE
from saelab.sae.source import Options, Source

# saelab's own first: a folder of the hub holds the same SAE for SAELens, which has no words for all of it.
_WEIGHTS = ("sae.safetensors", "sae_weights.safetensors", "ae.pt", "weights.pt", "sae.pt")


def load(
    path: Path | str,
    k: int | None = None,
    *,
    scale: float | None = None,
    signed: str | None = None,
    encoder_only: bool = False,
) -> SAE:
    """An SAE from a local file or folder, or from the Hugging Face hub: "org/name" or "org/name/folder".

    Reads saelab, SAELens, dictionary_learning, sparsify, overcomplete, ViT-Prisma and saev. What a file doesn't say, or
    what needs a decision, is asked for:

    k             latents kept, where the file doesn't hold it (an overcomplete state dict; 0 there: ReLU)
    scale         factor on the input in training, where a SAELens file expects scaled activations and no
                  activation_scaler.json lies beside it
    signed        "split": a sparsify SAE with `signed` latents becomes one of twice as many, latent i the positive and
                  latent n + i the negative side of the file's latent i
    encoder_only  True: of a transcoder, its encoder. `encode` is the package's; `decode` refuses, and `W_dec` is 0,
                  for at the layer that it reads a transcoder writes nothing

    Raises UserError for a format that is not known, a file that is cut off or holds pickled objects, tensors, settings
    and values that its reader doesn't know (by name), weights that are not finite or contradict each other or the
    configuration, and architectures that can't be expressed (gated).
    """
    if signed not in (None, "split"):
        raise UserError("signed", signed, "unknown", "known: split")
    place = Path(path).expanduser()
    place = place if place.exists() else _from_hub(str(path))
    return _read(place, Options(k, scale, signed, encoder_only))


def _read(place: Path, options: Options) -> SAE:
    file = _weights_file(place) if place.is_dir() else place
    if not file.is_file():
        raise UserError("sae", file, "is neither a file nor a folder", "give the SAE's file or folder")
    if file.suffix == ".safetensors":
        return _read_safetensors(file, options)
    with file.open("rb") as opened:
        header = opened.readline(1 << 20) if opened.read(1) == b"{" else b""
        if header:
            source = Source(file, "saev", _torch(io.BytesIO(opened.read()), file)[0], _header(header, file), options)
            return foreign.saev(source)
    state, beside = _torch(file, file)
    config = _config(file, ("config.json", "cfg.json")) or _inner_config(beside)
    trainer = config.get("trainer", {})
    if "dictionary._weights" in state:
        return foreign.overcomplete(Source(file, "overcomplete", state, {}, options))
    if "trainer" in config or "encoder.weight" in state or ("threshold" in state and not config):
        if not isinstance(trainer, dict):
            raise UserError("sae", file, "its config.json names no trainer's settings", "put its own config.json there")
        return foreign.dictionary_learning(Source(file, "dictionary_learning", state, trainer, options))
    if {"W_enc", "W_dec"} <= set(state):
        return foreign.prisma(Source(file, "ViT-Prisma", state, config, options))
    raise UserError("sae", file, f"tensors of a known format, found {sorted(state)[:6]}", "see docs/sae.md")


def _read_safetensors(file: Path, options: Options) -> SAE:
    """saelab's own by its metadata, sparsify's and SAELens' by their tensors."""
    tensors, metadata = tensor_files.read_safetensors(file, "sae")
    if "saelab" in metadata or ("format" in metadata and metadata["format"].startswith("saelab")):
        return SAE.load(file)
    config = _config(file, ("cfg.json", "config.json"))
    if not {"encoder.weight", "W_enc"} & set(tensors):
        raise UserError("sae", file, f"tensors of a known format, found {sorted(tensors)[:6]}", "see docs/sae.md")
    if not config:
        wanted = foreign.SPARSIFY if "encoder.weight" in tensors else foreign.SAELENS
        why = "no cfg.json beside it says how these weights are applied"
        raise UserError("sae", file, why, f"put it there, or write one: {wanted}")
    if "encoder.weight" in tensors:
        return foreign.sparsify(Source(file, "sparsify", tensors, config, options))
    scaler = _config(file, ("activation_scaler.json",))
    return foreign.saelens(Source(file, "SAELens", tensors, config, options), scaler)


def _weights_file(folder: Path) -> Path:
    """The file of a folder that holds an SAE's weights: one of the usual names, or the only one that could."""
    usual = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if usual:
        return usual[0]
    others = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".pt", ".pth"))
    if len(others) == 1:
        return others[0]
    if others:
        raise UserError("sae", folder, "holds several files of weights", f"name one: {_list(others)}")
    inside = sorted(p for p in folder.iterdir() if p.is_dir())
    remedy = f"name one of its folders: {_list(inside)}" if inside else "see docs/sae.md for those that are"
    raise UserError("sae", folder, "no format that is known", remedy)


def _list(paths: list[Path]) -> str:
    return ", ".join(p.name for p in paths[:6]) + (", ..." if len(paths) > 6 else "")


def _config(file: Path, names: tuple[str, ...]) -> Config:
    """The first of some JSON files beside the weights; {} if there is none."""
    for name in names:
        if (file.parent / name).is_file():
            return _object(read_json(file.parent / name), file.parent / name)
    return {}


def _inner_config(beside: dict[str, Any]) -> Config:
    """A plain configuration that a checkpoint holds beside its tensors."""
    return next((beside[n] for n in ("cfg", "config") if isinstance(beside.get(n), dict)), {})


def _header(line: bytes, file: Path) -> Config:
    try:
        return _object(json.loads(b"{" + line), file)
    except (ValueError, RecursionError):
        raise UserError("sae", file, "begins like a saev file, but its header is no JSON", "fetch it again") from None


def _object(value: Any, file: Path) -> Config:
    if not isinstance(value, dict):
        raise UserError("sae", file, f"holds a {type(value).__name__}, expected settings by name", "fetch it again")
    return value


def _torch(file: Path | io.BytesIO, name: Path) -> tuple[Tensors, dict[str, Any]]:
    return tensor_files.read(file, "sae", name)


def save_saelens(sae: SAE, folder: Path | str, quality: dict[str, Any] | None = None) -> None:
    """Write SAELens' format (cfg.json, sae_weights.safetensors) and a model card, README.md.

    SAELens reads it with `SAE.load_from_disk(folder)`. Raises UserError for what SAELens has no word for.
    """
    folder = Path(folder)
    norms = {"none": "none", "layer": "layer_norm"}
    if sae.meta.source.get("transcoder"):
        raise UserError("sae", folder, "a transcoder's encoder has no decoder to write", "save saelab's own")
    if sae.meta.input_norm not in norms:
        raise UserError("input_norm", sae.meta.input_norm, "SAELens has no such input convention", "save saelab's own")
    architecture = "topk" if sae.fixed_l0 else sae.rule.names.get("SAELens")
    if architecture is None:
        raise UserError("rule", sae.meta.rule, "SAELens has no such rule", "save saelab's own")
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
    return tables.draw_markdown((title, ""), [(name, str(value)) for name, value in rows.items()])


def _from_hub(name: str) -> Path:
    parts = name.split("/")
    if len(parts) < 2 or name.startswith((".", "/", "~")):
        raise UserError("sae", name, "there is no such file or folder", "check the path")
    return fetch.download("/".join(parts[:2]), "/".join(parts[2:]))[0]
