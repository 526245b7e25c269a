"""Wide dictionaries in chunks of rows: the same choice and the same step, without batch x latents numbers."""

import pytest
import torch
from test_sae_memory import Held

from saelab.sae import SAE, Meta, SAEConfig, Trainer, select

D, LATENTS, BATCH = 12, 256, 96


def data(seed: int = 0) -> torch.Tensor:
    return torch.randn(BATCH, D, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.mark.parametrize("rows", [1, 7, 32, BATCH])
@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_a_step_in_chunks_of_rows_is_the_step(rule, rows, monkeypatch):
    config = SAEConfig(D, LATENTS, rule=rule, k=4, lr=1e-3, screen="float32", dead_after=3 * BATCH, auxk_stride=2)
    whole, chunked = Trainer(config), Trainer(config)
    for step in range(8):
        expected = whole.step(data(step))
        with monkeypatch.context() as patched:
            patched.setattr(select, "AT_ONCE", rows * LATENTS)
            found = chunked.step(data(step))
        assert (chunked._pre is None) == (rows < BATCH)
        assert found.keys() == expected.keys() and int(found["silent"]) == int(expected["silent"])
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert "auxk" in found, "AuxK must have had work"
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(chunked.weights[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_batch_in_chunks_keeps_the_first_of_equals(monkeypatch):
    x, W = torch.ones(6, 3), torch.ones(64, 3)
    monkeypatch.setattr(select, "AT_ONCE", 2 * 64)
    values, flat = select.chunked_top_of_batch(x, W, torch.zeros(64), 100)
    assert flat.tolist() == list(range(100)) and torch.equal(values, torch.full((100,), 3.0))
    values, places = select.chunked_top_k(x, W, torch.zeros(64), 5)
    assert places.sort(1).values.tolist() == [[0, 1, 2, 3, 4]] * 6


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_a_step_in_chunks_holds_no_batch_of_pre_activations(rule, monkeypatch):
    """64 rows at once of 2048: beyond weights and pairs, a chunk and what ranking takes of it."""
    latents, batch, rows = 4096, 2048, 64
    monkeypatch.setattr(select, "AT_ONCE", rows * latents)
    config = SAEConfig(D, latents, rule=rule, k=4, screen="float32", auxk_weight=0)
    trainer, x = Trainer(config), torch.randn(batch, D, generator=torch.Generator().manual_seed(0))
    trainer.step(x)
    with Held() as held:
        trainer.step(x)
    pairs = batch * 4 * 16 * 4  # pairs and their groups' neighbours, a few times over
    assert held.peak < 2 * rows * latents * 4 + 4 * pairs + 8 * batch * D * 4 < batch * latents * 4 / 4


@pytest.mark.parametrize(("rule", "threshold"), [("topk", None), ("batchtopk", 2.0), ("relu", None)])
def test_encoding_in_chunks_of_rows_gives_the_codes(rule, threshold, monkeypatch):
    """Whole numbers, so that products are exact; on each row another number of latents fires, on the first none."""
    g = torch.Generator().manual_seed(0)
    W = torch.randint(-3, 4, (LATENTS, D), generator=g).float()
    level = None if threshold is None else torch.full((LATENTS,), threshold)
    sae = SAE(W, -torch.ones(LATENTS), W, torch.zeros(D), Meta(rule, 5), level)
    x = torch.randint(-3, 4, (BATCH, D), generator=g).float() * (torch.arange(BATCH) // 10).unsqueeze(1)
    whole = sae.encode(x)
    for rows in (1, 10, 40):
        monkeypatch.setattr(select, "AT_ONCE", rows * LATENTS)
        found = sae.encode(x)
        assert found.values.shape == whole.values.shape and found.latents == LATENTS
        assert torch.equal(found.dense(), whole.dense())
