"""An SAE whose latents several processes hold: encode and decode together, and write one file part by part."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.artifacts import atomic
from saelab.sae.choose import winners
from saelab.sae.distributed import Group
from saelab.sae.model import FORMAT, SAE, Codes, Meta, file_of
from saelab.sae.sparse import decode_rows

AT_ONCE = 1 << 24  # numbers that a process sends at once


class Shard(SAE):
    """This process' latents of an SAE. All processes of `group` call each method together, on the same tokens.

    `encode` and `encode_dense` give the codes of these latents, chosen among all; `decode` and calls reconstruct from
    all. `meta` is the whole SAE's.
    """

    def __init__(
        self, weights: dict[str, Tensor], meta: Meta, threshold: Float[Tensor, "own"] | None, group: Group
    ) -> None:
        own = dataclasses.replace(meta, k=min(meta.k, len(weights["W_enc"])))
        super().__init__(**weights, meta=own, threshold=threshold)
        self.whole, self.group = meta, group

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Codes:
        """The codes of these latents; where others are chosen, value 0."""
        found = super().encode(x)
        if not self.fixed_l0:
            return found
        indices, order = found.indices.sort(dim=1)
        values = found.values.gather(1, order)
        return Codes(values * winners(values, self.whole.k, self.group), indices, self.latents)

    @torch.no_grad()
    def decode(self, codes: Codes | Float[Tensor, "batch own"]) -> Float[Tensor, "batch d_in"]:
        """The reconstruction from all processes' codes."""
        own = decode_rows(codes.values, codes.indices, self.W_dec) if isinstance(codes, Codes) else codes @ self.W_dec
        return self.group.sum_(own) + self.b_dec

    def save(self, path: Path | str) -> None:
        """Write the whole SAE as `SAE.save` does, byte by byte the same, with no more than a part of it in memory.

        The group's first process writes; the others send theirs.
        """
        file = file_of(path)
        if self.group.rank:
            for _ in self._parts():
                pass
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary, temporary.open("wb") as opened:
            opened.write(self._header())
            for part in self._parts():
                opened.write(part.cpu().numpy().tobytes())

    def _header(self) -> bytes:
        """What a safetensors file of the whole SAE begins with: its length, and where each tensor lies."""
        whole = json.dumps({"format": FORMAT, **dataclasses.asdict(self.whole)}, sort_keys=True)
        entries: dict[str, object] = {"__metadata__": {"saelab": whole}}
        begin = 0
        for name, tensor in sorted(self.tensors().items()):
            shape = list(tensor.shape) if name == "b_dec" else [len(tensor) * self.group.size, *tensor.shape[1:]]
            end = begin + math.prod(shape) * 4
            entries[name], begin = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}, end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _parts(self) -> Iterator[Tensor]:
        """The file's numbers in their order, piece by piece; to be gone through by all processes."""
        for name, tensor in sorted(self.tensors().items()):
            if name == "b_dec":
                yield tensor
                continue
            step = max(1, AT_ONCE // math.prod(tensor.shape[1:]))
            for rank in range(self.group.size):
                for some in tensor.split(step):
                    yield self.group.copy_from(rank, some.contiguous().clone())
