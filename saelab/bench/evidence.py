"""Memory and time of `contrast_evidence` on many images and labels, and of permutations of it.

Its matrix of images x labels (4 GB in the usual size) is held once; all that is read from it is read in blocks of
labels. Run it as the only case, for the peak is the whole process's.
"""

import resource
import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.functional import normalize

from saelab.bench.labels import seconds
from saelab.bench.sae import record
from saelab.label import assign
from saelab.label.nulls import null_percentiles

NAME = "contrast_evidence"


def cases(
    images: int = 50_000, labels: int = 20_000, units: int = 128, d_text: int = 512, permutations: int = 2
) -> Iterator[dict]:
    """Ranks of all labels, then null percentiles, of units that fire on about 2 % of the images.

    `tokens_per_s` counts images, `gemm_seconds` is the product of images and labels, `peak_mb` the most that the whole
    process had in memory so far.
    """
    g = torch.Generator().manual_seed(0)
    image_emb, label_emb = (normalize(torch.randn(n, d_text, generator=g), dim=1) for n in (images, labels))
    acts = (torch.randn(images, units, generator=g) - 2.0).clamp_(min=0).to_sparse_csr()
    few = image_emb[: max(1, images // 25)]  # a part, scaled up: the whole product would be a peak of its own
    product = seconds(lambda: few @ label_emb.T) * images / len(few)
    evidence = assign.Evidence.mined(acts, image_emb, label_emb)
    size = f"{images}x{units}x{labels}"
    found: dict[str, assign.Ranking] = {}
    own = seconds(lambda: found.update(assign.rankings([NAME], evidence)))
    yield record(f"{NAME}, csr {size}", own, product, images, peak_mb())
    best = {NAME: found[NAME].score}
    own = seconds(partial(null_percentiles, [NAME], evidence, permutations, best=best))
    yield record(f"{permutations} permutations of {NAME}, csr {size}", own, product, images, peak_mb())


def peak_mb() -> float:
    """The most memory that this process has had, in MB of 10^6 bytes (macOS counts bytes, Linux 1024 of them)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
