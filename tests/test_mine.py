"""Mining against brute force in plain Python loops: ties, sparse layouts, contrast rules, bad units."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from saelab.acts import Columns, columns
from saelab.errors import UserError
from saelab.label import mine
from saelab.label.mine.rows import finite_rows, largest

LAYOUTS = {"dense": lambda a: a, "csr": lambda a: a.to_sparse_csr(), "columns": lambda a: columns(a.to_sparse_csr())}


def mixed(x):
    """Wellons' lowbias32, in Python's own integers."""
    x %= 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def brute_top(acts, k):
    """Equal numbers above 0 and above the lowest go by a hash of the image and of those at the top, others by id."""
    out = []
    for u in range(acts.shape[1]):
        column = [float(a) for a in acts[:, u]]
        least, top = max(0.0, min(column)), mixed(sum(i for i, a in enumerate(column) if a == max(column)))
        turn = [mixed(i ^ top) if a > least else i for i, a in enumerate(column)]
        out.append(sorted(range(len(column)), key=lambda i, a=column, t=turn: (-a[i], t[i]))[:k])
    return out


def brute_contrast(acts, emb, ids, rule, groups=None, reuse=True, quantile=0.5):
    """One positive at a time, in Python; cosines in float32 as the library has them."""
    out = []
    for u in range(acts.shape[1]):
        column = [float(a) for a in acts[:, u]]
        mean = sum(column) / len(column)
        ordered = sorted(column)
        level = ordered[max(1, -int(-quantile * len(column) // 1)) - 1]
        low = {
            "below_mean": [a < mean for a in column],
            "zero": [a == 0 for a in column],
            "below_quantile": [a <= level and a < ordered[-1] for a in column],
        }[rule]
        taken, row = set(), []
        for p in ids[u].tolist():
            cosines = emb[[p]] @ emb.T
            best = None
            for j in range(len(column)):
                same = j == p or (groups is not None and int(groups[j]) == int(groups[p]))
                if not low[j] or same or j in taken:
                    continue
                if best is None or float(cosines[0, j]) > float(cosines[0, best]):
                    best = j
            row.append(-1 if best is None else best)
            if best is not None and not reuse:
                taken.add(best)
        out.append(row)
    return out


def world(images=40, units=12, d=6, seed=0):
    """Units with many ties, signed units, sparse ones, constants, dead ones."""
    g = torch.Generator().manual_seed(seed)
    acts = torch.randint(-2, 3, (images, units), generator=g).float()
    acts[:, 1] = torch.rand(images, generator=g)
    acts[:, 2] = torch.rand(images, generator=g) * (torch.rand(images, generator=g) < 0.2)
    acts[:, 3], acts[:, 4], acts[:, 5] = 0, 0.1, -1.5
    acts[:, 6] = acts[:, 6].clamp(max=0)
    return acts, normalize(torch.randn(images, d, generator=g), dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [1, 7, 40])
def test_top_images_equal_brute_force(layout, k):
    acts, _ = world()
    ids, values = mine.top_images(LAYOUTS[layout](acts), k)
    assert ids.tolist() == brute_top(acts, k)
    assert torch.equal(values, acts.T.gather(1, ids))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_images_of_long_units_equal_brute_force(layout, dtype):
    """Long enough that groups of images are looked at first: ties inside, at the edge, and images left over."""
    g = torch.Generator().manual_seed(2)
    acts = torch.randn(1013, 6, generator=g)
    acts[:, 1] = acts[:, 1].round()
    acts[:, 2] *= torch.rand(1013, generator=g) < 0.005
    acts[:, 3] = -acts[:, 3].abs() * (torch.rand(1013, generator=g) < 0.99)
    acts[-5:, 4] += 10
    acts[:, 5] = 0
    acts = acts.to(dtype)
    ids, values = mine.top_images(LAYOUTS[layout](acts), 30)
    assert ids.tolist() == brute_top(acts, 30)
    assert torch.equal(values, acts.T.gather(1, ids).to(values.dtype))
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=60)
def test_the_largest_of_a_row_are_those_of_a_stable_sort(n, k, seed):
    k = min(k, n)
    rows = torch.randint(-50, 50, (3, n), generator=torch.Generator().manual_seed(seed)).float()
    rows[0, n // 2 :] = -torch.inf
    values, places = largest(rows, k)
    expected = rows.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    sure = values > values[:, -1:]  # which of those equal to the last are taken is open
    assert torch.equal(places[sure], expected.indices[:, :k][sure])
    assert torch.equal(rows.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())


def test_rows_whose_sum_overflows_are_finite():
    rows = torch.tensor([[3e38, 3e38], [torch.nan, 0], [torch.inf, 1], [torch.inf, -torch.inf], [1, 2]])
    assert finite_rows(rows).tolist() == [True, False, False, False, True]


@settings(max_examples=40)
@given(st.data())
def test_top_images_of_any_small_matrix(data):
    images, units = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    number = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-38, -1e-38, 3e38])
    rows = data.draw(st.lists(st.lists(number, min_size=units, max_size=units), min_size=images, max_size=images))
    acts, k = torch.tensor(rows), data.draw(st.integers(1, images))
    for layout in LAYOUTS.values():
        assert mine.top_images(layout(acts), k)[0].tolist() == brute_top(acts, k)
    assert mine.top_images(acts.double(), k)[0].tolist() == brute_top(acts, k)


def test_zeros_that_csr_stores_are_zeros():
    acts, emb = world()
    csr = acts.to_sparse_csr()
    rows = torch.repeat_interleave(torch.arange(40), csr.crow_indices().diff())
    everything = torch.sparse_coo_tensor(
        torch.stack([torch.arange(40).repeat_interleave(12), torch.arange(12).repeat(40)]), acts.flatten(), (40, 12)
    ).to_sparse_csr()
    assert len(everything.values()) == 480 > len(rows)
    for a in (csr, everything):
        ids, _ = mine.top_images(a, 9)
        assert torch.equal(ids, mine.top_images(acts, 9)[0])
        assert torch.equal(
            mine.contrast_images(a, emb, ids, "zero")[0], mine.contrast_images(acts, emb, ids, "zero")[0]
        )
        assert mine.statuses(a) == mine.statuses(acts)
        assert torch.equal(mine.column_means(a), mine.column_means(acts))


@pytest.mark.parametrize("k", [1, 5, 30, 60])
def test_stored_zeros_of_either_sign_tie_with_those_not_stored(k):
    g = torch.Generator().manual_seed(6)
    acts = torch.randint(-2, 2, (60, 8), generator=g).float()
    acts[:, :4] = acts[:, :4].clamp(max=0)
    stored = (acts != 0) | (torch.rand(60, 8, generator=g) < 0.3)
    acts[(acts == 0) & (torch.rand(60, 8, generator=g) < 0.5)] = -0.0
    rows, cols = stored.nonzero(as_tuple=True)
    csr = torch.sparse_coo_tensor(torch.stack([rows, cols]), acts[rows, cols], (60, 8)).coalesce().to_sparse_csr()
    signs = csr.values()[csr.values() == 0].signbit()
    assert signs.any() and not signs.all()
    assert mine.top_images(csr, k)[0].tolist() == mine.top_images(acts, k)[0].tolist() == brute_top(acts, k)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", ["below_mean", "below_quantile", "zero"])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("grouped", [False, True])
def test_contrasts_equal_brute_force(layout, rule, reuse, grouped):
    acts, emb = world()
    groups = torch.arange(40) // 3 if grouped else None
    ids, _ = mine.top_images(acts, 8)
    found, similarity = mine.contrast_images(LAYOUTS[layout](acts), emb, ids, rule, reuse, groups, quantile=0.4)
    assert found.tolist() == brute_contrast(acts, emb, ids, rule, groups, reuse, quantile=0.4)
    expected = (emb[ids] * emb[found]).sum(2)
    assert torch.allclose(similarity[found >= 0], expected[found >= 0], atol=1e-6)
    assert bool(similarity[found < 0].isnan().all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_neighbour_table_falls_back_to_the_exact_search(layout):
    """Units that fire on every near neighbour of their positives: the table of neighbours holds no candidate."""
    g = torch.Generator().manual_seed(1)
    emb = normalize(torch.randn(600, 5, generator=g), dim=1)
    acts = torch.zeros(600, 4)
    for u in range(4):
        near = (emb @ emb[u]).argsort(descending=True)
        acts[near[:200], u] = 1 + torch.rand(200, generator=g)
    acts[:, 3] = torch.rand(600, generator=g)
    ids, _ = mine.top_images(acts, 10)
    found, _ = mine.contrast_images(LAYOUTS[layout](acts), emb, ids)
    assert found.tolist() == brute_contrast(acts, emb, ids, "below_mean")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grouped", [False, True])
def test_copies_of_pictures_with_the_table(layout, grouped):
    """Every picture three times, so that cosines tie in the table of neighbours, at its edge and beyond."""
    g = torch.Generator().manual_seed(4)
    # Eighths and few dimensions: products are exact, so that copies tie in any order of summation.
    picture = torch.randint(300, (900,), generator=g)
    emb = (torch.randint(-8, 9, (300, 4), generator=g) / 8)[picture]
    acts = torch.relu(emb @ torch.randn(4, 5, generator=g) + 0.3 * torch.randn(900, 5, generator=g))
    acts[:, 4] = (emb[:, 0] > -0.9).float()  # few candidates, mostly outside the table
    ids, _ = mine.top_images(acts, 6)
    groups = picture if grouped else None
    found, _ = mine.contrast_images(LAYOUTS[layout](acts), emb, ids, groups=groups)
    assert found.tolist() == brute_contrast(acts, emb, ids, "below_mean", groups)


def test_the_number_of_threads_does_not_change_the_answer():
    g = torch.Generator().manual_seed(5)
    acts = torch.relu(torch.randn(3000, 40, generator=g) - 1)
    emb = normalize(torch.randn(3000, 16, generator=g), dim=1)
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for layout in LAYOUTS.values():
                ids, values = mine.top_images(layout(acts), 20)
                answers.append((ids, values, mine.contrast_images(layout(acts), emb, ids)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for answer in answers[1:] for a, b in zip(answers[0], answer, strict=True))


def test_equal_pictures_go_to_the_lower_id_with_and_without_the_table():
    """Many copies of one picture, more than the table holds: cosines tie exactly at the table's edge."""
    emb = torch.zeros(300, 4)
    emb[:, 0] = 1
    emb[250:, :] = torch.tensor([0.0, 1, 0, 0])
    acts = torch.zeros(300, 2)
    acts[:3, 0], acts[[0, 299], 1] = torch.tensor([3.0, 2, 1]), torch.tensor([2.0, 1])
    ids, _ = mine.top_images(acts, 2)
    assert ids.tolist() == [[0, 1], [0, 299]]
    found, similarity = mine.contrast_images(acts, emb, ids)
    assert found.tolist() == [[3, 3], [1, 250]]
    assert similarity.tolist() == [[1, 1], [1, 1]]


def test_blocks_do_not_change_the_answer(monkeypatch):
    acts, emb = world(images=60, units=30)
    ids, _ = mine.top_images(acts, 6)
    whole = mine.contrast_images(acts, emb, ids)[0]
    monkeypatch.setattr("saelab.label.mine.contrast.MASK_ELEMENTS", 60 * 7)
    monkeypatch.setattr("saelab.label.mine.lookup.TABLE", 5)
    for layout in LAYOUTS.values():
        assert torch.equal(mine.contrast_images(layout(acts), emb, ids)[0], whole)


def test_mean_is_exact_so_that_constant_units_have_no_contrast():
    acts = torch.full((1000, 3), 0.1)
    acts[:, 1] = 1e-3
    acts[:, 2] = 16_777_217.0
    ids, _ = mine.top_images(acts, 5)
    for layout in LAYOUTS.values():
        found, _ = mine.contrast_images(layout(acts), torch.ones(1000, 1), ids)
        assert bool((found == -1).all())


def test_zero_images_are_candidates_only_below_a_positive_mean():
    acts = torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    emb = normalize(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.5, 0.5]]), dim=1)
    for layout in LAYOUTS.values():
        found, _ = mine.contrast_images(layout(acts), emb, torch.tensor([[0], [1]]))
        assert found.tolist() == [[1], [0]]  # the second unit's zeros are above its mean of -0.25


def test_random_contrasts_are_low_elsewhere_and_repeatable():
    acts, emb = world(seed=3)
    ids, _ = mine.top_images(acts, 6)
    groups = torch.arange(40) // 2
    found, _ = mine.contrast_images(acts, emb, ids, "random", groups=groups, seed=5)
    assert torch.equal(found, mine.contrast_images(acts.to_sparse_csr(), emb, ids, "random", groups=groups, seed=5)[0])
    assert not torch.equal(found, mine.contrast_images(acts, emb, ids, "random", groups=groups, seed=6)[0])
    means = acts.double().mean(dim=0)
    for u, row in enumerate(found.tolist()):
        for p, j in zip(ids[u].tolist(), row, strict=True):
            assert j == -1 or (acts[j, u] < means[u] and groups[j] != groups[p])
    spread = mine.contrast_images(acts, emb, ids[:, :1].expand(-1, 400), "random", seed=1)[0]
    low = (acts[:, 1] < means[1]).nonzero()[:, 0]
    expected = set(low.tolist()) - {int(ids[1, 0])}
    assert set(spread[1].tolist()) == expected  # each candidate is drawn sooner or later


def test_host_rule_is_falcons():
    acts, emb = world()
    g = torch.Generator().manual_seed(8)
    host = torch.randn(40, 5, generator=g) * 7
    ids, _ = mine.top_images(acts, 20)
    found, similarity = mine.contrast_images(acts, emb, ids, "host", host_emb=host, host_limit=3)
    unit = normalize(host, dim=1)
    nearest = torch.tensor(brute_contrast(acts, unit, ids, "below_mean"))
    for u in range(12):
        cosines = [float(unit[p] @ unit[j]) if j >= 0 else -2 for p, j in zip(ids[u], nearest[u], strict=True)]
        kept = sorted([i for i, c in enumerate(cosines) if c >= 0.3], key=lambda i: -cosines[i])[:3]
        assert [i for i, j in enumerate(found[u].tolist()) if j >= 0] == sorted(kept)
        assert all(found[u, i] == nearest[u, i] for i in kept)
    there = found >= 0
    assert torch.allclose(similarity[there], (emb[ids] * emb[found]).sum(2)[there], atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statuses(layout):
    acts = torch.zeros(50, 9)
    acts[0, 1] = torch.nan
    acts[1, 2] = torch.inf
    acts[:, 3] = 2.0
    acts[:9, 4] = 1.0
    acts[:40, 5] = 1.0
    acts[:10, 6] = 1.0
    acts[:, 7] = -1.0
    acts[:, 8] = 1e-7
    found = mine.statuses(LAYOUTS[layout](acts))
    assert found == ["dead", "invalid", "invalid", "constant", "rare", "dense", "ok", "dead", "dead"]
    assert mine.statuses(LAYOUTS[layout](acts), rare_below=11)[6] == "rare"
    assert mine.fires_on(LAYOUTS[layout](acts))[[0, 3, 4, 5, 6, 7]].tolist() == [0, 50, 9, 40, 10, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_firing_scales_with_the_unit(layout):
    acts, _ = world()
    small = LAYOUTS[layout](acts * 1e-9)
    assert mine.fires_on(small).tolist() == (acts > 0).sum(0).where(acts.amin(0) != acts.amax(0), 0).tolist()
    varying = [u for u in range(12) if u not in (3, 4, 5)]  # a constant unit is measured as it stands
    assert [mine.statuses(small)[u] for u in varying] == [mine.statuses(LAYOUTS[layout](acts))[u] for u in varying]
    noisy = acts[:, [1]] * 1e4
    noisy[noisy < 5e3] = 1e-7  # rounding beside a large activation
    assert mine.fires_on(LAYOUTS[layout](noisy)).tolist() == (noisy > 1).sum(0).tolist()


KINDS = ("relu", "signed", "ties", "dead", "rare", "constant", "negative", "uneven", "nan", "tiny")


def unit_of(kind: str, images: int, g: torch.Generator) -> torch.Tensor:
    """Activations of one unit of a kind."""
    draw, flag = torch.randn(images, generator=g), torch.rand(images, generator=g)
    return {
        "relu": draw.clamp(min=0),
        "signed": draw,
        "ties": torch.randint(-1, 3, (images,), generator=g).float(),
        "dead": torch.zeros(images),
        "rare": (flag + 1) * (flag < 2 / images),
        "constant": torch.full((images,), 0.1),
        "negative": -1 - flag,
        "uneven": torch.where(flag < 2 / images, 1e3, 1.0),
        "nan": torch.where(torch.arange(images) == 0, torch.nan, draw),
        "tiny": 1e-9 * draw,
    }[kind]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
    st.integers(2, 30),
    st.integers(1, 12),
    st.sampled_from(mine.RULES),
    st.booleans(),
    st.integers(0, 99),
)
def test_positives_fire_and_are_never_contrasts(kinds, images, k, rule, reuse, seed):
    """Of any unit: positives are the strongest of the images that fire it, and no image is on both sides."""
    g, k = torch.Generator().manual_seed(seed), min(k, images)
    acts = torch.stack([unit_of(kind, images, g) for kind in kinds], dim=1)
    emb, host = (normalize(torch.randn(images, 4, generator=g), dim=1) for _ in range(2))
    groups = torch.randint(images, (images,), generator=g)
    settings = mine.ContrastRule(rule, reuse, host_similarity=-1.0)
    for layout in LAYOUTS.values():
        found = mine.mine_pairs(layout(acts), emb, k, settings, groups, host)
        for u, kind in enumerate(kinds):
            positives = [i for i in found.positive_ids[u].tolist() if i >= 0]
            firing = [] if kind == "nan" else (acts[:, u] > 0).nonzero()[:, 0].tolist()
            everything = [] if kind == "nan" else brute_top(acts[:, [u]], images)[0]
            assert positives == [i for i in everything if i in firing][:k]
            assert found.positive_ids[u].tolist() == positives + [-1] * (k - len(positives))
            values = found.positive_values[u]
            if kind == "nan":
                assert bool(values.isnan().all())
            else:
                assert values.tolist() == acts[positives, u].tolist() + [0.0] * (k - len(positives))
            contrasts = found.contrast_ids[u].tolist()
            assert not set(positives) & set(contrasts)
            assert all(c == -1 for c in contrasts[len(positives) :])
            means = acts[:, u].double().mean()
            assert all(rule == "below_quantile" or acts[c, u] < means or acts[c, u] == 0 for c in contrasts if c >= 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_units_that_are_not_finite_have_no_images(layout):
    acts, emb = world()
    acts[5, 2], acts[6, 9] = torch.nan, -torch.inf
    ids, values = mine.top_images(LAYOUTS[layout](acts), 4)
    assert ids[[2, 9]].eq(-1).all() and values[[2, 9]].isnan().all()
    found, similarity = mine.contrast_images(LAYOUTS[layout](acts), emb, ids)
    assert found[[2, 9]].eq(-1).all() and similarity[[2, 9]].isnan().all()
    assert found[1].ge(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_columns_are_those_of_torchs_own_conversion(dtype, index):
    acts, _ = world()
    csr = acts.to(dtype).to_sparse_csr()
    parts = csr.crow_indices().to(index), csr.col_indices().to(index), csr.values()
    made = columns(torch.sparse_csr_tensor(*parts, size=csr.shape))
    csc = csr.to_sparse_csc()
    assert torch.equal(made.starts, csc.ccol_indices()) and torch.equal(made.rows, csc.row_indices())
    assert torch.equal(made.values, csc.values()) and made.values.dtype == dtype and made.images == 40
    assert made.starts.dtype == made.rows.dtype == torch.long


def test_a_sparse_matrix_without_entries_has_its_first_images():
    acts = torch.zeros(7, 3)
    ids, values = mine.top_images(acts.to_sparse_csr(), 4)
    assert ids.tolist() == brute_top(acts, 4) and not values.any()
    assert bool((mine.contrast_images(acts.to_sparse_csr(), torch.ones(7, 1), ids)[0] == -1).all())


def test_columns_of_a_sparse_matrix():
    acts, _ = world()
    sparse = columns(acts.to_sparse_csr())
    assert isinstance(sparse, Columns)
    assert torch.equal(sparse.dense(), acts)
    picked = torch.tensor([7, 2, 2, 0])
    assert torch.equal(sparse.pick(picked).dense(), acts[:, picked])
    assert torch.equal(sparse.part(3, 8).dense(), acts[:, 3:8])
    kept = torch.tensor([9, 0, 31])
    assert torch.equal(sparse.take_rows(kept).dense(), acts[kept])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda a, e: mine.top_images(a, 41), "k=41: expected 1 to the number of images (40)"),
        (lambda a, e: mine.top_images(a, 0), "k=0"),
        (lambda a, e: mine.contrast_images(a, e[:30], mine.top_images(a, 3)[0]), "image_emb=(30, 6)"),
        (lambda a, e: mine.contrast_images(a, e * torch.nan, mine.top_images(a, 3)[0]), "image_emb=not finite"),
        (lambda a, e: mine.contrast_images(a, e, mine.top_images(a, 3)[0], "nearest"), "rule=nearest"),
        (lambda a, e: mine.contrast_images(a, e, mine.top_images(a, 3)[0], "host"), "rule=host: needs the host's"),
        (lambda a, e: mine.contrast_images(a, e, mine.top_images(a, 3)[0][:5]), "positive_ids=(5, 3)"),
        (lambda a, e: mine.top_images(a[:, 0], 3), "acts=(40,)"),
    ],
)
def test_mistakes_are_told_in_one_line(call, told):
    with pytest.raises(UserError) as error:
        call(*world())
    assert told in str(error.value) and "\n" not in str(error.value)


def test_pairs_are_mined_from_arrays_as_from_tensors():
    acts, emb = world()
    a, b = mine.mine_pairs(acts, emb, 5), mine.mine_pairs(acts.numpy(), emb.numpy(), 5)
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("level, fires", [(0.9e-6, 0), (1.1e-6, 7), (1.9e-6, 7), (3.0, 7)])
def test_a_constant_unit_fires_where_it_is_above_the_threshold_as_it_is(level, fires):
    assert mine.fires_on(torch.full((7, 1), level)).tolist() == [fires]
