"""Sparse units are evaluated from what they store: every number is that of the dense columns, in blocks of any size."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from saelab.acts import columns
from saelab.evaluate import FAITHFULNESS, Judges, Splits, evaluate, faithfulness, intervals, resampled, similar
from saelab.evaluate.evaluate import coherence
from saelab.metrics import items
from saelab.truth import Similarity, Truth
from saelab.units import UnitActivations

IMAGES, UNITS, LABELS = 300, 24, 7
SPLITS = Splits(np.arange(0, IMAGES, 2), np.arange(1, IMAGES, 2))


def awkward() -> torch.Tensor:
    """Sparse units with ties, and units that fire below 0, on most images, on none, alike everywhere, or with a NaN."""
    g = torch.Generator().manual_seed(4)
    acts = torch.randn(IMAGES, UNITS, generator=g).sub_(1.2).clamp_(min=0).mul_(8).round_().div_(4)
    acts[:, 1] *= -1
    acts[:, 2] -= (torch.rand(IMAGES, generator=g) < 0.1).float()  # both signs, and zeros between them
    acts[:, 3] = torch.rand(IMAGES, generator=g) + 50  # stored everywhere, its mean far above its spread
    acts[:, 4] = torch.rand(IMAGES, generator=g).sub_(0.3).clamp_(min=0)
    acts[:, 5] = 0.0
    acts[:, 6] = 2.5
    acts[7, 7] = torch.nan
    acts[:, 8] *= 1e-9
    return acts


def judges() -> Judges:
    g = torch.Generator().manual_seed(5)
    images = normalize(torch.randn(IMAGES, 12, generator=g), dim=1)
    labels = normalize(torch.randn(LABELS, 12, generator=g), dim=1)
    member = images @ labels.T > 0.25
    member[:, 5], member[:, 6] = False, True
    names = [f"label {i}" for i in range(LABELS)]
    known = torch.rand(IMAGES, generator=g) < 0.9
    truth = Truth(member, {name: i for i, name in enumerate(names)}, tuple(names), known, "planted")
    captions = Similarity.of("captions", images.roll(3, 0), names, labels, torch.rand(IMAGES, generator=g) < 0.7)
    return Judges(Similarity.of("judge", images, names, labels), captions, truth)


TEXTS = [None if u == 20 else f"label {u % LABELS}" for u in range(UNITS)]


@pytest.fixture(params=[None, 64, 1500])
def elements(request, monkeypatch):
    """Sizes of blocks: the usual ones, single units, and something between."""
    if request.param is not None:
        for module, name in [(items, "AT_ONCE"), (similar, "AT_ONCE"), (resampled, "ELEMENTS")]:
            monkeypatch.setattr(module, name, request.param)
        monkeypatch.setattr(intervals, "ELEMENTS", request.param)
    return request.param


def sparse(acts: torch.Tensor):
    return columns(acts.to_sparse_csr())


def test_numbers_of_sparse_units_are_those_of_their_columns(elements):
    acts, evidence = awkward(), judges()
    mine, test = acts[SPLITS.mine], acts[SPLITS.test]
    dense = faithfulness(mine, test, TEXTS, evidence, SPLITS)
    found = faithfulness(sparse(mine), sparse(test), TEXTS, evidence, SPLITS)
    assert sum(int(values.isfinite().sum()) for values in dense.values()) > 150
    for name, values in dense.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=1e-9, equal_nan=True, msg=name)


@pytest.mark.parametrize("groups", [None, np.arange(IMAGES // 2) // 3])
def test_intervals_of_sparse_units_are_those_of_their_columns(elements, groups):
    acts, evidence = awkward(), judges()
    mine, test = acts[SPLITS.mine], acts[SPLITS.test]
    given = (TEXTS, evidence, SPLITS, 1, 60, groups)
    dense = intervals.intervals(mine, test, *given)
    found = intervals.intervals(sparse(mine), sparse(test), *given)
    assert sum(map(len, dense)) > 60
    for unit, (own, wanted) in enumerate(zip(found, dense, strict=True)):
        assert own == {name: pytest.approx(bounds, abs=1e-9) for name, bounds in wanted.items()}, unit


def test_bfloat16_and_blocks_of_resamples_leave_precision_alone(monkeypatch):
    acts, drawn = awkward()[:, [0, 2, 4]], intervals.draws(IMAGES, 3, 40)
    acts[:, 2] = acts[:, 2].bfloat16().float()
    label, threshold = torch.tensor([0, 1, 2]), torch.full((3,), 0.5)
    truths = resampled.Truths.of(judges().truth.member, drawn)
    whole = truths.numbers(sparse(acts), label, threshold)["auprc"]
    monkeypatch.setattr(resampled, "ELEMENTS", 500)
    some = sparse(acts.bfloat16())
    np.testing.assert_array_equal(truths.numbers(some, label, threshold)["auprc"], whole)


def test_quantiles_of_sorted_columns_are_numpys():
    made = np.random.default_rng(0).normal(size=(57, 40))
    made[np.random.default_rng(1).random(made.shape) < 0.3] = np.nan
    made[1:, 3], made[:, 4] = np.nan, np.nan
    ordered = np.sort(made, axis=0)
    for q in (0.0, 0.013, 0.5, 0.987, 1.0):
        with np.errstate(all="ignore"):
            wanted = np.array([np.nanquantile(column, q) if np.isfinite(column).any() else np.nan for column in made.T])
        np.testing.assert_array_equal(intervals._quantile(ordered, q), wanted)


def test_an_evaluation_of_a_csr_is_that_of_the_dense_matrix():
    acts, evidence = awkward()[:, 8:], judges()
    named = [
        {"unit": u, "status": "ok", "label": text, "abstained": text is None, "scores": {"csp": {"label": text}}}
        for u, text in enumerate(TEXTS[8:])
    ]
    dense, csr = (
        evaluate(UnitActivations(x, "neuron", {}), named, evidence, SPLITS, resamples=40)
        for x in (acts, acts.to_sparse_csr())
    )
    for own, wanted in zip(csr[0], dense[0], strict=True):
        for part in ("named", "shuffled"):
            for name in FAITHFULNESS:
                wanted_one = wanted[part][name]
                assert own[part][name] == (wanted_one and pytest.approx(wanted_one, rel=1e-6, abs=1e-9)), (part, name)
        assert own["badge"] == wanted["badge"]
    assert set(coherence(sparse(acts[SPLITS.test]), evidence, SPLITS.test, 5)) > {"clarity"}
