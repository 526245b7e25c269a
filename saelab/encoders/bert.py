"""BERT's encoder in plain torch (Devlin et al., 2019), for sentence weights in a folder of the hub's form.

transformers has the same, but importing its model classes takes several times as long as loading these weights, and
whoever searches a run in the viewer waits for it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention


class Bert:
    """Texts to the vectors of their tokens. To the bit what `transformers.BertModel` gives with the same weights."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """`folder` holds config.json, model.safetensors (float32 is computed with) and tokenizer.json."""
        from tokenizers import Tokenizer

        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.weights = {key: x.to(device, torch.float32) for key, x in load_file(folder / "model.safetensors").items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_padding(pad_id=self.config["pad_token_id"])

    @property
    def width(self) -> int:
        """Dimensions of a token's vector."""
        return int(self.config["hidden_size"])

    def encode(
        self, texts: Sequence[str], longest: int
    ) -> tuple[Float[Tensor, "texts tokens width"], Bool[Tensor, "texts tokens"]]:
        """The vectors of every text's tokens, texts cut to `longest` tokens; and which tokens are no padding."""
        self.tokenizer.enable_truncation(longest)
        found = self.tokenizer.encode_batch(list(texts))
        device = self.weights["embeddings.LayerNorm.weight"].device
        ids = torch.tensor([one.ids for one in found], device=device)
        mask = torch.tensor([one.attention_mask for one in found], device=device).bool()
        return self._hidden(ids, mask), mask

    def _hidden(
        self, ids: Int[Tensor, "texts tokens"], mask: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens width"]:
        table = {key: self.weights[f"embeddings.{key}_embeddings.weight"] for key in ("word", "token_type", "position")}
        hidden = table["word"][ids] + table["token_type"][0] + table["position"][: ids.shape[1]]
        hidden = self._norm(hidden, "embeddings.LayerNorm")
        seen = None if mask.all() else mask[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        for number in range(self.config["num_hidden_layers"]):
            hidden = self._layer(hidden, seen, f"encoder.layer.{number}")
        return hidden

    def _layer(self, hidden: Tensor, seen: Tensor | None, name: str) -> Tensor:
        """Attention, then two layers of neurons, each added to what came in."""
        own = f"{name}.attention"
        split = (*hidden.shape[:-1], self.config["num_attention_heads"], -1)
        query, keys, values = (self._linear(hidden, f"{own}.self.{key}").view(split).transpose(1, 2) for key in _THREE)
        mixed = scaled_dot_product_attention(query, keys, values, attn_mask=seen).transpose(1, 2).reshape(hidden.shape)
        hidden = self._norm(self._linear(mixed, f"{own}.output.dense") + hidden, f"{own}.output.LayerNorm")
        inner = gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(self._linear(inner, f"{name}.output.dense") + hidden, f"{name}.output.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, weight.shape, weight, bias, self.config["layer_norm_eps"])


_THREE = ("query", "key", "value")
