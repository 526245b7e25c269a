"""Discover-then-Name: where an SAE's decoder row points among the labels (Rao et al., ECCV 2024)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.scorers.checks import check_labels, promoted
from saelab.label.scorers.scorer import Citation, Scorer, of_all


@takes_arrays
def decoder_direction(
    decoder: Float[Tensor, "units d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """Cosine of an SAE's decoder row with each label: only where the SAE was trained in the text-aligned space.

    Source: Discover-then-Name (Rao et al., ECCV 2024). A row of zeros gets NaN. Raises UserError where the
    dimensions differ, which is how a decoder of another space shows.
    """
    if decoder.ndim != 2:
        raise UserError("decoder", tuple(decoder.shape), "expected [units, d_text]")
    check_labels(label_emb, decoder.shape[1])
    decoder, label_emb = promoted(decoder, label_emb)
    scores = normalize(decoder, dim=1) @ normalize(label_emb, dim=1).T
    return scores.masked_fill((decoder.norm(dim=1) == 0)[:, None], torch.nan)


RAO = Citation(
    "Rao et al., ECCV 2024 (Discover-then-Name)",
    """@inproceedings{rao2024discover,
  title = {Discover-then-Name: Task-Agnostic Concept Bottlenecks via Automated Concept Discovery},
  author = {Rao, Sukrut and Mahajan, Sweta and B{\\"o}hle, Moritz and Schiele, Bernt},
  booktitle = {European Conference on Computer Vision},
  year = {2024}
}""",
)
SCORERS = (
    Scorer(
        "decoder_direction",
        "decoder",
        "Decoder direction",
        "Cosine of the SAE's decoder row with the label, in a text-aligned space.",
        of_all(lambda e: decoder_direction(e.need("decoder"), e.label_emb)),
        None,
        RAO,
    ),
)
