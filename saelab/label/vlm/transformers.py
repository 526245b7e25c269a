"""A vision-language model in this process: any `AutoModelForImageTextToText` with a chat template, in batches."""

import hashlib
import io
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from saelab.errors import UserError
from saelab.label.proposal import Estimate
from saelab.label.vlm import tokens
from saelab.label.vlm.chat import Picture, Reply, Request
from saelab.label.vlm.completion import unfinished
from saelab.label.vlm.text import one_line, readable
from saelab.label.vlm.tokens import Prices

log = logging.getLogger("saelab")
DTYPES = ("auto", "float32", "bfloat16", "float16")


class TransformersChat:
    """Asks a model loaded with transformers, `batch_size` requests at a time, always taking the likeliest token.

    model: a local folder or a hub name (InternVL3 and 3.5 in their "-hf" form, Qwen-VL, SmolVLM, LLaVA ...). device:
    default CUDA, else MPS, else CPU. dtype: of the weights; "auto" = as stored, float32 on the CPU. There is no price:
    the cost of running a model oneself isn't known here. picture_tokens: for estimates only.
    """

    name = "transformers"

    def __init__(
        self,
        model: str,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int = 4,
        picture_tokens: str | int = "internvl",
    ) -> None:
        if not model:
            raise UserError("proposer.model", model, "must be a folder or a hub name")
        if dtype not in DTYPES:
            raise UserError("proposer.dtype", dtype, f"must be one of {', '.join(DTYPES)}")
        if batch_size < 1:
            raise UserError("proposer.batch_size", batch_size, "must be at least 1")
        tokens.picture_tokens((448, 448), picture_tokens)
        self.model_name, self.batch_size, self.picture_tokens = model, batch_size, picture_tokens
        self.device, self.dtype = device or _best_device(), dtype
        self.recipe = {"name": self.name, "model": _identity(model), "dtype": dtype}
        self._loaded: tuple[Any, Any] | None = None

    def estimate(self, request: Request) -> Estimate:
        """Tokens of a request; money isn't known."""
        return tokens.estimate(request, Prices(), self.picture_tokens)

    def ask(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Every request with its reply, in order, batch by batch; the model is loaded with the first.

        Raises UserError for a model that is not there or takes no pictures. A request too long for the model's
        context, or too large for the memory even alone, gets a failed reply.
        """
        source = iter(requests)
        while batch := list(itertools.islice(source, self.batch_size)):
            yield from zip(batch, self._answer(batch), strict=True)

    def _answer(self, batch: Sequence[Request]) -> list[Reply]:
        import torch

        try:
            return self._generate(batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if len(batch) == 1:
            why = f"out of memory on {self.device}: lower proposer.sheet_px or proposer.shown, or choose another dtype"
            return [Reply(None, why, batch[0].digest, attempts=1)]
        log.warning("out of memory with %d requests at once, trying half", len(batch))
        middle = len(batch) // 2
        return self._answer(batch[:middle]) + self._answer(batch[middle:])

    def _generate(self, batch: Sequence[Request]) -> list[Reply]:
        """Replies of one batch; requests that don't fit the context are left out of it and fail."""
        import torch

        started = time.monotonic()
        processor, model = self._load()
        inputs = self._encode(processor, batch)
        context = _context(model)
        lengths = inputs["attention_mask"].sum(1).tolist()
        longest = max(request.max_tokens for request in batch)
        if context is not None and any(length + longest > context for length in lengths):
            return self._without_long_ones(batch, lengths, context)
        inputs = inputs.to(model.device)
        floats = {k: v.to(model.dtype) for k, v in inputs.items() if torch.is_floating_point(v)}
        with torch.inference_mode():
            output = model.generate(**{**inputs, **floats}, max_new_tokens=longest, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :].cpu()
        texts = processor.batch_decode(written, skip_special_tokens=True)
        counts = [_count_written(row, model.generation_config) for row in written.tolist()]
        cut = [unfinished("length", longest) if own is None else None for own in counts]
        seconds = (time.monotonic() - started) / len(batch)
        replies = [
            Reply(readable(text), None, request.digest, self.model_name, length, own or longest, unfinished=why)
            for request, text, length, own, why in zip(batch, texts, lengths, counts, cut, strict=True)
        ]
        return [replace(reply, attempts=1, seconds=seconds) for reply in replies]

    def _without_long_ones(self, batch: Sequence[Request], lengths: list[int], context: int) -> list[Reply]:
        replies: list[Reply] = []
        for request, length in zip(batch, lengths, strict=True):
            if length + request.max_tokens > context:
                why = (
                    f"too large for the model's context ({length} tokens and {request.max_tokens} for the answer, "
                    f"it takes {context}): lower proposer.sheet_px or proposer.shown"
                )
                replies.append(Reply(None, why, request.digest, self.model_name, length))
            else:
                replies += self._generate([request])
        return replies

    def _encode(self, processor: Any, batch: Sequence[Request]) -> Any:
        chats = [[{"role": "user", "content": [_part(part) for part in request.parts]}] for request in batch]
        texts = [processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
        pictures = [[Image.open(io.BytesIO(p.jpeg)).convert("RGB") for p in request.pictures] for request in batch]
        images = pictures if any(pictures) else None
        return processor(text=texts, images=images, padding=True, return_tensors="pt")

    def _load(self) -> tuple[Any, Any]:
        if self._loaded:
            return self._loaded
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = torch.float32 if self.dtype == "auto" and self.device == "cpu" else self.dtype
        try:
            processor = AutoProcessor.from_pretrained(self.model_name)
            if getattr(processor, "image_processor", None) is None:
                raise UserError("proposer.model", self.model_name, "takes no pictures", "name a vision-language model")
            if not getattr(processor, "chat_template", None):
                raise UserError("proposer.model", self.model_name, "has no chat template", "name an instruct model")
            model: Any = AutoModelForImageTextToText.from_pretrained(self.model_name, dtype=dtype)
        except (OSError, ValueError) as error:
            found = f"can't be loaded as a vision-language model ({_first_line(error)})"
            raise UserError("proposer.model", self.model_name, found, "give a model folder or a hub name") from None
        processor.tokenizer.padding_side = "left"  # generation goes on from the last token of every row
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        self._loaded = processor, model.to(self.device).eval()
        return self._loaded


def _part(part: str | Picture) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _count_written(row: list[int], generation: Any) -> int | None:
    """Tokens that the model wrote in a row of the output, its end token included; None where it found no end."""
    ends = generation.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    return next((place + 1 for place, token in enumerate(row) if token in ends), None)


def _context(model: Any) -> int | None:
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def _identity(model: str) -> dict[str, Any] | str:
    """What stands for the weights in a recipe: a hub name, or a folder's files with their sizes and its config."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    sizes = {f.name: f.stat().st_size for f in sorted(folder.iterdir()) if f.is_file()}
    config = folder / "config.json"
    text = config.read_bytes() if config.is_file() else b""
    return {"config": hashlib.sha256(text).hexdigest(), "files": sizes}


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _first_line(error: Exception) -> str:
    return one_line(str(error).strip().partition("\n")[0], 200) or type(error).__name__
