"""The bench of steps beside the exact one, and of a whole command with memory kept and given back."""

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere, Graphs
from PIL import Image

from saelab.bench import quickstart, sae, sae_gpu
from saelab.errors import UserError
from saelab.sae import Trainer, objectives


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


SMALL = {"shapes": [[16, 256, 64]], "k": 2, "rounds": 1, "steps": 40, "batch": 64, "seconds": 60}
EVERY = {"precisions": list(sae_gpu.PRECISIONS), "kernels": ["torch"]}


def test_a_gpus_table_has_each_precision_and_what_it_reaches():
    found = list(sae_gpu.cases(**SMALL, **EVERY, device="cpu"))
    steps = [record for record in found if "floor_bytes" in record]
    assert len(steps) == 3 and all(record["floor_operations"] >= 0 and record["idle"] is None for record in steps)
    reached = [record for record in found if "fvu" in record]
    assert [record["screen"] for record in reached] == ["float32", "float32", "bfloat16"]
    assert [record["screen_recall"] for record in reached] == [None, None, 1.0]
    assert len({round(record["fvu"], 3) for record in reached}) == 1 and 0 < reached[0]["fvu"] < 1
    lacks = [record["skipped"] for record in found if "skipped" in record]  # a step, and what it reaches
    needs = "needs a card that multiplies it (compute capability 9.0 or above), not cpu"
    assert lacks == [f"screen=float8: {needs}; use screen=auto"] * 2


def test_a_gpus_table_ends_in_its_time_and_says_what_it_lacks():
    found = list(sae_gpu.cases(**{**SMALL, "seconds": -1}, **EVERY, device="cpu"))
    assert len(found) == 8 and all(record["skipped"].startswith("no time left") for record in found)
    with pytest.raises(UserError, match=r"sae_gpu\.precisions=half: one of float32, tf32, bfloat16, float8"):
        next(sae_gpu.cases(**SMALL, precisions=["half"], kernels=["torch"], device="cpu"))
    assert list(sae_gpu.cases(**SMALL, **EVERY, device="cuda")) == [
        {"case": "sae step on cuda", "skipped": "no CUDA device"}
    ]


def test_time_without_a_kernel_is_what_no_span_covers():
    assert sae_gpu.uncovered([(0, 2), (1, 3), (8, 10), (8.5, 9)]) == 0.5
    assert sae_gpu.uncovered([(4, 5), (0, 10)]) == 0 and sae_gpu.uncovered([]) is None


@pytest.mark.parametrize("refuses", [False, True])
def test_a_step_is_timed_as_a_graph_too_where_it_can_be_captured(refuses, monkeypatch):
    """On a pretended card, whose graphs hold no step that waits for it."""
    torch.manual_seed(0)  # of other tokens bfloat16 may find too few of the top k
    line = sae_gpu.Line(16, 256, 64, 2, "bfloat16", "torch", "cuda")
    Trainer(line.config).step(torch.randn(64, 16))  # what torch imports with a first step looks for real cards
    graphs, real = Graphs(monkeypatch), objectives.sparse_gradients

    def waits(*given, **more):
        found, error = real(*given, **more)
        return found, error * float(error.sum() == error.sum())

    if refuses:
        monkeypatch.setattr(objectives, "sparse_gradients", waits)
    fakes = {"synchronize": lambda: None, "is_available": lambda: True}
    fakes |= {"memory_allocated": lambda: 0, "max_memory_allocated": lambda: 5 << 20}
    fakes |= {"reset_peak_memory_stats": lambda: None, "set_sync_debug_mode": lambda mode: None}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(sae_gpu, "idle", lambda step: 0.25)
    with Elsewhere("cuda"):
        plain, captured = sae_gpu.steps_of(line, 1, 1e9)
        assert not plain["graph"] and plain["screen"] == "bfloat16" and plain["peak_mb"] == 5 and plain["idle"] == 0.25
        if refuses:
            assert captured == {"graph": True, "skipped": "operation not permitted when stream is capturing"}
        else:
            assert captured["graph"] and graphs.replays >= 5 and captured["floor_bytes"] > 0


def test_bytes_of_a_step_are_adams_and_the_tokens():
    found = sae_gpu.bytes_of_step(sae_gpu.Line(768, 24576, 32768, 32, "tf32", "torch", "cuda"))
    numbers = 768 * 24576
    assert found["floor_bytes"] == 2 * numbers * 4 * 8 + 2 * 32768 * 768 * 4
    trainer = Trainer(sae_gpu.Line(8, 32, 4, 2, "float32", "torch", "cpu").config)
    trainer.step(torch.randn(4, 8))
    moments = sum(t.numel() for s in trainer.optimizer.state.values() for n, t in s.items() if n.startswith("exp"))
    assert moments == 2 * (2 * 8 * 32 + 32 + 8), "two moments a weight"
