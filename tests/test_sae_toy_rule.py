"""A rule is one object: entered in the table, it trains, is saved, loaded, applied, measured, checked and cited."""

import pytest
import torch

from saelab.errors import UserError
from saelab.sae import RULES, SAE, Gate, SAEConfig, Selection, TrainConfig, fit, quality, sparse
from saelab.sae.rules import cite
from saelab.sae.rules.rule import Gated

TRAIN = TrainConfig(batch_size=64, steps=60, log_every=5)


class WinnersTakeAll(Selection):
    """The largest latent of each of k groups of neighbours."""

    name, title, citation = "winners", "Winners take all", "@article{toy2026winners,\n  title = {Toys}\n}"

    def fixed_l0(self, threshold):
        return True

    def pick(self, pre, k):
        best = pre.view(len(pre), k, -1).max(2)
        return best.values.relu(), best.indices + torch.arange(0, pre.shape[1], pre.shape[1] // k)

    def pairs(self, pre, config, world, weights, centred):
        return sparse.pairs_of_rows(*self.pick(pre, config.k)), None


class Shrunk(Gate):
    """Codes are relu(pre - 0.1 spread), with no penalty."""

    name, title, has_k = "shrunk", "Shrunk", False

    def open(self, pre, weights, config, spread, tokens, total):
        codes, nothing = (pre - 0.1 * spread).relu(), torch.zeros(())
        return Gated(codes, (codes.detach() > 0).sum() / tokens, nothing, nothing)

    def gate(self, pre, threshold):
        return (pre - 0.1).relu_()


def tokens() -> torch.Tensor:
    return torch.randn(600, 12, generator=torch.Generator().manual_seed(0)) / 12**0.5 + 2


@pytest.mark.parametrize("toy", [WinnersTakeAll(), Shrunk()], ids=lambda toy: toy.name)
def test_a_toy_rule_is_one_object(toy, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"rule={toy.name}: one of topk, batchtopk, jumprelu, relu"):
        SAEConfig(12, 32, rule=toy.name)
    monkeypatch.setitem(RULES, toy.name, toy)
    found = fit(tokens(), SAEConfig(12, 32, rule=toy.name, k=4, lr=3e-3), TRAIN, tmp_path, progress=False)
    loaded, x = SAE.load(tmp_path), tokens()
    assert loaded.meta.rule == toy.name and loaded.meta.k == (4 if toy.has_k else 0)
    dense = loaded.encode(x).dense()
    assert torch.equal(dense, found.sae.encode_dense(x)) and torch.equal(loaded(x), found.sae(x))
    if toy.name == "winners":
        assert bool(((dense.view(-1, 4, 8) > 0).sum(2) <= 1).all()), "one of each group"
    untrained = fit(tokens(), SAEConfig(12, 32, rule=toy.name, k=4), TrainConfig(batch_size=64, steps=1))
    assert found.quality["fvu"] < untrained.quality["fvu"] and found.quality == quality(found.sae, x)
    assert cite({"rule": toy.name}) == ([toy.citation] if toy.citation else [])
    with pytest.raises(
        UserError, match="latent_shards=2: needs rule=topk or batchtopk or jumprelu or relu; set it to 1"
    ):
        fit(tokens(), SAEConfig(12, 32, rule=toy.name, k=4), TrainConfig(latent_shards=2), tmp_path / "shards")
    with pytest.raises(UserError, match="accumulate=2: needs rule=topk or jumprelu or relu; set it to 1"):
        fit(tokens(), SAEConfig(12, 32, rule=toy.name, k=4), TrainConfig(accumulate=2), tmp_path / "shards")
    with pytest.raises(UserError, match="choose_by_piece=True: needs rule=batchtopk"):
        SAEConfig(12, 32, rule=toy.name, k=4, choose_by_piece=True)
    assert not (tmp_path / "shards").exists()
    with pytest.raises(UserError, match="multi_topk=True: needs rule=topk,"):
        SAEConfig(12, 32, rule=toy.name, k=4, multi_topk=True)
    if isinstance(toy, Gate):
        with pytest.raises(UserError, match="Matryoshka needs rule=topk or batchtopk"):
            SAEConfig(12, 32, rule=toy.name, k=4, prefixes=(0.5, 1))


def test_a_file_of_a_rule_that_does_not_exist_here_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "winners", WinnersTakeAll())
    fit(tokens(), SAEConfig(12, 32, rule="winners", k=4), TRAIN, tmp_path, progress=False)
    monkeypatch.delitem(RULES, "winners")
    with pytest.raises(UserError, match=r"sae\.safetensors.*rule winners"):
        SAE.load(tmp_path)


def test_every_rule_says_what_it_is_called_and_whom_to_cite():
    for name, rule in RULES.items():
        assert rule.name == name and rule.title and rule.citation.startswith("@") and rule.names["SAELens"]
        assert cite({"rule": name, "prefixes": None, "decoder": "free"}) == [rule.citation]
    keys = [entry.split("{")[1].split(",")[0] for entry in cite({"rule": "topk", "prefixes": [0.5, 1]})]
    assert keys == ["gao2025scaling", "bussmann2025matryoshka"]
    assert "fel2025archetypal" in cite({"rule": "topk", "decoder": "archetypal"})[1]
