"""Labels of a shared SAE: bound to its weights by their digest, so that no other SAE's are taken for them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from saelab.artifacts import read_jsonl
from saelab.errors import UserError
from saelab.sae import SAE
from saelab.sae.fetch import fetch

FILE = "labels.jsonl"
Rows = list[dict[str, Any]]


def digest_weights(sae: SAE) -> str:
    """SHA-256 of what decides an SAE's codes: every tensor (name, shape, float32 bytes), rule, k and input norm."""
    total = hashlib.sha256(json.dumps([sae.meta.rule, sae.meta.k, sae.meta.input_norm]).encode())
    for name, tensor in sorted(sae.tensors().items()):
        total.update(json.dumps([name, list(tensor.shape)]).encode())
        total.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return total.hexdigest()


def bind(rows: Rows, sae: SAE) -> Rows:
    """Rows of labels.jsonl, each with the digest of the SAE that they are of (`sae_digest`)."""
    own = {"sae_digest": digest_weights(sae)}
    return [row | own for row in rows]


def from_pretrained(repo: str, path: str = "", revision: str | None = None, sae: SAE | None = None) -> Rows:
    """The labels of a shared SAE, one row a latent, in the order of latents (docs/formats.md, labels.jsonl).

    `repo`, `path`, `revision`: as SAE.from_pretrained takes them. `sae`: the SAE that you hold; None: the one that lies
    beside the labels. Raises UserError where there are no labels, a row is missing, or they are of another SAE.
    """
    found = fetch(repo, path, [FILE, "sae.safetensors"], revision)
    name = f"{repo}/{path}".rstrip("/")
    if not (found.folder / FILE).is_file():
        raise UserError("labels", name, f"holds no {FILE}", "name the folder of one SAE that was shared with labels")
    rows = _rows(found.folder / FILE, name)
    held = SAE.load(found.folder) if sae is None else sae
    own = digest_weights(held)
    others = {str(row.get("sae_digest")) for row in rows} - {own}
    if others:
        what = f"are of another SAE (digest {min(others)[:10]}, this one's is {own[:10]})"
        raise UserError("labels", name, what, "load the SAE and its labels from the same folder and revision")
    if [row["unit"] for row in rows] != list(range(held.latents)):
        what = f"hold {len(rows)} rows, which are not one for each of {held.latents} latents"
        raise UserError("labels", name, what, "fetch the file again")
    return rows


def _rows(file: Path, name: str) -> Rows:
    rows = read_jsonl(file)
    if not all(isinstance(row, dict) and type(row.get("unit")) is int for row in rows):
        raise UserError("labels", name, f"its {FILE} holds lines that are no labels", "fetch the file again")
    return sorted(rows, key=lambda row: row["unit"])
