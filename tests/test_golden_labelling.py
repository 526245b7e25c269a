"""Mining, scorers and metrics against the numbers that the upstream programs give on closed-form inputs."""

import pytest
import torch
from labelling_inputs import golden_inputs

from saelab import metrics
from saelab.label import assign, mine

ACTS, IMAGES, LABELS = golden_inputs()
LAYOUTS = [ACTS, ACTS.to_sparse_csr()]


def close(found, expected, tolerance=1e-5):
    expected = torch.tensor(expected)
    assert found.shape == expected.shape
    assert (found.float() - expected).abs().max() <= tolerance


def pairs(golden):
    ids, weights = mine.top_images(ACTS, 4)
    contrasts, _ = mine.contrast_images(ACTS, IMAGES, ids)
    return IMAGES[ids], IMAGES[contrasts], weights


def test_inputs(golden):
    for tensor, name in ((ACTS, "acts_sum"), (IMAGES, "img_sum"), (LABELS, "txt_sum")):
        assert float(tensor.double().sum()) == pytest.approx(golden["check"][name], abs=1e-5)


@pytest.mark.parametrize("acts", LAYOUTS, ids=["dense", "csr"])
def test_mining(golden, acts):
    ids, values = mine.top_images(acts, 4)
    assert ids.tolist() == golden["top_ids_float32"]
    assert torch.equal(values, ACTS.T.gather(1, ids))
    contrasts, similarity = mine.contrast_images(acts, IMAGES, ids)
    assert contrasts.tolist() == golden["csp_negatives"]
    close(similarity, golden["csp_similarity"])
    close(mine.column_means(acts), golden["csp_mean_threshold"])


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_csp(golden, gamma):
    close(assign.csp(*pairs(golden), LABELS, gamma=gamma), golden[f"csp_gamma_{gamma}"])


def test_semanticlens(golden):
    positives, _, _ = pairs(golden)
    close(assign.semanticlens(positives, LABELS), golden["semanticlens"]["scores"])
    close(assign.semanticlens(positives, LABELS), golden["neurolens_semanticlens"])
    close(metrics.clarity(positives), golden["semanticlens"]["clarity"])
    close(metrics.redundancy(positives).mean(), golden["semanticlens"]["redundancy"])
    close(metrics.polysemanticity(positives), golden["semanticlens"]["polysemanticity"])


@pytest.mark.parametrize("acts", LAYOUTS, ids=["dense", "csr"])
def test_clip_dissect(golden, acts):
    expected = golden["clip_dissect"]
    close(assign.soft_wpmi(acts, IMAGES, LABELS, top_k=4), expected["soft_wpmi_topk4"], 1e-4)
    close(assign.wpmi(acts, IMAGES, LABELS, top_k=4), expected["wpmi_topk4"])
    close(assign.cosine(acts, IMAGES, LABELS), expected["cos_similarity"])
    close(assign.cos_cubed(acts, IMAGES, LABELS), expected["cos_similarity_cubed"])
    close(assign.clip_dissect_neurolens(acts, IMAGES, LABELS, top_k=4), golden["neurolens_clipdissect_temp10"])


@pytest.mark.parametrize("acts", LAYOUTS, ids=["dense", "csr"])
def test_invert(golden, acts):
    concepts = IMAGES @ LABELS.T > 0.3
    assert concepts.sum(dim=0).tolist() == golden["invert"]["positives"]
    close(assign.invert_auc(acts, concepts), golden["invert"]["auc"])


@pytest.mark.parametrize("acts", LAYOUTS, ids=["dense", "csr"])
def test_metrics(golden, acts):
    close(metrics.monosemanticity(acts, IMAGES), golden["monosemanticity"])
    sims = (IMAGES @ LABELS.T)[:, :5]
    close(metrics.simulation_correlation(acts, sims), golden["simulation_corr_unit_j_label_j"])


def test_cosy(golden):
    expected = golden["cosy_first10_vs_rest"]
    generated, control = ACTS[:10], ACTS[10:]
    for g, c in ((generated, control), (generated.to_sparse_csr(), control.to_sparse_csr())):
        close(metrics.auroc(g, c), expected["auc"])
        close(metrics.auroc(g, c, ties="strict"), expected["auc_strict"])
        close(metrics.mad(g, c), expected["mad"])
        close(500 - metrics.mann_whitney(g, c)[0], expected["U1_control_first"])
