"""The bench of what SAEs reach: its numbers against brute force, equal batches, and input that it refuses."""

import numpy as np
import pytest
import torch

from saelab.bench import peers, quality
from saelab.errors import UserError

SETTINGS = {"latents": 4, "k": 3, "steps": 30, "batch": 64, "rates": [1e-4, 3e-3], "seeds": [0, 1]}


def planted(path) -> str:
    """Tokens of three of 24 directions each."""
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(24, 16, generator=g), dim=1)
    codes = torch.zeros(1200, 24).scatter(1, torch.rand(1200, 24, generator=g).topk(3).indices, 1.0)
    np.save(path, ((codes + 0.2) @ rows).half().numpy())
    return str(path)


def test_each_trainer_counts_with_the_rate_that_is_best_on_other_tokens(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(peers, "installed", lambda: {"plain": peers.plain_torch, "broken": lambda *given: 1 / 0})
    monkeypatch.setattr(peers, "version_of", lambda name: "1")
    real = quality.fvu
    monkeypatch.setattr(quality, "fvu", lambda one, x: (seen.append(x.clone()), real(one, x))[1])
    *_, ours, plain, broken = quality.cases([planted(tmp_path / "a.npy")], **SETTINGS, others=True)
    assert ours["rate"] == plain["rate"] == 3e-3 and broken["skipped"] == "ZeroDivisionError: division by zero"
    for found in (ours, plain):
        assert len(found["fvu_seeds"]) == 2 and found["fvu"] == pytest.approx(np.mean(found["fvu_seeds"]), abs=1e-4)
        assert 0 < found["fvu"] < 0.9 and 0 <= found["dead_or_rare"] <= 1
    tuning, test = seen[0], seen[2]
    assert len(tuning) == len(test) == 180 and not torch.equal(tuning, test)
    assert torch.equal(seen[1], tuning) and torch.equal(seen[3], test)


@pytest.mark.parametrize("unused", [{1e-3: 0.0, 2e-3: 0.02, 4e-3: 0.1}, {1e-3: 0.03, 2e-3: 0.5, 4e-3: 1.0}])
def test_the_best_rate_of_those_that_leave_few_latents_unused_has_its_own_numbers(tmp_path, monkeypatch, unused):
    left, trained = {1e-3: 0.5, 2e-3: 0.4, 4e-3: 0.2}, []

    def build(d_in, latents, k, mean):
        rates = []  # of the steps: the first is the whole rate

        def rebuild(x):
            codes = torch.ones(len(x), 100)
            codes[:, : round(100 * unused[rates[0]])] = 0
            return x * (1 - left[rates[0]]), codes

        trained.append(rates)
        return peers.Peer(lambda x, rate: rates.append(rate), rebuild)

    monkeypatch.setattr(peers, "installed", lambda: {"fake": build})
    monkeypatch.setattr(peers, "version_of", lambda name: "1")
    settings = {**SETTINGS, "rates": sorted(left), "steps": 10}
    *_, fake = quality.cases([planted(tmp_path / "a.npy")], **settings, others=True)
    assert (fake["rate"], fake["dead_or_rare"]) == (4e-3, unused[4e-3])
    few, both = fake["few_unused"], unused[2e-3] == 0.02
    seeds = [1e-3, 2e-3, 4e-3] + ([2e-3, 4e-3] if both else [4e-3])  # the others' seeds only where they count
    assert sorted(rates[0] for rates in trained) == sorted(seeds)
    if not both:
        assert few is None
        return
    assert (few["rate"], few["dead_or_rare"], len(few["fvu_seeds"])) == (2e-3, 0.02, 2)
    assert few["fvu"] / fake["fvu"] == pytest.approx(4, abs=0.01)


def test_all_trainers_see_the_same_batches_and_rates(monkeypatch):
    rows, seen = torch.randn(300, 16), {}

    def record(name):
        kept = seen.setdefault(name, [])
        return peers.Peer(lambda x, lr: kept.append((x.clone(), lr)), lambda x: (x, x))

    for name in ("one", "other"):
        torch.rand(7 * len(seen))  # what one draws must not move another's batches
        quality.train(rows, 32, 3, 10, 64, lambda *given, name=name: record(name), 1e-3, 5)
    assert all(torch.equal(a, b) and r == s for (a, r), (b, s) in zip(seen["one"], seen["other"], strict=True))
    rates = [rate for _, rate in seen["one"]]
    assert rates[:9] == [1e-3] * 9 and rates[9] == pytest.approx(5e-4)


def test_fvu_and_latents_without_use_are_brute_forces(monkeypatch):
    monkeypatch.setattr(quality, "CHUNK", 7)
    g = torch.Generator().manual_seed(0)
    x, codes = torch.randn(60, 5, generator=g) + 3, (torch.rand(60, 8, generator=g) < 0.17).float()
    made = {tuple(row.tolist()): i for i, row in enumerate(x)}
    places = lambda part: [made[tuple(row.tolist())] for row in part]  # noqa: E731
    found = quality.fvu(lambda part: (part * 0.5, part), x)
    assert found == pytest.approx(float((x / 2).double().square().sum() / (x - x.mean(0)).double().square().sum()))
    rare = quality.dead_or_rare(lambda part: (part, codes[places(part)]), x)
    assert rare == float((codes.sum(0) < 10).double().mean()) and 0 < rare < 1
    assert quality.fvu(lambda part: (part * torch.nan, part), x) == np.inf


def test_data_that_is_none_is_refused_before_anything_is_trained(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(9))
    with pytest.raises(UserError, match=r"quality\.data"):
        next(quality.cases([], **SETTINGS, others=False))
    with pytest.raises(UserError, match=r"\[tokens, d_in\], found \[9\]"):
        next(quality.cases([planted(tmp_path / "a.npy"), str(tmp_path / "flat.npy")], **SETTINGS, others=False))
