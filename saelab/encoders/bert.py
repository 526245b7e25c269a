"""BERT's encoder (Devlin et al. 2019) in plain torch, out of a folder in transformers' layout.

It gives what transformers gives (a test says so), without the seconds that importing transformers' models takes: a
search in the viewer waits for its first words.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, scaled_dot_product_attention

LONGEST = 256  # tokens of a text; the rest is cut off


class Bert:
    """Tokens to the last layer's states; weights stay as they were written, float32."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """`folder`: config.json, tokenizer.json and model.safetensors of a BERT with GELU and absolute positions."""
        from tokenizers import Tokenizer

        self.device = device
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.eps, self.heads = float(config["layer_norm_eps"]), int(config["num_attention_heads"])
        self.layers, self.d_text = int(config["num_hidden_layers"]), int(config["hidden_size"])
        self.weights = {name: x.float().to(device) for name, x in load_file(folder / "model.safetensors").items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.enable_padding(pad_id=int(config["pad_token_id"]))

    def tokens(self, texts: Sequence[str]) -> tuple[Int[Tensor, "texts tokens"], Int[Tensor, "texts tokens"]]:
        """Token ids, padded to the longest text, and a mask that is 1 where a token is none of the padding."""
        found = self.tokenizer.encode_batch(list(texts))
        ids, mask = ([getattr(one, key) for one in found] for key in ("ids", "attention_mask"))
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def states(
        self, ids: Int[Tensor, "texts tokens"], mask: Int[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens d_text"]:
        """What the last layer says of each token, of a single segment."""
        w = self.weights
        x = embedding(ids, w["embeddings.word_embeddings.weight"]) + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x + w["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings")
        for i in range(self.layers):
            layer = f"encoder.layer.{i}"
            attended = self._attention(x, mask.bool(), f"{layer}.attention.self")
            x = self._norm(self._dense(attended, f"{layer}.attention.output") + x, f"{layer}.attention.output")
            inner = gelu(self._dense(x, f"{layer}.intermediate"))
            x = self._norm(self._dense(inner, f"{layer}.output") + x, f"{layer}.output")
        return x

    def _attention(self, x: Tensor, mask: Tensor, place: str) -> Tensor:
        query, key, value = (
            self._affine(x, f"{place}.{name}").unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        return scaled_dot_product_attention(query, key, value, mask[:, None, None]).transpose(1, 2).flatten(2)

    def _affine(self, x: Tensor, place: str) -> Tensor:
        return linear(x, self.weights[f"{place}.weight"], self.weights[f"{place}.bias"])

    def _dense(self, x: Tensor, place: str) -> Tensor:
        return self._affine(x, f"{place}.dense")

    def _norm(self, x: Tensor, place: str) -> Tensor:
        weight, bias = (self.weights[f"{place}.LayerNorm.{name}"] for name in ("weight", "bias"))
        return layer_norm(x, (self.d_text,), weight, bias, self.eps)
