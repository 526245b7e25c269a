"""What a caller hands to `saelab.Pipeline`: files, names and objects of every kind, read or refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import saelab

ACTS = np.random.default_rng(0).random((37, 6), dtype=np.float32)


def refused(**given) -> str:
    """The one line that refuses a pipeline."""
    with pytest.raises(saelab.UserError) as caught:
        _ = saelab.Pipeline(**given).caches
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500
    return str(caught.value)


# ---- activations -----------------------------------------------------------------------------------------------------


def kept(folder: Path) -> dict[str, object]:
    """The same activations, in every form that stands for them."""
    np.save(folder / "acts.npy", ACTS)
    save_file({"acts": ACTS}, str(folder / "acts.safetensors"))
    tensor = torch.from_numpy(ACTS)
    return {
        "array": ACTS,
        "lists": ACTS.tolist(),
        "tensor": tensor,
        "sparse": tensor.to_sparse(),
        "text": str(folder / "acts.npy"),
        "path": folder / "acts.npy",
        "safetensors": folder / "acts.safetensors",
        "dict of text": {"layer4": str(folder / "acts.npy")},
        "dict of paths": {"layer4": folder / "acts.safetensors"},
        "numbered": {3: folder / "acts.npy"},
        "maps": ACTS.reshape(37, 1, 3, 2),
    }


def test_activations_of_every_form_have_a_row_for_each_image(tmp_path):
    for name, given in kept(tmp_path).items():
        made = saelab.Pipeline(activations=given, root=tmp_path / "runs", workers=0, device="cpu")
        assert len(made.images) == 37, name
        (store,) = made.caches.values()
        assert np.allclose(np.sort(store.tokens, axis=None), np.sort(ACTS, axis=None), atol=1e-3), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.npy", "activations=nothing.npy: no such file"),
        (Path("nothing.npy"), "activations=nothing.npy: no such file"),
        ({"layer4": "nothing.npy"}, "activations=nothing.npy: no such file"),
        ("acts.txt", "activations=acts.txt: unknown kind .txt"),
        ("cut.npy", "activations=cut.npy: unreadable"),
        (3, "activations=(): expected [images, d_in]"),
        ({}, "activations={}: holds no layer"),
        (np.zeros((4, 0)), "activations=(4, 0): expected [images, d_in]"),
    ],
)
def test_activations_that_are_none_are_refused(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("acts.txt").write_text("1 2 3")
    np.save("cut.npy", ACTS)
    Path("cut.npy").write_bytes(Path("cut.npy").read_bytes()[:200])
    assert refused(activations=given).startswith(message)
