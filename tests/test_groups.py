"""Groups of units: FALCON's own by a plain twin, sets by brute force, planted conjunctions, chance, and the way through
the pipeline."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from small_images import coloured

import saelab
from saelab import cache, units
from saelab.artifacts import read_json
from saelab.errors import UserError
from saelab.label.assign import Evidence, rankings
from saelab.label.mine import ContrastRule
from saelab.report import members as pages
from saelab.sae import SAE, Meta
from saelab.units import grouping as own
from saelab.units.grouping import GroupSettings, find_groups, high_units

QUICK = {"label": {"nulls": 20, "mining": {"k": 4}}, "seeds": [0], "workers": 0, "device": "cpu"}
WORDS = ["red", "green", "blue", "grey"]
NO_CHANCE = {"permutations": 0}


def test_high_units_are_those_above_five_standard_deviations_of_the_scaled_matrix():
    acts = torch.rand(60, 40, generator=torch.Generator().manual_seed(0)) ** 12
    acts[3] = 0
    scaled = acts.double().numpy() / np.linalg.norm(acts.double().numpy(), axis=1, keepdims=True).clip(1e-30)
    wanted = scaled > scaled.mean() + 2 * scaled.std()
    for layout in (acts, acts.to_sparse_csr()):
        assert (high_units(layout, 2.0).toarray() == wanted).all()


def test_falcons_groups_by_a_plain_twin():
    """200 pictures, 64 units: seven pictures' worth of units planted together, some on alike pictures, some not."""
    g = torch.Generator().manual_seed(1)
    acts, emb = torch.rand(200, 64, generator=g) * 0.01, torch.randn(200, 8, generator=g)
    for group, (pictures, alike) in enumerate([(range(15), True), (range(20, 35), False), (range(40, 48), True)]):
        for picture in pictures:
            acts[picture, [3 * group, 3 * group + 1]] = 1.0
            emb[picture] = torch.eye(8)[group] + 0.1 * emb[picture] if alike else emb[picture]
    found = own.falcon_groups(acts, emb, support=10, cosine=0.8, sds=5.0)

    scaled = (acts / acts.norm(dim=1, keepdim=True)).double()
    high = scaled > scaled.mean() + 5 * scaled.std(correction=0)
    twin = []
    for picture in range(200):
        members = tuple(high[picture].nonzero()[:, 0].tolist())
        if not members or members in twin:
            continue
        pictures = [i for i in range(200) if all(high[i, u] for u in members)]
        cosines = [torch.cosine_similarity(emb[i], emb[j], dim=0).item() for i, j in combinations(pictures, 2)]
        if len(pictures) > 10 and np.mean(cosines) > 0.8:
            twin.append(members)
    assert found == twin == [(0, 1)]  # the second's pictures are not alike, the third has eight


def test_sets_by_brute_force():
    rng = np.random.default_rng(2)
    high = rng.random((80, 9)) < 0.45
    found = find_groups(csr_array(high), GroupSettings(support=12, largest=4, **NO_CHANCE))
    excess = {}
    for i, j in combinations(range(9), 2):
        p, q, both = high[:, i].mean(), high[:, j].mean(), (high[:, i] & high[:, j]).sum()
        excess[i, j] = (both - 80 * p * q) / np.sqrt(80 * p * q * (1 - p) * (1 - q)) if both >= 12 else -1
    sets = {}
    for size in (2, 3, 4):
        for members in combinations(range(9), size):
            on = high[:, members].all(axis=1)
            if on.sum() >= 12 and all(excess[pair] > 0 for pair in combinations(members, 2)):
                sets[members] = tuple(np.flatnonzero(on))
    closed = {m: on for m, on in sets.items() if not any(set(m) < set(other) and on == sets[other] for other in sets)}
    assert set(found.members) == set(closed) and len(closed) > 10
    assert list(found.support) == [len(closed[m]) for m in found.members] == sorted(found.support, reverse=True)


def planted(pictures: int = 3000, pairs: int = 20, seed: int = 0):
    """Units 2j and 2j + 1 fire on concepts of their own, and both on concept j: activations, embeddings, labels.

    Returns acts [pictures, units], image_emb and label_emb; label j is the concept that only the pair has.
    """
    g = torch.Generator().manual_seed(seed)
    concepts = 3 * pairs
    there = torch.rand(pictures, concepts, generator=g) < 0.02
    emb = torch.nn.functional.normalize(torch.randn(concepts, 64, generator=g), dim=1)
    image_emb = there.float() @ emb + 0.1 * torch.randn(pictures, 64, generator=g)
    acts = torch.zeros(pictures, 2 * pairs)
    for j in range(pairs):
        for side in (0, 1):
            on = there[:, j] | there[:, pairs + 2 * j + side]
            acts[:, 2 * j + side] = on * (1 + 0.3 * torch.rand(pictures, generator=g))
    return acts, torch.nn.functional.normalize(image_emb, dim=1), emb


def test_planted_conjunctions_are_found_and_named_where_single_units_are_not():
    acts, image_emb, label_emb = planted()
    found = find_groups(high_units(acts, 2.0), GroupSettings(sds=2.0))
    wanted = [(2 * j, 2 * j + 1) for j in range(20)]
    assert sum(pair in found.members for pair in wanted) >= 18 and len(found.members) <= 22

    def named(of: torch.Tensor) -> list[int]:
        seen = Evidence.mined(of, image_emb, label_emb, 20, ContrastRule(), torch.arange(len(of)))
        return rankings(["pearson"], seen, runners=1)["pearson"].label.tolist()

    together = own.Grouping.fit(found.members, acts).least_of(acts)
    right = sum(label == members[0] // 2 for members, label in zip(found.members, named(together), strict=True))
    assert right >= 0.7 * 20
    alone = sum(label == unit // 2 for unit, label in enumerate(named(acts)))
    assert alone <= 0.75 * 40  # a unit's two concepts are equally good names of it


def test_shuffled_columns_make_no_groups():
    acts, *_ = planted(1000)
    high = high_units(acts, 2.0).toarray()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shuffled = np.stack([rng.permutation(column) for column in high.T], axis=1)
        found = find_groups(csr_array(shuffled), GroupSettings(support=3, seed=seed))
        assert len(found.members) <= 1 and found.bound > 0  # one in twenty such sets has a pair above the bound


def test_near_duplicates_count_once():
    high = csr_array(np.vstack([np.ones((12, 2), bool), np.zeros((30, 2), bool)]))
    settings = GroupSettings(support=10, **NO_CHANCE)
    assert find_groups(high, settings).members == ((0, 1),)
    assert find_groups(high, settings, np.r_[np.zeros(12), np.arange(1, 31)]).members == ()


def test_too_many_groups_and_bad_settings_are_one_line(monkeypatch):
    monkeypatch.setattr(own, "MOST", 10)
    rng = np.random.default_rng(0)
    high = csr_array(np.repeat(rng.random((60, 1)) < 0.5, 8, axis=1))
    with pytest.raises(UserError, match=r"groups\.support.*more than 10"):
        find_groups(high, GroupSettings(**NO_CHANCE))
    for wrong in ({"support": 1}, {"largest": 1}, {"sds": 0.0}, {"permutations": -1}):
        with pytest.raises(UserError, match=f"groups.{next(iter(wrong))}"):
            GroupSettings(**wrong)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """60 pictures of 4 tokens in 6 dimensions, in which 0 and 1 fire together; splits as drawn."""
    g = np.random.default_rng(0)
    tokens = np.abs(g.normal(size=(60, 4, 6))).astype(np.float32) * 0.1
    tokens[:25, 2, :2] = 3 + g.random((25, 2))
    return cache.adopt(tokens, tmp_path_factory.mktemp("groups") / "cache", dtype="float32")


def test_groups_are_a_basis_that_new_pictures_go_through_too(store, tmp_path):
    mine = np.arange(60)
    sae = SAE(torch.eye(6)[:5], torch.zeros(5), torch.eye(6)[:5], torch.zeros(6), Meta(rule="topk", k=5))
    for basis in ("neuron", "sae"):
        root = tmp_path / basis
        folder = root / "sae" / "one"
        folder.mkdir(parents=True)
        sae.save(folder / "sae.safetensors")
        of = units.neuron(store, root) if basis == "neuron" else units.sae(store, root, folder)
        at = folder if basis == "sae" else None
        settings = GroupSettings(sds=1.0, support=8)
        made = units.groups(store, root, of, units.Projection.load(of.path, at), mine, mine, settings, at)
        moved = tmp_path / f"{basis} moved"
        root.rename(moved)
        there = moved / made.path.relative_to(root)
        found, project = units.UnitActivations.load(there), units.Projection.load(there)
        assert found.info["members"] == [[0, 1]] and found.info["support"] == [25] and found.basis == "groups"
        pictures = torch.from_numpy(np.asarray(store.tokens)).reshape(60, 4, 6)
        acts = found.acts.to_dense() if found.acts.is_sparse_csr else found.acts
        torch.testing.assert_close(units.pool_units(project, pictures, "max"), acts, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(units.pool_cache(store, project, "max").to_dense(), acts, atol=1e-5, rtol=1e-5)
        assert (acts[:25] > 0).all() and (acts[25:] == 0).all()
        where = project(pictures[0])[:, 0]
        assert where.argmax() == 2  # the map shows the token at which both fire
        with pytest.raises(UserError, match="write nothing of their own"):
            project.writes(6)


def test_pages_name_the_members_of_a_group_with_their_labels(store, tmp_path):
    of, ids = units.neuron(store, tmp_path), np.arange(60)
    made = units.groups(
        store, tmp_path, of, units.Projection.load(of.path), ids, ids, GroupSettings(sds=1.0, support=8)
    )
    facts = {"layer": store.layer, "control": False}
    labels = [{"label": word} for word in ("paw", "fur", None, None, None, None)]
    bases = [
        SimpleNamespace(name="neuron", units=of.path, labels=labels, recipes={"units": of.recipe}, **facts),
        SimpleNamespace(name="neuron groups", units=made.path, labels=[], recipes={"units": made.recipe}, **facts),
    ]
    other = SimpleNamespace(**vars(bases[0]) | {"name": "another's", "recipes": {"units": {"stage": "units"}}})
    bases.insert(0, other)  # of the same kind and layer, but not what the groups are made of
    assert [*pages.of_basis(bases[0], bases), *pages.of_basis(bases[1], bases)] == [None] * 12
    assert [*pages.of_basis(bases[2], bases)] == [{"basis": "neuron", "units": [[0, "paw"], [1, "fur"]], "support": 25}]
    without = pages.of_basis(bases[2], bases[2:])  # a run without the neurons
    assert [*without] == [{"basis": None, "units": [[0, None], [1, None]], "support": 25}]


def test_no_groups_is_no_basis(store, tmp_path):
    of, ids = units.neuron(store, tmp_path), np.arange(60)
    project = units.Projection.load(of.path)
    assert units.groups(store, tmp_path, of, project, ids, ids, GroupSettings(support=50)) is None
    assert not list((tmp_path / "units").glob("groups-*/complete.json"))


def run_of(folder, acts, **settings):
    """A run from arrays of 90 coloured pictures, whose bases are neurons and their groups."""
    pictures = coloured(folder / "pictures", 90)
    rng = np.random.default_rng(0)
    words = rng.normal(size=(4, 16))
    colour = [WORDS.index(pictures.classes[i][-1]) for i in range(len(pictures))]
    vectors = {"images": words[colour] + 0.1 * rng.normal(size=(90, 16)), "labels": words}
    own = {"bases": ["neuron", "neuron_groups"], "groups": {"sds": 1.0, "support": 8}, "scorer": ["pearson"]}
    own |= {"activations": acts, "embeddings": vectors, "vocabulary": WORDS, "root": str(folder / "runs")} | QUICK
    return saelab.Pipeline(images=pictures, **own | settings)


def together_and_apart():
    """[pictures, units] of two layers: units 0 and 1 fire on the same pictures in one, none do in the other."""
    rng = np.random.default_rng(1)
    together, apart = (np.abs(rng.normal(size=(90, 6))).astype(np.float32) * 0.1 for _ in range(2))
    together[:40, :2] += 3
    for unit in range(6):
        apart[15 * unit : 15 * unit + 15, unit] += 3
    return {"together": together, "apart": apart}


@pytest.mark.slow
def test_a_layer_without_groups_is_left_out_of_the_comparison_and_the_run_says_so(tmp_path):
    made = run_of(tmp_path, together_and_apart())
    assert made.most_per_layer() == 2 and made.compared_layers == ["together"]
    assert "labelled" not in vars(made), "known before the labels"
    assert "apart: not compared, for it takes two bases and neuron is there." in made.notes
    assert list(made.comparisons) == ["together"]
    assert {(b.layer, b.name) for b in made.evaluated} == {
        ("together", "neuron"),
        ("together", "neuron groups"),
        ("apart", "neuron"),
    }
    page = made.report()
    record = read_json(made.root / f"{made.config.name}.json")
    assert list(record["comparisons"]) == ["together"] and page.is_file()


def test_a_run_whose_groups_are_not_there_stops_before_the_labels_in_one_line(tmp_path):
    lone = run_of(tmp_path, {"apart": together_and_apart()["apart"]})
    with pytest.raises(UserError, match="at least two, and no layer has the groups; for example") as found:
        _ = lone.comparisons
    assert "\n" not in str(found.value) and "labelled" not in vars(lone) and "mined" not in vars(lone)
    groups_alone = run_of(tmp_path, together_and_apart(), bases=["neuron_groups"])
    with pytest.raises(UserError, match="a comparison needs at least two; for example"):
        _ = groups_alone.comparisons
    assert "bases" not in vars(groups_alone)
    neither = run_of(tmp_path, {"apart": together_and_apart()["apart"]}, bases=["neuron_groups"])
    with pytest.raises(UserError, match=r"there are no groups; lower groups\.sds"):
        _ = neither.labelled
