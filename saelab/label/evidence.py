"""What the scorers of one basis look at; a scorer that finds nothing to look at is left out, with the reason."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.label import concepts
from saelab.label.assign import SCORERS, Evidence
from saelab.label.exemplars import Exemplars, MiningSettings
from saelab.label.series import group_mined
from saelab.label.settings import LabelSettings
from saelab.label.vocabulary import Vocabulary
from saelab.units import UnitActivations

log = logging.getLogger("saelab")

# Least mean cosine of a layer's tokens and the encoder's image vectors that makes them one space. Host and encoder may
# resize by different libraries: on photos that gave .9996 in the mean and .993 at worst (DINOv2-S, one pixel's shift).
ALIGNED = 0.98


@dataclass(frozen=True)
class Templates:
    """Label texts and their templates apart, as some scorers want them: plain means over templates."""

    filled: Float[Tensor, "labels d_text"]  # of the filled templates' unit-length vectors, not renormalised
    empty: Float[Tensor, "d_text"]  # of the templates with nothing filled in


def evidence(
    units: UnitActivations,
    found: Exemplars,
    images: ImageSet,
    image_emb: Tensor,
    label_emb: Tensor,
    mining: MiningSettings,
    host_emb: Float[Tensor, "images d_in"] | None = None,
) -> Evidence:
    """What most scorers look at, for the images of the `mine` split only; ids in it are rows of that split.

    `host_emb`: the host's own image vectors, for the nulls of the mining rule `host`.
    """
    ids = torch.as_tensor(images.ids("mine"))
    local = torch.full((len(images) + 1,), -1, dtype=torch.int64)  # the last entry answers for id -1
    local[ids] = torch.arange(len(ids))
    return Evidence(
        acts=units.rows(ids.numpy()),
        image_emb=image_emb[ids],
        label_emb=label_emb,
        positive_ids=local[found.positives],
        positive_values=found.activations,
        contrast_ids=local[found.contrasts],
        rule=mining.contrast,
        groups=torch.as_tensor(images.groups[ids.numpy()]),
        series=torch.as_tensor(group_mined(images)[ids.numpy()]),
        host_emb=None if host_emb is None else host_emb[ids],
    )


def complete(
    bundle: Evidence,
    settings: LabelSettings,
    vocabulary: Vocabulary,
    images: ImageSet,
    tokens: concepts.Tokens | None,
    templates: Templates | None,
) -> tuple[Evidence, dict[str, str]]:
    """The evidence with what only some of the scorers ask for, and why each scorer that lacks it is left out.

    Marks of people, token maps and vectors are those of the `mine` images. Raises UserError where the final scorer
    is among those that lack something.
    """
    ids = images.ids("mine")
    ways: dict[str, Callable[[], dict[str, Tensor]]] = {
        "concepts": lambda: {"concepts": concepts.classes(vocabulary.labels, images, ids)},
        "maps": lambda: _places(vocabulary, images, tokens),
        "decoder": lambda: {"decoder": decoder_rows(tokens, bundle.image_emb, ids)},
        "templates": lambda: _templates(templates),
    }
    lost: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    for name in settings.scorers:
        try:
            found |= ways.get(SCORERS[name].needs, dict)()
        except UserError as error:
            own = UserError("scorer", name, error.expected, error.remedy)
            if name == settings.final:
                raise own from None
            lost[name] = str(own)
            log.warning("%s is left out (%s)", name, own)
    return bundle.but(**found), lost


def decoder_rows(tokens: concepts.Tokens | None, image_emb: Tensor, ids: np.ndarray) -> Float[Tensor, "units d_text"]:
    """An SAE's decoder, if the SAE reads the encoder's own image vectors (Discover-then-Name, ECCV 2024).

    `image_emb`: the encoder's vectors of the images `ids`. Raises UserError for units that are no SAE's, and for an
    SAE of another space: where the layer's tokens are not, image by image, the encoder's vectors (but for their
    length).
    """
    if tokens is None or tokens.project.sae is None:
        raise UserError("scorer", "decoder_direction", "these units have no decoder", "only an SAE's have: bases=[sae]")
    if tokens.project.groups is not None:  # rows of the decoder are features', not groups'
        what = "groups have no decoder row of their own"
        raise UserError(
            "scorer", "decoder_direction", what, "leave it out, or label what they are made of: bases=[sae]"
        )
    cache = tokens.cache
    remedy = "cache the encoder's own image embedding as the layer (docs/scorers.md), or leave it out"
    if cache.d_in != image_emb.shape[1] or not (np.diff(cache.offsets)[ids] == 1).all():
        found = f"{cache.layer} is not one vector of {image_emb.shape[1]} numbers an image, as the encoder's are"
        raise UserError("scorer", "decoder_direction", found, remedy)
    own = torch.stack([torch.as_tensor(cache.image_tokens(i))[0] for i in ids.tolist()])
    alike = float((normalize(own.float(), dim=1) * normalize(image_emb, dim=1)).sum(dim=1).mean())
    if not alike >= ALIGNED:
        found = f"{cache.layer} does not hold the encoder's image vectors (mean cosine {alike:.2f})"
        raise UserError("scorer", "decoder_direction", found, remedy)
    return tokens.project.sae.W_dec.detach().float().cpu()


def _places(vocabulary: Vocabulary, images: ImageSet, tokens: concepts.Tokens | None) -> dict[str, Tensor]:
    if tokens is None:
        raise UserError("scorer", "netdissect", "needs the layer's tokens", "leave it out, or give `tokens`")
    ids = images.ids("mine")
    masks = concepts.pixels(vocabulary.labels, images, ids, tokens.cache)
    return {"masks": masks, "maps": concepts.maps(tokens, ids)}


def _templates(templates: Templates | None) -> dict[str, Tensor]:
    if templates is None:
        raise UserError("scorer", "www", "needs labels and templates apart", "leave it out, or give `templates`")
    return {"filled_emb": templates.filled, "template_emb": templates.empty}
