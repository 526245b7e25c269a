"""Many features over many images: memory that does not grow with images x units."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
import numpy as np, torch
from saelab import cache, units
from saelab.sae import SAEConfig, Trainer

root = sys.argv[1]
images, tokens, d_in, latents, k = 50_000, 2, 32, 16_384, 32
rng = np.random.default_rng(0)
store = cache.adopt(rng.standard_normal((images, tokens, d_in), dtype=np.float32), root)
trainer = Trainer(SAEConfig(d_in=d_in, latents=latents, k=k), mean=store.mean, variance=store.variance)
trainer.step(cache.Batches(store.tokens, 256).batch(0))
sae = trainer.sae
sae.save(root + "/sae.safetensors")
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
made = units.sae(store, root, root + "/sae.safetensors")
acts = units.UnitActivations.load(made.path).acts
assert acts.layout == torch.sparse_csr and acts.shape == (images, latents)
with torch.inference_mode():
    for image in (0, 17, images - 1):
        expected = sae.encode(torch.from_numpy(store.image_tokens(image))).dense().amax(0)
        row = units.UnitActivations(acts, "sae", {}).rows(np.array([image]))
        torch.testing.assert_close(row.to_dense()[0], expected)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, acts.values().numel())
"""


@pytest.mark.slow
def test_sixteen_thousand_features_over_fifty_thousand_images_take_less_than_4_gb(tmp_path: Path) -> None:
    """The matrix alone would be 3.3 GB if it were dense."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peak, stored = map(int, done.stdout.split())
    assert peak < 4096 and 50_000 * 32 < stored < 50_000 * 2 * 32
