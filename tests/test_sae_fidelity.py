"""Loss recovered against splicing by hand, probes against brute force, stability against a known permutation."""

import numpy as np
import pytest
import torch

from saelab import hosts
from saelab.cache.batches import Batches
from saelab.sae import SAE, Meta
from saelab.sae.fidelity import (
    Probes,
    covariance_of,
    loss_recovered,
    measure,
    probe_accuracy,
    probe_held_out,
    seed_stability,
)

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


def test_what_is_spliced_in_has_the_host_s_own_precision():
    """A host in bfloat16 gets bfloat16 back, of the float32 reconstruction as of the mean."""

    class Half(Classifier):
        def logits_with(self, batch, layer, replace, policy="all"):
            tokens = batch.flatten(2).transpose(1, 2).bfloat16()
            found = replace(tokens)
            assert found.dtype == torch.bfloat16 and found.shape == tokens.shape
            return found.float().mean(1) @ self.head.T

    found = loss_recovered(Half(3, 5), perfect(3), "layer", pictures())
    assert found["ce_recovered"] == pytest.approx(1, abs=1e-6) and found["agreement"] == 1


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


def random_sae(n: int, d: int, covariance: torch.Tensor, seed: int) -> SAE:
    """Decoder rows drawn as the null draws them, by another way."""
    draw = np.random.default_rng(seed).multivariate_normal(np.zeros(d), covariance.numpy(), n)
    rows = torch.nn.functional.normalize(torch.from_numpy(draw).float(), dim=1)
    return SAE(rows, torch.zeros(n), rows, torch.zeros(d), Meta("topk", 2))


@pytest.mark.parametrize(
    ("spread", "agree"), [([1.0] * 8, 0.9), ([1.0] * 16, 0.2), ([5.0] * 2 + [1.0] * 6, 0.9)], ids=str
)
def test_random_dictionaries_are_no_more_stable_than_their_null(spread, agree):
    """In few directions, random rows agree by themselves: `shared` is high, `above_null` is 0."""
    covariance = torch.diag(torch.tensor(spread).double().square())
    one, two = (random_sae(300, len(spread), covariance, seed) for seed in (1, 2))
    found = seed_stability(one, two, covariance)
    assert found["above_null"] == found["shared"] - found["null_shared"] and abs(found["above_null"]) < 0.06
    assert found["mean_cosine"] == pytest.approx(found["null_mean_cosine"], abs=0.02)
    assert (found["shared"] >= agree) == (agree > 0.5)


def test_equal_dictionaries_are_above_the_null_which_has_the_datas_covariance():
    covariance = torch.eye(40).double()
    one = random_sae(60, 40, covariance, 1)
    found = seed_stability(one, one, covariance)
    assert found["shared"] == 1 and found["null_shared"] < 0.1 and found["above_null"] > 0.9
    flat = torch.diag(torch.tensor([1.0, 1.0, *([0.0] * 38)])).double()
    assert seed_stability(one, one, flat)["null_shared"] > 0.9, "rows in a plane agree by chance"
    assert "null_shared" not in seed_stability(one, one)


def test_the_covariance_is_numpys_however_the_tokens_are_cut_and_wherever_they_lie():
    x = np.random.default_rng(0).normal(size=(500, 6)) @ np.random.default_rng(1).normal(size=(6, 6)) + 1e4
    wanted = torch.from_numpy(np.cov(x, rowvar=False, bias=True))
    for data in ([x[:3], x[3:]], (row[None] for row in x)):
        torch.testing.assert_close(covariance_of(data), wanted, rtol=1e-9, atol=1e-9)
    near = (x - 1e4).astype(np.float32)
    torch.testing.assert_close(
        covariance_of(Batches(near, 7, rows=np.arange(100))),
        torch.from_numpy(np.cov(near[:100], rowvar=False, bias=True)).double(),
        rtol=1e-6,
        atol=1e-6,
    )


def test_probes_are_chosen_on_some_images_and_judged_on_others():
    """Among 400 latents of noise the best looks good where it was chosen, and is chance on other images."""
    rng = np.random.default_rng(0)
    labels, test_labels = rng.random((60, 3)) < 0.4, rng.random((80, 3)) < 0.4
    acts, test_acts = rng.normal(size=(60, 400)), rng.normal(size=(80, 400))
    chosen, _ = probe_accuracy(acts, labels)
    found = probe_held_out(acts, labels, test_acts, test_labels)
    assert chosen.min() > 0.65 and abs(found["accuracy"] - 0.5) < 0.12 and abs(found["null"] - 0.5) < 0.12
    for c in range(3):
        acts[:, 7 + c] += 4 * labels[:, c]
        test_acts[:, 7 + c] += 4 * test_labels[:, c]
    more = np.hstack([labels, np.ones((60, 1), bool)]), np.hstack([test_labels, np.ones((80, 1), bool)])
    known = probe_held_out(acts, more[0], test_acts, more[1])
    assert known["accuracy"] > 0.9 and abs(known["null"] - 0.5) < 0.15 and known["classes"] == 3


def test_the_probes_threshold_is_that_of_the_best_accuracy():
    rng = np.random.default_rng(3)
    values = rng.integers(0, 12, size=(50, 1)).astype(float)
    truth = (values[:, 0] + rng.normal(size=50) * 3 > 7)[:, None]
    test = np.linspace(-1, 13, 57)[:, None]
    test_truth = test > 6
    best = max(np.unique(values), key=lambda t: (values[truth] >= t).mean() + (values[~truth] < t).mean())
    wanted = ((test[test_truth] >= best).mean() + (test[~test_truth] < best).mean()) / 2
    assert probe_held_out(values, truth, test, test_truth)["accuracy"] == pytest.approx(wanted)


def test_measure_runs_them_all_and_leaves_out_what_was_not_asked_for():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=g)
    sae, other = (random_sae(20, 8, torch.eye(8).double(), seed) for seed in (1, 2))
    mine, test = (Batches(x, 50, rows=rows) for rows in (np.arange(200), np.arange(200, 300)))
    least = measure(sae, mine, test)
    assert least.loss_recovered is least.probes is least.stability is None
    assert least.mine["tokens"] == 200 and least.held_out["tokens"] == 100 and least.held_out["overfit"] is None
    acts, labels = np.random.default_rng(0).random((30, 20)), np.random.default_rng(1).random((30, 2)) < 0.5
    found = measure(
        sae,
        mine,
        test,
        splice=lambda s: {"ce": float(s.d_in)},
        probes=Probes(acts, labels, acts, labels),
        others=[sae, other],
    )
    assert found.loss_recovered == {"ce": 8.0} and found.probes["classes"] == 2
    same, different = found.stability
    assert same["shared"] == 1 > different["shared"] and same["null_shared"] == different["null_shared"]
    assert different == seed_stability(sae, other, covariance_of(mine))
