"""Image-text models of a few thousand random weights in local folders, with their own tokenizers and transforms."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}


def transformers_clip(folder: Path, projection: int = 16) -> Any:
    """A CLIP of transformers, whose image-text space has `projection` dimensions."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    text = TOWER | {"vocab_size": len(words), "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)).eval()
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return model


def open_clip(folder: Path, width: int = 16) -> Any:
    """A CLIP of open_clip, as `local-dir:` finds it, whose image-text space has `width` dimensions."""
    import open_clip

    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    tiny = {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}
    grey = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny, "preprocess_cfg": grey}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


def siglip(folder: Path, generation: int) -> tuple[Any, Any]:
    """A tiny SigLIP in `folder`, with the tokenizer of the first or the second (which knows no longest text)."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    if generation == 1:
        trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
        pytest.importorskip("google.protobuf")
        from transformers import SiglipTokenizer

        words = [f"{a}{b} {b}{a}" for a in LETTERS for b in LETTERS]
        trainer.train(sentence_iterator=iter(words), model_prefix=str(folder / "spiece"), vocab_size=60)
        tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    else:
        from transformers import Siglip2Tokenizer

        words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
        tokenizer = Siglip2Tokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}))
    model.eval().save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return model, SiglipProcessor.from_pretrained(folder)
