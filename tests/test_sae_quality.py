"""Codes, reconstructions and quality against loops over tokens and latents, where half of the latents fire too."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from saelab.errors import UserError
from saelab.sae import SAE, Meta, model, quality
from saelab.sae.fidelity import covariance_of
from saelab.sae.rules import gates

D_IN, LATENTS, K = 6, 40, 4


def made(rule: str) -> SAE:
    g = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(LATENTS, D_IN, generator=g), dim=1)
    encoder = rows + 0.1 * torch.randn(LATENTS, D_IN, generator=g)
    bias, centre = 0.2 * torch.randn(LATENTS, generator=g), torch.randn(D_IN, generator=g)
    bias[7] = -1e6  # never fires
    threshold = torch.linspace(-0.5, 1.5, LATENTS) if rule in ("jumprelu", "batchtopk") else None
    return SAE(encoder, bias, rows, centre, Meta(rule, K if rule != "relu" else 0), threshold)


def one_by_one(sae: SAE, token: torch.Tensor) -> list[float]:
    """The codes of one token, latent by latent, in float64."""
    centred = token.double() - sae.b_dec.double()
    pre = [float(row.double() @ centred + bias) for row, bias in zip(sae.W_enc, sae.b_enc, strict=True)]
    if sae.meta.rule == "topk":
        kept = sorted(range(LATENTS), key=lambda i: -pre[i])[:K]
        return [max(0.0, p) if i in kept else 0.0 for i, p in enumerate(pre)]
    limits = [0.0] * LATENTS if sae.threshold is None else [max(0.0, float(t)) for t in sae.threshold]
    return [p if p > limit else 0.0 for p, limit in zip(pre, limits, strict=True)]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(53, D_IN, generator=torch.Generator().manual_seed(2)) * 2 + 1


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu", "relu"])
def test_codes_reconstruction_and_quality_are_those_of_loops(rule, tokens, monkeypatch):
    sae = made(rule)
    wanted = torch.tensor([one_by_one(sae, token) for token in tokens], dtype=torch.float64)
    if rule == "relu":
        assert float((wanted > 0).double().mean()) > 0.4, "crowded"
    rebuilt = wanted @ sae.W_dec.double() + sae.b_dec.double()
    codes = sae.encode(tokens)
    for dense in (codes.dense(), sae.encode_dense(tokens)):
        torch.testing.assert_close(dense.double(), wanted, rtol=1e-5, atol=1e-5)
    for found in (sae(tokens), sae.decode(codes), sae.decode(sae.encode_dense(tokens))):
        torch.testing.assert_close(found.double(), rebuilt, rtol=1e-5, atol=1e-4)

    wide, fires = tokens.double(), wanted > 0
    share = fires.double().mean(0)
    centred = torch.cosine_similarity(wide - sae.b_dec, rebuilt - sae.b_dec.double(), dim=1)
    for room in (1 << 24, 7 * LATENTS, 1):
        monkeypatch.setattr(model, "AT_ONCE", room)
        found = quality(sae, tokens)
        total = (wide - wide.mean(0)).square().sum()
        assert found["fvu"] == pytest.approx(float((wide - rebuilt).square().sum() / total), rel=1e-5)
        assert found["l0"] == pytest.approx(float(fires.double().sum(1).mean()))
        assert found["cosine"] == pytest.approx(float(centred.mean()), rel=1e-5)
        assert found["dead"] == pytest.approx(float((share == 0).double().mean())) and found["dead"] > 0
        assert found["rare"] == pytest.approx(float(((fires.sum(0) > 0) & (fires.sum(0) < 10)).double().mean()))
        assert found["dense"] == pytest.approx(float((share >= 0.8).double().mean()))
        edges = found["density"]["edges"]
        for low, high, count in zip(edges, edges[1:], found["density"]["counts"], strict=False):
            logs = [math.log10(s) for s in share.tolist() if s > 0]
            assert count == sum(low <= at < high or at == high == 0 for at in logs)


@pytest.mark.parametrize("rule", ["jumprelu", "batchtopk"])
def test_a_latent_at_its_threshold_is_silent(rule):
    """'Exceeds', in both papers: what is just as large stays out, of codes, reconstructions and training."""
    sae = SAE(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3), Meta(rule, 1), torch.tensor([1.0, 1.0, -2.0]))
    x = torch.tensor([[1.0, 1.0 + 2**-20, 0.0], [0.5, 2.0, -1.0]])
    expected = torch.tensor([[0.0, 1.0 + 2**-20, 0.0], [0.0, 2.0, 0.0]])
    assert torch.equal(sae.encode(x).dense(), expected) and torch.equal(sae(x), expected)
    assert torch.equal(sae.encode_dense(x), expected)
    threshold, width = torch.tensor([1.0, 1.0, 0.0]), torch.tensor(0.1)
    assert torch.equal(gates._Jump.apply(x.relu(), threshold, width), expected)
    assert torch.equal(gates._Step.apply(x.relu(), threshold, width), (expected > 0).float())


def test_a_crowded_sae_is_measured_in_chunks(tokens, monkeypatch):
    sae, seen = made("relu"), []
    plain = sae.pre_activations
    monkeypatch.setattr(sae, "pre_activations", lambda x: (seen.append(len(x)), plain(x))[1])
    monkeypatch.setattr(model, "AT_ONCE", 10 * LATENTS)
    quality(sae, tokens)
    sae(tokens)
    assert max(seen) == 10 and sum(seen) == 2 * len(tokens)


def test_no_tokens_give_no_codes():
    for rule in ("topk", "relu"):
        sae = made(rule)
        assert sae.encode(torch.empty(0, D_IN)).dense().shape == (0, LATENTS)
        assert sae(torch.empty(0, D_IN)).shape == (0, D_IN)


def test_chunks_of_any_form_are_measured_as_the_array():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)).astype(np.float32)
    x[np.abs(x) < 0.3] = 0
    sae = SAE(*(torch.from_numpy(rng.normal(size=s)).float() for s in ((9, 6), 9, (9, 6), 6)), Meta("topk", 3))
    wanted, spread = quality(sae, x), covariance_of(x)
    for form in (lambda c: c.astype(">f4"), csr_matrix, torch.tensor, lambda c: c.tolist(), lambda c: c.astype(float)):
        parts = [form(x[:7]), form(x[7:7]) if len(np.shape(form(x[7:7]))) == 2 else form(x[:0]), form(x[7:])]
        parts = [part for part in parts if not isinstance(part, list) or part]
        found = quality(sae, iter(parts))
        assert found["fvu"] == pytest.approx(wanted["fvu"], rel=1e-6) and found["tokens"] == 120
        torch.testing.assert_close(covariance_of(iter(parts)), spread, rtol=1e-6, atol=1e-6)
    for bad in (np.nan, np.inf, 1e300):
        broken = x[7:].astype(float)
        broken[5, 2] = bad
        for measure in (lambda data: quality(sae, data), covariance_of):
            with pytest.raises(UserError, match="activations=chunk 1: row 5 holds NaN"):
                measure([x[:7], broken])
    for other in (x[0], x[:, :4], np.array([["a"]])):
        with pytest.raises(UserError, match="activations="):
            quality(sae, [x[:7], other])
