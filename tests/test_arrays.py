"""One door for numbers from outside: the same numbers give the same result, whoever holds them and however."""

from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saelab import arrays, cache
from saelab.cache.batches import Batches, spool
from saelab.errors import UserError
from saelab.label import assign, mine
from saelab.sae import SAE, Meta, SAEConfig, TrainConfig, fit

QUICK = settings(max_examples=25, suppress_health_check=list(HealthCheck))
X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
X[np.abs(X) < 0.5] = 0
FORMS = {  # the same numbers as others hold them
    "array": lambda x: x,
    "big endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "little endian": lambda x: x.astype(x.dtype.newbyteorder("<")),
    "float64": lambda x: x.astype(np.float64),
    "long double": lambda x: x.astype(np.longdouble),
    "Fortran order": np.asfortranarray,
    "a view": lambda x: np.repeat(x, 2, axis=0)[::2],
    "read only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "nested lists": lambda x: x.tolist(),
    "tensor": torch.tensor,
    "float64 tensor": lambda x: torch.tensor(x).double(),
    "tensor with grad": lambda x: torch.tensor(x, requires_grad=True),
    "transposed tensor": lambda x: torch.tensor(x.T.copy()).T,
    "torch CSR": lambda x: torch.tensor(x).to_sparse_csr(),
    "torch COO": lambda x: torch.tensor(x).to_sparse(),
    "scipy CSR": sp.csr_array,
    "scipy CSC": sp.csc_matrix,
    "scipy COO": sp.coo_array,
}
DTYPES = ["i2", "i8", "f2", "f4", "f8", ">f4", "bf16", "grad", "csr"]
LOCKED = [(11, "unable to lock file"), (524, "no locks here"), (None, "unable to lock file, errno = 37")]
NOT_NUMBERS = [X.astype(str), X.astype(object), X.astype(complex), torch.tensor(X).cfloat(), [[1.0], [2.0, 3.0]]]


def one(found: object) -> torch.Tensor:
    return found.to_dense() if isinstance(found, torch.Tensor) else found.dense()  # type: ignore[union-attr]


@pytest.mark.parametrize("form", FORMS)
def test_every_door_takes_every_form(form: str, tmp_path: Path) -> None:
    given_ = FORMS[form](X)
    assert torch.equal(one(arrays.as_tensor(given_)).float(), torch.tensor(X))
    assert np.array_equal(cache.adopt(given_, tmp_path, dtype="float32").tokens, X)
    if form != "nested lists":
        assert torch.equal(Batches(given_, 40).read(np.arange(40)), torch.tensor(X))
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(12, 8, generator=generator)
    sae = SAE(W, torch.zeros(12), W, torch.zeros(8), Meta("topk", 3))
    assert torch.equal(sae.encode_dense(given_), sae.encode_dense(torch.tensor(X)))
    assert torch.equal(sae(given_), sae(torch.tensor(X)))
    assert mine.top_images(given_, 5)[0].tolist() == mine.top_images(torch.tensor(X), 5)[0].tolist()
    assert mine.statuses(given_) == mine.statuses(torch.tensor(X))


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("nested lists", "long double") and "CO" not in f])
def test_mining_and_scorers_take_embeddings_of_other_libraries(form: str) -> None:
    emb = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.nn.functional.normalize(torch.randn(7, 6, generator=torch.Generator().manual_seed(2)), dim=1)
    as_given = FORMS[form] if "CS" not in form else np.asarray  # embeddings are dense
    acts, images, texts = FORMS[form](X), as_given(emb.numpy()), as_given(labels.numpy())
    ids = mine.top_images(acts, 4)[0]
    found = mine.contrast_images(acts, images, ids.numpy())[0]
    assert torch.equal(found, mine.contrast_images(torch.tensor(X), emb, ids)[0])
    dtype = torch.float64 if "float64" in form else torch.float32  # which the scores keep
    few = partial(assign.soft_wpmi, top_k=5)  # all 40 sum to logarithms near 150, where float32 steps by 1.5e-5
    for scorer in (assign.pearson, assign.cos_cubed, few):
        expected = scorer(torch.tensor(X, dtype=dtype), emb.to(dtype), labels.to(dtype))
        torch.testing.assert_close(scorer(acts, images, texts), expected, rtol=1e-4, atol=1e-5)
    expected = assign.semanticlens(emb[ids], labels)
    torch.testing.assert_close(assign.semanticlens(emb[ids].numpy(), labels.numpy()), expected)


@pytest.mark.parametrize("wrong", NOT_NUMBERS, ids=lambda w: str(getattr(w, "dtype", type(w).__name__)))
def test_what_is_no_array_of_numbers_is_refused_in_one_line(wrong: object, tmp_path: Path) -> None:
    for door in (arrays.as_tensor, arrays.sliceable, lambda w: Batches(w, 4), lambda w: mine.statuses(w)):
        with pytest.raises(UserError) as error:
            door(wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        cache.adopt(wrong, tmp_path)


@QUICK
@given(
    image=st.integers(0, 9),
    token=st.integers(0, 2),
    dimension=st.integers(0, 4),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    dtype=st.sampled_from([np.float16, np.float32, ">f4", np.float64]),
    stored=st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_one_number_that_is_not_finite_is_named(image, token, dimension, value, dtype, stored, tmp_path) -> None:
    x = np.ones((10, 3, 5), dtype=dtype)
    x[image, token, dimension] = value
    with pytest.raises(UserError, match=f"image {image}, token {token}: dimension {dimension} is (NaN|infinite)"):
        cache.adopt(x, tmp_path, dtype=stored)
    assert not list(tmp_path.glob("activations/*/complete.json"))
    with pytest.raises(UserError, match="row"):
        Batches(x.reshape(30, 5), 30).batch(0)


@QUICK
@given(
    exponent=st.floats(-44, 37),
    stored=st.sampled_from(["float16", "bfloat16", "float32"]),
    wide=st.booleans(),
)
def test_a_dtype_holds_the_numbers_or_refuses(exponent: float, stored: str, wide: bool, tmp_path: Path) -> None:
    """Whatever the scale, what is stored is within a hundredth of what was given, or nothing is stored."""
    x = (X.astype(np.float64) * 10.0**exponent).astype(np.float64 if wide else np.float32)
    try:
        kept = np.asarray(cache.adopt(x, tmp_path / str(exponent), dtype=stored).tokens, np.float64)
    except UserError as error:
        assert "too small" in str(error) or "can't hold" in str(error)
        assert stored != "float32" or not -36 < exponent < 37
        assert stored != "float16" or not -3 < exponent < 4
    else:
        assert np.abs(kept - x).sum() <= 0.011 * np.abs(x).sum()


@QUICK
@given(dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=6))
def test_chunks_of_any_dtypes_keep_every_ones_numbers(dtypes: list[str]) -> None:
    generator = np.random.default_rng(len(dtypes))
    chunks, expected = [], []
    for kind in dtypes:
        x = (8 * generator.normal(size=(generator.integers(1, 5), 3))).astype(np.float16).astype(np.float32)
        forms = {
            "bf16": lambda x: torch.tensor(x).bfloat16(),
            "grad": lambda x: torch.tensor(x, requires_grad=True),
            "csr": sp.csr_array,
        }
        chunks.append(forms[kind](x) if kind in forms else x.astype(kind))
        expected.append(arrays.as_matrix(chunks[-1]).float())
    rows = torch.cat(expected)
    assert torch.equal(Batches(spool(iter(chunks)), 1).read(np.arange(len(rows))), rows)


def test_training_and_firing_follow_the_scale_of_the_numbers() -> None:
    data = np.random.default_rng(1).normal(size=(120, 8)).astype(np.float32)
    config, train = SAEConfig(d_in=8, latents=16, k=2), TrainConfig(steps=5, batch_size=60)
    expected = fit(data, config, train, progress=False).quality["fvu"]

    @settings(QUICK, max_examples=20)
    @given(exponent=st.floats(-17, 17))
    def follows(exponent: float) -> None:
        found = fit(data * np.float32(10.0**exponent), config, train, progress=False).quality["fvu"]
        assert found == pytest.approx(expected, rel=0.05)

    follows()


@pytest.mark.parametrize("form", ["array", "scipy CSR"])
@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e-3, 1.0])
def test_a_unit_has_the_same_status_whatever_it_is_measured_in(form: str, scale: float) -> None:
    acts = np.zeros((60, 5), np.float32)
    acts[:5, 1], acts[:20, 2], acts[:55, 3], acts[:20, 4] = 2.0, 3.0, 0.5, np.linspace(1, 2, 20)
    given_ = FORMS[form]((acts * scale).astype(np.float32))
    assert mine.statuses(given_) == ["dead", "rare", "ok", "dense", "ok"]
    assert mine.fires_on(given_).tolist() == [0, 5, 20, 55, 20]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_numbers_whose_squares_float32_cannot_hold_are_refused_before_training(scale: float) -> None:
    data = (np.random.default_rng(1).normal(size=(120, 8)) * scale).astype(np.float32)
    with pytest.raises(UserError, match="float32, in which training computes"):
        fit(data, SAEConfig(d_in=8, latents=16, k=2), TrainConfig(steps=5, batch_size=60), progress=False)


def test_datasets_in_groups_are_found_and_listed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["layer4/acts"] = X
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a/x"], file["b/c/y"], file["word"] = X, X + 1, "text"
        file["link"] = h5py.SoftLink("/b/c/y")
    for key in (None, "layer4/acts", "/layer4/acts"):
        assert np.array_equal(cache.adopt(tmp_path / "one.h5", tmp_path, key=key, dtype="float32").tokens, X)
    for key in ("b/c/y", "link"):
        assert np.array_equal(cache.adopt(tmp_path / "two.h5", tmp_path, key=key, dtype="float32").tokens, X + 1)
    with pytest.raises(UserError, match="holds a/x, b/c/y, word"):
        cache.adopt(tmp_path / "two.h5", tmp_path)
    with pytest.raises(UserError):
        cache.adopt(tmp_path / "two.h5", tmp_path, key="word")


def test_a_locked_file_is_not_called_damaged(tmp_path: Path) -> None:
    store = cache.adopt(X, tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = X
    for errno, text in LOCKED:
        error = OSError(errno, text) if errno else OSError(text)
        assert "HDF5_USE_FILE_LOCKING" in str(arrays.h5_error("activations", tmp_path, error, "again"))
    assert "damaged" in str(arrays.h5_error("activations", tmp_path, OSError("truncated file"), "again"))
    assert "is locked" in str(arrays.h5_error("cache", tmp_path, OSError("file is already open for write"), "again"))
    with h5py.File(store.path / "tokens.h5", "r"):
        assert len(cache.open(store.path)) == 40


@QUICK
@given(st.lists(st.integers(0, 39), max_size=30), st.sampled_from(["int64", "uint8"]))
def test_rows_of_an_hdf5_dataset_in_any_order(tmp_path_factory, rows, kind):
    path = tmp_path_factory.mktemp("h5") / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = X
    numbers = np.array(rows, dtype=kind)
    with h5py.File(path) as file:
        for wanted in (numbers, numbers[np.argsort(numbers)]):
            np.testing.assert_array_equal(arrays.block(file["x"], wanted), X[wanted])
        np.testing.assert_array_equal(arrays.block(file["x"], slice(3, 9)), X[3:9])
        repeated = Batches(file["x"], 16, rows=np.repeat(np.arange(40), 2)[::-1])
        assert len(repeated.batch(0)) == 16
        assert repeated.fingerprint() == Batches(X, 16, rows=repeated.rows).fingerprint()
