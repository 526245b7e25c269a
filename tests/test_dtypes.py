"""Numbers mean the same in every dtype: scores, nulls and sets from draws of what comes as what."""

import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import metrics
from saelab.label import assign, mine, sets
from saelab.label.nulls import null_percentiles
from saelab.label.scorers.registry import SCORERS

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
POOLED = [name for name, scorer in SCORERS.items() if scorer.null is not None]
RULES = ("below_mean", "below_quantile", "zero")


def exact(shape, generator, units=False):
    """Numbers that every dtype of FLOATS holds: multiples of 1/64, up to 4."""
    drawn = torch.randn(shape, generator=generator)
    drawn = torch.nn.functional.normalize(drawn, dim=-1) if not units else drawn.relu()
    return (drawn * 64).round().clamp(-255, 255) / 64


def evidence(acts, image, label, seed=0, sparse=False, **more):
    """One world, its activations and both kinds of embeddings in the dtypes given."""
    g = torch.Generator().manual_seed(seed)
    a, emb, txt = exact((60, 5), g, units=True), exact((60, 16), g), exact((7, 16), g)
    a = a.to_sparse_csr() if sparse else a
    given = {"concepts": torch.rand(60, 7, generator=g) > 0.6, "filled_emb": exact((7, 16), g).to(label)}
    given |= {"template_emb": exact((16,), g).to(label), "decoder": exact((5, 16), g).to(image)}
    given |= {"maps": exact((60, 5, 3, 3), g).to(acts), "masks": torch.rand(60, 7, 6, 6, generator=g) > 0.7}
    return assign.Evidence.mined(a.to(acts), emb.to(image), txt.to(label), 6, **given, **more)


@pytest.mark.parametrize("name", list(SCORERS))
@settings(max_examples=12)
@given(data=st.data())
def test_scores_are_those_of_float32_whatever_comes_as_what(name, data):
    dtypes = [data.draw(st.sampled_from(FLOATS)) for _ in range(3)]
    seed, sparse = data.draw(st.integers(0, 99)), data.draw(st.booleans())
    rule = mine.ContrastRule(data.draw(st.sampled_from(RULES)))
    plain = assign.score([name], evidence(*[torch.float32] * 3, seed, sparse, rule=rule))[name]
    found = assign.score([name], evidence(*dtypes, seed, sparse, rule=rule))[name]
    torch.testing.assert_close(found.float(), plain.float(), rtol=2e-4, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("series", [False, True])
@pytest.mark.parametrize("name", POOLED)
@settings(max_examples=8)
@given(data=st.data())
def test_nulls_are_those_of_float32_whatever_comes_as_what(name, series, data):
    dtypes = [data.draw(st.sampled_from(FLOATS)) for _ in range(3)]
    seed, sparse = data.draw(st.integers(0, 99)), data.draw(st.booleans())
    rule = mine.ContrastRule(data.draw(st.sampled_from(RULES)), reuse=data.draw(st.booleans()))
    more = {"series": torch.arange(60) // 2} if series else {}
    plain = null_percentiles([name], evidence(*[torch.float32] * 3, seed, sparse, rule=rule, **more), 6)[name]
    found = null_percentiles([name], evidence(*dtypes, seed, sparse, rule=rule, **more), 6)[name]
    torch.testing.assert_close(found, plain, equal_nan=True)


@pytest.mark.parametrize("name", ["csp", "pearson", "rank_reorder"])
@settings(max_examples=4)
@given(data=st.data())
def test_sets_are_made_whatever_comes_as_what(name, data):
    dtypes = [data.draw(st.sampled_from(FLOATS)) for _ in range(3)]
    plain = sets.label_sets(evidence(*[torch.float32] * 3), name, 0.9, 20)
    assert sets.label_sets(evidence(*dtypes), name, 0.9, 20) == plain


PLAIN = {
    "semanticlens": lambda p, n, w, t: assign.semanticlens(p, t),
    "difference_of_means": lambda p, n, w, t: assign.difference_of_means(p, n, t),
    "set_projection": lambda p, n, w, t: assign.set_projection(p, n, t),
    "centred_mean": lambda p, n, w, t: assign.centred_mean(p, n[0, 0], t),
    "csp": assign.csp,
    "www": lambda p, n, w, t: assign.www(p, t, n[0, 0]),
    "decoder_direction": lambda p, n, w, t: assign.decoder_direction(p[0], t),
    "pearson": lambda p, n, w, t: assign.pearson(w, p[:, 0], t),
    "falcon": lambda p, n, w, t: assign.falcon(p[0], torch.tensor([[0, 1]]), torch.tensor([[2, 3]])),
}


@pytest.mark.parametrize("name", list(PLAIN))
@settings(max_examples=12)
@given(dtypes=st.lists(st.sampled_from((*FLOATS, "float16", "float32", "float64")), min_size=4, max_size=4))
def test_the_functions_themselves_take_any_mix(name, dtypes):
    g = torch.Generator().manual_seed(0)
    given_ = [exact((9, 5, 8), g), exact((9, 5, 8), g), exact((9, 5), g).abs(), exact((6, 8), g)]
    mixed = [x.numpy().astype(d) if isinstance(d, str) else x.to(d) for x, d in zip(given_, dtypes, strict=True)]
    if name in ("centred_mean", "www"):
        mixed[1] = torch.as_tensor(mixed[1])
    found, plain = PLAIN[name](*mixed), PLAIN[name](*given_)
    torch.testing.assert_close(found.float(), plain, rtol=2e-4, atol=2e-6, equal_nan=True)


LAYOUTS = {
    "dense": lambda a: a,
    "csr": lambda a: a.to_sparse_csr(),
    "csc": lambda a: a.to_sparse_csc(),
    "coo": lambda a: a.to_sparse(),
    "scipy csr": lambda a: scipy.sparse.csr_array(a.numpy()),
    "scipy csc": lambda a: scipy.sparse.csc_matrix(a.numpy()),
    "scipy coo": lambda a: scipy.sparse.coo_array(a.numpy()),
}


@settings(max_examples=60)
@given(
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)),
    st.integers(0, 99),
)
def test_counts_and_booleans_are_activations_in_every_layout(layout, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    whole = (torch.randint(-3, 5, (50, 4), generator=g).clamp(min=0)).to(dtype)
    emb, txt, truth = exact((50, 16), g), exact((7, 16), g), torch.rand(50, 4, generator=g) > 0.7
    seen, plain = LAYOUTS[layout](whole), whole.float()
    for a, b in zip(mine.mine_pairs(seen, emb, 5), mine.mine_pairs(plain, emb, 5), strict=True):
        torch.testing.assert_close(a, b)
    for metric in (metrics.auprc, metrics.best_f1_threshold, lambda a, t: metrics.f1(a, t, torch.ones(4))):
        torch.testing.assert_close(metric(seen, truth), metric(plain, truth), equal_nan=True)
    for name in ("contrast_evidence", "csp", "rank_reorder"):
        a, b = (assign.score([name], assign.Evidence.mined(x, emb, txt, 5))[name] for x in (seen, plain))
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5, equal_nan=True)
