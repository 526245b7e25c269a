"""The bench of steps beside the exact one, and of a whole command with memory kept and given back."""

import numpy as np
import pytest
from PIL import Image

from saelab.bench import quickstart, sae
from saelab.errors import UserError


def test_a_step_is_measured_once_for_each_product_that_it_settles_on():
    found = [r["case"] for r in sae.cases([[64, 1024, 32]], 2, ["topk"], 1, ["auto", "float32", "bfloat16", "auto"])]
    steps = [case.rsplit(", ", 1)[1] for case in found if case.startswith("sae step, topk 64->1024")]
    assert len(steps) == len(set(steps)) and {"float32", "bfloat16"} <= set(steps)
    assert len(found) == len(steps) + 2, "AuxK and the loader"
    assert sum("float32" in r["case"] for r in sae.cases([[8, 16, 4]], 2, ["topk"], 1, ["float32"])) == 1


def test_a_command_is_timed_with_memory_given_back_and_kept(tmp_path):
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    asked = ["images=folder", f"images.root={tmp_path}", "host.weights=random", "layers=[_blocks.15]", "workers=0"]
    back, kept = quickstart.cases("cache", asked)
    assert (back["case"], kept["case"]) == ("cache, memory system", "cache, memory kept")
    assert all(r["user_seconds"] > 0 and r["system_seconds"] > 0 and "stages" not in r for r in (back, kept))
    with pytest.raises(UserError, match=r"ended with 2: saelab: images.root=.*no such folder"):
        next(quickstart.cases("cache", ["images=folder", f"images.root={tmp_path / 'nowhere'}"]))
