"""Loss recovered against splicing by hand, probes against brute force, stability against a known permutation."""

import numpy as np
import pytest
import torch

from saelab import hosts
from saelab.sae import SAE, Meta
from saelab.sae.fidelity import loss_recovered, probe_accuracy, seed_stability

HOSTS = [("timm:resnet18", "layer3", "all"), ("timm:vit_tiny_patch16_224", "blocks.6", "all")]


class Classifier:
    """A small real network with a place to splice: mean of the tokens, then a linear head."""

    def __init__(self, d_in: int, classes: int) -> None:
        self.head = torch.randn(classes, d_in, generator=torch.Generator().manual_seed(1)) * 3

    def logits_with(self, batch, layer, replace, policy="all"):
        return replace(batch.flatten(2).transpose(1, 2)).mean(1) @ self.head.T


def perfect(d_in: int) -> SAE:
    """Both signs of each coordinate: reconstructs everything."""
    rows = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    return SAE(rows, torch.zeros(2 * d_in), rows, torch.zeros(d_in), Meta("relu", 0))


def pictures() -> list:
    g = torch.Generator().manual_seed(2)
    return [(torch.randn(7, 3, 4, 4, generator=g), torch.randint(0, 5, (7,), generator=g)) for _ in range(2)]


def test_a_perfect_reconstruction_recovers_all_and_a_dead_one_nothing():
    host, sae = Classifier(3, 5), perfect(3)
    found = loss_recovered(host, sae, "layer", pictures())
    assert found["ce_recovered"] == pytest.approx(1, abs=1e-6) and found["agreement"] == 1
    assert found["kl"] == pytest.approx(0, abs=1e-10) and found["top1"] == found["top1_sae"]
    dead = SAE(sae.W_enc, torch.full((6,), -1e6), sae.W_dec, sae.b_dec, sae.meta)
    none = loss_recovered(host, dead, "layer", pictures())
    assert none["ce_recovered"] == 0 and none["ce_sae"] == none["ce_mean"] == pytest.approx(np.log(5))
    truth = torch.cat([c for _, c in pictures()])
    logits = torch.cat([p.mean((2, 3)) @ host.head.T for p, _ in pictures()])
    assert none["ce"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, truth)), rel=1e-5)
    uniform = torch.full((5,), 0.2)
    own = logits.softmax(1)
    assert none["kl"] == pytest.approx(float((own * (own / uniform).log()).sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize(("name", "layer", "policy"), HOSTS)
def test_loss_recovered_splices_into_convs_and_transformers(name, layer, policy):
    """Real networks: what a hook of torch's own gives, with the reconstruction put in by hand."""
    host = hosts.load(name, weights="random", seed=0)
    batch = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tokens = host.tokens(batch, [layer], policy)[layer].flatten(0, 1)
    g = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(32, tokens.shape[1], generator=g), dim=1)
    sae = SAE(rows, torch.zeros(32), rows, tokens.mean(0), Meta("topk", 4))
    classes = torch.tensor([1, 5, 7])
    found = loss_recovered(host, sae, layer, [(batch[:2], classes[:2]), (batch[2:], classes[2:])], policy)

    def hooked(change) -> torch.Tensor:
        def put_in(module, inputs, output):
            if output.ndim == 4:  # [images, channels, height, width]
                flat = output.flatten(2).transpose(1, 2)
                return change(flat.flatten(0, 1)).view_as(flat).transpose(1, 2).reshape(output.shape)
            return change(output.flatten(0, 1)).view_as(output)

        handle = host.model.get_submodule(layer).register_forward_hook(put_in)
        try:
            with torch.no_grad():
                return host.logits(batch).double()
        finally:
            handle.remove()

    own, spliced, dead = hooked(lambda t: t), hooked(sae), hooked(lambda t: sae.b_dec.expand_as(t))
    cross = torch.nn.functional.cross_entropy
    assert found["ce"] == pytest.approx(float(cross(own, classes)), rel=1e-5)
    assert found["ce_sae"] == pytest.approx(float(cross(spliced, classes)), rel=1e-5)
    assert found["ce_mean"] == pytest.approx(float(cross(dead, classes)), rel=1e-5)
    kl = (own.softmax(1) * (own.log_softmax(1) - spliced.log_softmax(1))).sum(1).mean()
    assert found["kl"] == pytest.approx(float(kl), rel=1e-3, abs=1e-9)
    assert found["agreement"] == float((own.argmax(1) == spliced.argmax(1)).double().mean())


def test_probe_accuracy_is_the_best_threshold_of_the_best_latent():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(40, 6)).round(1)  # ties
    labels = rng.random((40, 3)) < 0.4
    acts[:, 4] += 5 * labels[:, 1]
    found, which = probe_accuracy(acts, np.hstack([labels, np.ones((40, 1), bool)]))
    for c in range(3):
        y, best = labels[:, c], 0.0
        for column in acts.T:
            for threshold in np.unique(column):
                fires = column >= threshold
                best = max(best, (fires[y].mean() + (~fires[~y]).mean()) / 2)
        assert found[c] == pytest.approx(best)
    assert which[1] == 4 and found[1] > 0.95 and np.isnan(found[3]) and which[3] == -1


def test_stability_sees_through_a_permutation():
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(30, 200, generator=g), dim=1)
    one = SAE(rows, torch.zeros(30), rows, torch.zeros(200), Meta("topk", 2))
    same = rows[torch.randperm(30, generator=g)]
    half = torch.cat([same[:15], torch.nn.functional.normalize(torch.randn(15, 200, generator=g), dim=1)])
    assert seed_stability(one, SAE(same, one.b_enc, same, one.b_dec, one.meta))["mean_cosine"] == pytest.approx(1)
    found = seed_stability(one, SAE(half, one.b_enc, half, one.b_dec, one.meta))
    assert found["shared"] == 0.5 and 0.5 < found["mean_cosine"] < 0.65
