"""Steps as CUDA graphs, on a pretended card: the numbers of steps taken one by one, whatever changes between them."""

import dataclasses
import logging

import pytest
import torch
from elsewhere import Elsewhere, Graphs, Streams
from test_sae_elsewhere import CONFIGS, Stop

from saelab.artifacts import read_json
from saelab.errors import UserError
from saelab.sae import SAE, SAEConfig, TrainConfig, Trainer, fit, rough
from saelab.sae import train as training
from saelab.sae.graph import WARM_UP, Graph
from saelab.sae.start import check_device

STEPS = 14


def batch(step: int) -> torch.Tensor:
    return torch.randn(64, 12, generator=torch.Generator().manual_seed(step)) + 2


def factor(step: int) -> float:
    return 1 - step / (2 * STEPS)


def close(one: torch.Tensor, other: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", [*CONFIGS, "clipped", "pieces"])
def test_steps_as_a_graph_are_those_taken_one_by_one(name, monkeypatch):
    """The rate falls, batches differ, latents fall silent and come back, thresholds follow."""
    graphs = Graphs(monkeypatch)
    config = CONFIGS["topk" if name in ("clipped", "pieces") else name]
    pieces = 4 if name == "pieces" else 1
    if name == "clipped":
        config = SAEConfig(12, 128, k=3, lr=2e-3, dead_after=300, clip=0.3)
    with Elsewhere("cuda"):
        plain = Trainer(config, "cuda", accumulate=pieces)
        graph = Trainer(config, "cuda", accumulate=pieces, graph=True)
        kept = []
        for step in range(STEPS):
            x = batch(step).to("cuda")
            kept.append((plain.step(x, factor(step)), graph.step(x, factor(step))))
        for step, (one, other) in enumerate(kept):
            assert one.keys() == other.keys()
            for number in one:
                close(other[number], one[number], f"{number} of step {step}")
        for part, tensor in plain.weights.items():
            close(graph.weights[part], tensor, part)
        close(graph.threshold, plain.threshold, "threshold")
        assert torch.equal(graph.silent.cpu(), plain.silent.cpu()) and graph.steps == plain.steps
        resampled = sum(step % 4 == 0 for step in range(4, STEPS)) if name == "relu" else 0
        assert graphs.replays == STEPS - WARM_UP - resampled and len(graphs.made) == 1
        if name == "topk":
            assert float(sum(other["auxk"] for _, other in kept[WARM_UP:])) > 0, "AuxK was at work in the graph"


def test_a_screen_that_finds_too_little_is_left_and_the_step_captured_anew(monkeypatch, caplog):
    graphs = Graphs(monkeypatch)
    monkeypatch.setattr(training, "RECALL_EVERY", 8)
    monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device: True)
    config = SAEConfig(12, 128, k=3, lr=2e-3, screen="bfloat16")
    with Elsewhere("cuda"):
        trainer, plain = Trainer(config, "cuda", graph=True), Trainer(config, "cuda")
        for step in range(8):
            for one in (trainer, plain):
                one.step(batch(step).to("cuda"))
        assert trainer.screened and graphs.replays == 8 - WARM_UP
        for one in (trainer, plain):  # pre-activations that bfloat16 can't tell apart
            one.weights["W_enc"].copy_(one.weights["W_enc"][:1] + 1e-5 * one.weights["W_enc"])
        for step in range(8, STEPS):
            found = [one.step(batch(step).to("cuda")) for one in (trainer, plain)]
            assert ("screen_recall" in found[0]) == (step == 8)
        assert not trainer.screened and "float32 chooses from here on" in caplog.text
        assert len(graphs.made) == 2 and graphs.replays == STEPS - 2 * WARM_UP
        for part, tensor in plain.weights.items():
            close(trainer.weights[part], tensor, part)


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu"])
def test_a_run_of_graphs_resumes_and_is_of_the_same_recipe(rule, tmp_path, monkeypatch):
    graphs = Graphs(monkeypatch)
    Streams(monkeypatch)
    x = torch.cat([batch(step) for step in range(10)])
    config = CONFIGS[rule]
    train = TrainConfig(batch_size=64, steps=16, log_every=1, checkpoint_every=6, graph=True)

    def stops(which: int, step: int, numbers: dict) -> None:
        if step == 9:
            raise Stop

    with Elsewhere("cuda"):
        whole = fit(x, config, train, tmp_path / "whole", device="cuda", progress=False)
        with pytest.raises(Stop):
            fit(x, config, train, tmp_path / "cut", device="cuda", progress=False, logger=stops)
        cut = fit(x, config, train, tmp_path / "cut", device="cuda", progress=False)
        assert graphs.replays > 16
        fit(x, config, dataclasses.replace(train, graph=False), tmp_path / "plain", device="cuda", progress=False)
    recipes = [read_json(tmp_path / name / "training.json") for name in ("whole", "cut", "plain")]
    assert recipes[0] == recipes[1] == recipes[2]
    plain = SAE.load(tmp_path / "plain").tensors()
    for part, tensor in whole.sae.tensors().items():
        assert torch.equal(SAE.load(tmp_path / "whole").tensors()[part], tensor.cpu())
        for other in (cut.sae.tensors()[part], plain[part]):
            close(other, tensor, part)


def test_a_step_that_waits_for_the_device_is_taken_by_itself(monkeypatch, caplog):
    graphs, seen = Graphs(monkeypatch), []
    total = torch.zeros(())

    def update(x: torch.Tensor) -> dict[str, torch.Tensor]:
        total.add_(x.sum())
        seen.append(float(total))
        return {"total": total}

    graph = Graph()
    with caplog.at_level(logging.WARNING):
        for step in range(1, 7):
            found = graph.step(update, torch.ones(step))
    assert float(found["total"]) == 21 and graphs.replays == 0
    assert caplog.text.count("this step can't be one (operation not permitted") == 1
    assert len(seen) == 6, "what the capture did is undone, and done by itself"


def test_a_batch_of_another_shape_is_taken_by_itself_and_numbers_stay(monkeypatch):
    graphs, total = Graphs(monkeypatch), torch.zeros(())

    def update(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": total.add_(x.sum())}

    graph, found = Graph(), []
    for rows in (2, 2, 2, 2, 2, 3, 2):
        found.append(graph.step(update, torch.ones(rows))["total"])
    assert graphs.replays == 3 and float(total) == 15
    assert [float(number) for number in found[3:5]] == [8, 10] and float(found[6]) == 15


@pytest.mark.parametrize(
    ("settings", "device", "processes", "message"),
    [
        ({}, "cpu", 1, "graph=True: needs a CUDA device, not cpu; set it to false"),
        ({}, "mps", 1, "graph=True: needs a CUDA device, not mps"),
        ({}, "cuda:1", 2, "graph=True: needs one process, not 2"),
        ({"screen": "int8"}, "cuda", 1, "screen=int8: needs the CPU, not cuda"),
        ({"screen": "float8"}, "cpu", 1, r"screen=float8: needs a card .*9\.0 or above\), not cpu; use screen=auto"),
        ({"kernels": "triton"}, "cpu", 1, "kernels=triton"),
    ],
)
def test_what_a_device_cannot_have_is_refused_before_training(settings, device, processes, message):
    with pytest.raises(UserError, match=message):
        check_device(SAEConfig(16, 64, k=4, **settings), device, not settings, processes)


def test_training_asks_before_it_begins(tmp_path):
    x = torch.cat([batch(0), batch(1)])
    with pytest.raises(UserError, match="graph=True: needs a CUDA device"):
        fit(x, CONFIGS["topk"], TrainConfig(graph=True, steps=2, batch_size=64), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
