"""Activations given as arrays or files become caches that say the same."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cache_world import pictures
from safetensors.numpy import save_file

from saelab import cache
from saelab.cache import arrays
from saelab.errors import UserError

MAP = np.random.default_rng(0).standard_normal((12, 4, 3, 2)).astype(np.float16)
TOKENS = MAP.reshape(12, 4, 6).transpose(0, 2, 1)


@pytest.mark.parametrize("block", [1 << 30, 100])
def test_shapes_and_files_all_give_the_same_tokens(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_AT_ONCE", block)
    np.save(tmp_path / "a.npy", TOKENS)
    np.save(tmp_path / "offsets.npy", np.arange(13) * 6)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["only"] = TOKENS
    save_file({"x": np.ascontiguousarray(TOKENS), "y": np.zeros(3)}, str(tmp_path / "a.safetensors"))
    stores = [
        cache.adopt(MAP, tmp_path / "1"),
        cache.adopt(torch.from_numpy(np.ascontiguousarray(TOKENS)), tmp_path / "2"),
        cache.adopt(tmp_path / "a.npy", tmp_path / "3"),
        cache.adopt(tmp_path / "a.h5", tmp_path / "4"),
        cache.adopt(tmp_path / "a.safetensors", tmp_path / "5", key="x"),
        cache.adopt(TOKENS.reshape(-1, 4), tmp_path / "6", offsets=tmp_path / "offsets.npy"),
    ]
    for store in stores:
        assert np.array_equal(store.tokens, TOKENS.reshape(-1, 4))
        np.testing.assert_allclose(store.mean, TOKENS.reshape(-1, 4).astype(np.float64).mean(0), rtol=1e-12)
        assert np.array_equal(store.pooled("max"), TOKENS.max(1).astype(np.float32))
        assert store.verify() == [] and store.count == 72
    assert stores[0].grid(5) == (3, 2) and stores[1].grid(5) is None


def test_uneven_images_and_splits(tmp_path: Path) -> None:
    pictured = pictures(tmp_path / "pictures", 12)
    offsets = np.array([0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 66, 78])
    rows = np.random.default_rng(1).standard_normal((78, 5)).astype(np.float32)
    store = cache.adopt(rows, tmp_path, pictured, offsets=offsets, dtype="float32", name="mine")
    assert np.array_equal(store.image_tokens(4), rows[10:15])
    assert np.array_equal(store.pooled("max")[11], rows[66:].max(0))
    mine = np.concatenate([rows[offsets[i] : offsets[i + 1]] for i in pictured.ids("mine")])
    assert store.count == len(mine) < 78
    np.testing.assert_allclose(store.mean, mine.mean(0, dtype=np.float64), rtol=1e-6)
    store.require_images(pictured.fingerprint)
    again = cache.adopt(rows, tmp_path, pictured, offsets=offsets, dtype="float32", name="mine")
    assert again.path == store.path
    changed = rows.copy()
    changed[77, 4] += 1
    assert cache.adopt(changed, tmp_path, pictured, offsets=offsets, dtype="float32", name="mine").path != store.path


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    save_file({"x": np.zeros((3, 2)), "y": np.zeros((3, 2))}, str(tmp_path / "two.safetensors"))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pictured = pictures(tmp_path / "pictures", 4)
    for given, settings, why in [
        (tmp_path / "absent.npy", {}, "no such file"),
        (tmp_path / "cut.npy", {}, "unreadable"),
        (tmp_path / "pickled.npy", {}, "unreadable"),
        (tmp_path / "two.safetensors", {}, "holds x, y"),
        (np.zeros(5), {}, r"activations=\(5,\): expected"),
        (np.zeros((5, 2)), {"offsets": [0, 3, 4]}, "must rise from 0 to the 5 rows"),
        (np.zeros((5, 2)), {"offsets": [0, 3, 3, 5]}, "must rise"),
        (np.zeros((5, 2)), {"images": pictured}, "has 4"),
        (np.full((5, 2), 1e6), {}, "dtype=float16: can't hold 1e"),
    ]:
        with pytest.raises(UserError, match=why) as error:
            cache.adopt(given, tmp_path / "runs", **settings)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
