"""The SAE itself: weights, encode, decode, and one complete file.

    pre   = W_enc (norm(x) - b_dec) + b_enc
    codes = the latents that the rule keeps of relu(pre)
    x^    = codes W_dec + b_dec

All of it in the units of the raw activations: whatever scaling helped training is folded into the biases.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from saelab import settings
from saelab.arrays import as_matrix
from saelab.artifacts import atomic, check_file
from saelab.errors import UserError
from saelab.sae import rules, screen, select
from saelab.sae.distributed import Group
from saelab.sae.fetch import fetch
from saelab.sae.sparse import decode_rows

FORMAT = "saelab-sae-1"
DENSE_DECODE = 1 / 8  # share of the latents from which on a dense product decodes faster than a sparse one
AT_ONCE = 1 << 24  # pre-activations held at once where tokens are worked on in chunks: 64 MiB


@dataclass(frozen=True)
class Codes:
    """The nonzero latents of a batch. Where L0 varies, k is the batch's maximum and the padding has value 0."""

    values: Float[Tensor, "batch k"]  # >= 0
    indices: Int[Tensor, "batch k"]
    latents: int  # size of the dictionary

    def dense(self) -> Float[Tensor, "batch latents"]:
        """The same as a dense matrix."""
        out = self.values.new_zeros(len(self.values), self.latents)
        return out.scatter_add_(1, self.indices, self.values)


@dataclass(frozen=True)
class Meta:
    """What a file must say besides the weights, so that `encode(raw)` is right with nothing else known."""

    rule: str  # a name of saelab.sae.rules.RULES
    k: int  # topk: latents kept; batchtopk and jumprelu: their mean number in training; 0 where the rule has none
    input_norm: str = "none"  # none | layer (each token to mean 0, deviation 1; undone after decoding) | unit
    prefixes: tuple[int, ...] = ()  # Matryoshka prefix sizes
    source: dict[str, Any] = dataclasses.field(default_factory=dict)  # where the weights come from (recipe or format)


class SAE:
    """A trained sparse autoencoder. `W_enc`, `W_dec` [latents, d_in], `b_enc` [latents], `b_dec` [d_in], float32.

    `threshold` [latents] or None: with rules batchtopk and jumprelu, a latent stays where pre > threshold. Raises
    UserError for a rule that does not exist.
    """

    group = Group()  # the processes that hold its latents together: this one alone, but for a Shard

    def __init__(
        self,
        W_enc: Float[Tensor, "latents d_in"],
        b_enc: Float[Tensor, "latents"],
        W_dec: Float[Tensor, "latents d_in"],
        b_dec: Float[Tensor, "d_in"],
        meta: Meta,
        threshold: Float[Tensor, "latents"] | None = None,
    ) -> None:
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = W_enc, b_enc, W_dec, b_dec
        self.meta, self.threshold = meta, threshold
        self.rule = rules.find(meta.rule)

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def latents(self) -> int:
        return self.W_dec.shape[0]

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    def to(self, device: str | torch.device) -> "SAE":
        """The same SAE on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return SAE(meta=self.meta, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, as they lie in the file."""
        named = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return named if self.threshold is None else {**named, "threshold": self.threshold}

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch latents"]:
        """The encoder's output before the rule. Raises UserError where x has another width."""
        return torch.addmm(self.b_enc, self._centre(x), self.W_enc.T)

    def _centre(self, x: Tensor) -> Tensor:
        """What the encoder's rows are multiplied with."""
        x, _ = self.normalize(as_matrix(x, self.d_in))
        return x - self.b_dec

    def pre_activations_of(
        self, x: Float[Tensor, "batch d_in"], latents: Sequence[int]
    ) -> Float[Tensor, "batch chosen"]:
        """`pre_activations` of some latents alone, with a graph back to `x`: what an input can be changed to raise."""
        x, _ = self.normalize(x)
        chosen = list(latents)
        return torch.addmm(self.b_enc[chosen], x - self.b_dec, self.W_enc[chosen].T)

    @property
    def fixed_l0(self) -> bool:
        """Whether the rule keeps the k largest of each token; else it keeps what lies above 0 or a threshold."""
        return self.rule.fixed_l0(self.threshold)

    @property
    def tokens_at_once(self) -> int:
        """Tokens whose pre-activations fit into a chunk."""
        return max(1, AT_ONCE // self.latents)

    def screens(self, tokens: int) -> bool:
        """Whether so many are encoded by the bfloat16 screen: where it is faster and the rule has no way of its own."""
        plain = self.rule.picks_plainly if self.fixed_l0 else self.threshold is not None and self.rule.gates_plainly
        return plain and screen.pays_to_encode(tokens, self.W_enc, self.meta.k)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Codes:
        """Raw activations, any float dtype, to sparse codes (float32).

        On CPUs with bfloat16 instructions a rough product may say which of them to look at (`screen.py`); the codes are
        those of the float32 product, but for the order in which sums are rounded. Memory doesn't grow with the batch x
        latents.
        """
        x = as_matrix(x, self.d_in)
        parts = x.split(select.rows_at_once(self.latents))
        if not self.fixed_l0:
            return _join([_pack(self.encode_dense(part)) for part in parts])
        if self.screens(len(x)):
            return Codes(*screen.exact_top_k(self._centre(x), self.W_enc, self.b_enc, self.meta.k), self.latents)
        return _join([Codes(*self.rule.pick(self.pre_activations(p), self.meta.k), self.latents) for p in parts])

    @torch.no_grad()
    def encode_dense(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch latents"]:
        """The same as a dense matrix. Nothing is ranked where L0 is not fixed, so that it may be in the thousands."""
        if self.fixed_l0:
            return self.encode(x).dense()
        x = as_matrix(x, self.d_in)
        if self.threshold is not None and self.screens(len(x)):
            codes = screen.exact_codes(self._centre(x), self.W_enc, self.b_enc, self.threshold)
            if codes is not None:
                return codes
        return self.rule.gate(self.pre_activations(x), self.threshold)

    @torch.no_grad()
    def decode(self, codes: Codes | Float[Tensor, "batch latents"]) -> Float[Tensor, "batch d_in"]:
        """Codes to activations: `dense codes @ W_dec + b_dec`, without the dense matrix where it is mostly 0.

        Raises UserError for a transcoder's encoder, which has nothing to decode with.
        """
        if self.meta.source.get("transcoder"):
            raise UserError("sae", "a transcoder's encoder", "has no decoder for the layer it reads", "use its codes")
        if isinstance(codes, Codes):
            if codes.values.shape[1] < DENSE_DECODE * self.latents:
                return decode_rows(codes.values, codes.indices, self.W_dec) + self.b_dec
            codes = codes.dense()
        return torch.addmm(self.b_dec, codes, self.W_dec)

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """The reconstruction of raw activations, in their own units; memory doesn't grow with the batch x latents."""
        return torch.cat([self._reconstruct(part) for part in as_matrix(x, self.d_in).split(self.tokens_at_once)])

    def _reconstruct(self, x: Tensor) -> Tensor:
        _, undo = self.normalize(x)
        return undo(self.decode(self.encode(x) if self.fixed_l0 else self.encode_dense(x)))

    def normalize(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch d_in"], Callable[[Tensor], Tensor]]:
        """The input as the weights expect it, float32 on their device, and the way back for reconstructions."""
        x = x.to(self.W_dec.device, torch.float32)
        if self.meta.input_norm == "layer":
            mean = x.mean(1, keepdim=True)
            std = (x - mean).std(1, keepdim=True)
            return (x - mean) / (std + 1e-5), lambda out: out * std + mean
        if self.meta.input_norm == "unit":
            norm = x.norm(dim=1, keepdim=True).clamp(min=1e-8)
            return x / norm, lambda out: out * norm
        return x, lambda out: out

    def save(self, path: Path | str) -> None:
        """Write one complete .safetensors file (or `sae.safetensors` in a folder), atomically. Makes its folder."""
        # One key: safetensors writes several in a random order, and the same recipe is to give the same bytes.
        meta = {"saelab": json.dumps({"format": FORMAT, **dataclasses.asdict(self.meta)}, sort_keys=True)}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors().items()}
        file = file_of(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            save_file(tensors, temporary, metadata=meta)

    @classmethod
    def load(cls, path: Path | str, device: str | torch.device = "cpu") -> "SAE":
        """Read a file written by `save`. Raises UserError for a missing, damaged or foreign file."""
        file = file_of(path)
        if not file.is_file():
            raise UserError("sae", file, "there is no such file", "train one, or convert one with saelab.sae.convert")
        check_file(file)
        try:
            with safe_open(file, framework="pt", device=str(device)) as opened:
                raw = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError("sae", file, f"not a whole safetensors file ({error})", "copy or train it again") from None
        return cls(meta=_meta(raw, file), **_check_tensors(tensors, file))

    @classmethod
    def from_pretrained(
        cls, repo: str, path: str = "", revision: str | None = None, device: str | torch.device = "cpu"
    ) -> "SAE":
        """The SAE in the folder `path` of a repository that `saelab push` wrote: "org/name", or a folder.

        `meta.source` then holds the repository (`hub`), `path` and the hash of the `commit`. Raises UserError where the
        hub can't be asked or there is no SAE of saelab; `saelab.sae.convert.load` reads those of other packages.
        """
        found = fetch(repo, path, ["sae.safetensors"], revision)
        if not (found.folder / "sae.safetensors").is_file():
            remedy = "name a folder of its README.md, or read other packages' with saelab.sae.convert.load"
            raise UserError("sae", f"{repo}/{path}".rstrip("/"), "holds no sae.safetensors", remedy)
        sae = cls.load(found.folder, device)
        return cls(meta=dataclasses.replace(sae.meta, source=sae.meta.source | found.source), **sae.tensors())


def _pack(dense: Float[Tensor, "batch latents"]) -> Codes:
    """The nonzeros of each row side by side, in the order of the latents; padded with 0 of latent 0."""
    rows, latents = dense.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(dense))
    width = max(1, int(counts.max())) if len(dense) else 1
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    values, indices = dense.new_zeros(len(dense), width), rows.new_zeros(len(dense), width)
    values[rows, places] = dense[rows, latents]
    indices[rows, places] = latents
    return Codes(values, indices, dense.shape[1])


def _join(parts: Sequence[Codes]) -> Codes:
    """The codes of batch after batch, each padded to the widest."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.values.shape[1] for part in parts)
    padded = [[pad(a, (0, width - a.shape[1])) for a in (part.values, part.indices)] for part in parts]
    values, indices = (torch.cat(each) for each in zip(*padded, strict=True))
    return Codes(values, indices, parts[0].latents)


def file_of(path: Path | str) -> Path:
    """The file that `save` and `load` mean: the path itself, or `sae.safetensors` in a folder."""
    path = Path(path).expanduser()
    return path if path.suffix == ".safetensors" else path / "sae.safetensors"


def _meta(raw: dict[str, str], file: Path) -> Meta:
    damaged = UserError("sae", file, "its metadata are damaged", "copy or train it again")
    try:
        values = json.loads(raw.get("saelab", "{}"))
    except ValueError:
        raise damaged from None
    if not isinstance(values, dict):
        raise damaged
    found = values.pop("format", raw.get("format"))
    if found != FORMAT:
        raise UserError("sae", file, f"format {FORMAT}, found {found}", "convert it: saelab.sae.convert.load")
    fields = {f.name for f in dataclasses.fields(Meta)}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise UserError("sae", file, f"unknown key {unknown[0]!r} in its metadata", "update saelab")
    if values.get("rule") not in rules.RULES:
        raise UserError(
            "sae", file, f"is of rule {values.get('rule')}, known: {', '.join(rules.RULES)}", "update saelab"
        )
    try:
        meta = Meta(**{**values, "prefixes": tuple(values.get("prefixes", ()))})
        settings.check(meta, "", {})
    except (TypeError, UserError):
        raise damaged from None
    return meta


def _check_tensors(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    needed, allowed = {"W_enc", "b_enc", "W_dec", "b_dec"}, {"threshold"}
    if not needed <= set(tensors) or set(tensors) - needed - allowed:
        raise UserError("sae", file, f"tensors {sorted(needed)}, found {sorted(tensors)}", "convert or train it again")
    return tensors
