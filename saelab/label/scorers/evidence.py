"""What scorers may look at, bundled: one set of units, one set of images, one vocabulary, one encoder."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, columns, shape
from saelab.errors import UserError
from saelab.label.mine import ContrastRule, mine_pairs, positive_images
from saelab.label.scorers.checks import check_images, check_labels, promoted, similarities
from saelab.label.scorers.products import Products, Sims

HELD = 1 << 27  # similarities of images and labels that are held together
EMBEDDINGS = ("image_emb", "label_emb", "decoder", "filled_emb", "template_emb")  # what meets in products
SQUARE = 2048  # images whose product with each other is cheaper than picking pairs


@dataclass(frozen=True)
class Evidence:
    """Units' activations, the images' and labels' embeddings, and what was mined from them. `mined` makes one."""

    acts: Acts  # [images, units], dense or sparse, and then kept by columns, whatever it came as
    image_emb: Float[Tensor, "images d_text"]  # rows of unit length
    label_emb: Float[Tensor, "labels d_text"]  # plain means over templates, or unit length
    positive_ids: Int[Tensor, "units k"]  # strongest of the images that fire the unit; -1 where there are none left
    positive_values: Float[Tensor, "units k"]  # their activations; 0 where there are none left
    contrast_ids: Int[Tensor, "units k"]  # each positive's contrast; -1 where there is none
    rule: ContrastRule = field(default_factory=ContrastRule)  # how contrasts were mined: the null mines them so again
    groups: Int[Tensor, "images"] | None = None  # near-duplicates: equal number = same picture
    series: Int[Tensor, "images"] | None = None  # images that chance moves together; None: near-duplicates
    host_emb: Float[Tensor, "images d_in"] | None = None  # the host's own image vectors, for the rule `host`
    concepts: Bool[Tensor, "images labels"] | None = None  # which label is true of which image (INVERT)
    decoder: Float[Tensor, "units d_text"] | None = None  # SAE decoder rows, if the SAE sits in the encoder's space
    filled_emb: Float[Tensor, "labels d_text"] | None = (
        None  # labels in their templates, plain means (WWW, SemanticLens)
    )
    template_emb: Float[Tensor, "d_text"] | None = None  # the templates with nothing filled in, plain mean
    maps: Float[Tensor, "images units height width"] | None = None  # token-level activations (NetDissect)
    masks: Bool[Tensor, "images labels height width"] | None = None  # pixels of each label (NetDissect)
    ties: Int[Tensor, "images"] | None = None  # how images of equal activation go; None: as in `mine.top_images`

    def __post_init__(self) -> None:
        """Bring embeddings and positives' activations to one dtype, float32 at least.

        Raises UserError for activations that are no matrix of real numbers.
        """
        object.__setattr__(self, "acts", columns(self.acts))
        names = [name for name in EMBEDDINGS if getattr(self, name) is not None]
        for name, values in zip(names, promoted(*(getattr(self, name) for name in names)), strict=True):
            object.__setattr__(self, name, values)
        object.__setattr__(self, "positive_values", self.positive_values.to(self.image_emb.dtype))

    @classmethod
    def mined(
        cls,
        acts: Acts,
        image_emb: Float[Tensor, "images d_text"],
        label_emb: Float[Tensor, "labels d_text"],
        k: int = 30,
        rule: ContrastRule | None = None,
        groups: Int[Tensor, "images"] | None = None,
        **more: Tensor | None,
    ) -> "Evidence":
        """Mine at most k positives a unit and their contrasts (`mine_pairs`), and bundle. `more`: optional fields."""
        acts, rule = columns(acts), rule or ContrastRule()
        ids, values, contrasts, _ = mine_pairs(acts, image_emb, k, rule, groups, more.get("host_emb"))
        return cls(acts, image_emb, label_emb, ids, values, contrasts, rule, groups, **more)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return shape(self.acts)[0]

    @property
    def n_units(self) -> int:
        """Number of units."""
        return shape(self.acts)[1]

    @cached_property
    def sims(self) -> Float[Tensor, "images labels"]:
        """P = E T': each image's similarity to each label; kept, for most scorers want it."""
        return similarities(self.acts, self.image_emb, self.label_emb)[1]

    @property
    def looked_at(self) -> Sims:
        """`sims`, or where that would be too large a matrix, what computes as much of it as somebody looks at."""
        if "sims" in self.__dict__ or self.n_images * len(self.label_emb) <= HELD:
            return self.sims
        check_images(self.acts, self.image_emb)
        check_labels(self.label_emb, self.image_emb.shape[1])
        return Products(self.image_emb, self.label_emb)

    @cached_property
    def valid(self) -> Bool[Tensor, "units k"]:
        """Pairs that have both a positive and a contrast."""
        return (self.positive_ids >= 0) & (self.contrast_ids >= 0)

    @cached_property
    def alike(self) -> Float[Tensor, "units k"]:
        """Inner product of each positive with its contrast; of any two images where either is missing."""
        return _products(self.image_emb, self.positive_ids.clamp(min=0), self.contrast_ids.clamp(min=0))

    def positives(self, k: int) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
        """The k strongest images that fire each unit and their activations, mined anew if more than were kept."""
        k = min(k, self.n_images)
        if k <= self.positive_ids.shape[1]:
            return self.positive_ids[:, :k], self.positive_values[:, :k]
        return positive_images(self.acts, k, self.ties)

    def images_of(self, ids: Int[Tensor, "some k"]) -> Float[Tensor, "some k d_text"]:
        """Embeddings by image id; any row for an id of -1 (leave it out by `valid`)."""
        return self.image_emb[ids.clamp(min=0)]

    def need(self, name: str) -> Tensor:
        """An optional field; raises UserError where it was not given."""
        value = getattr(self, name)
        if value is None:
            raise UserError(name, None, "this scorer needs it", f"give {name}, or leave the scorer out")
        return value

    def but(self, **changes: object) -> "Evidence":
        """A copy with some fields changed and nothing kept from before."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _products(
    image_emb: Float[Tensor, "images d_text"], one: Int[Tensor, "units k"], other: Int[Tensor, "units k"]
) -> Float[Tensor, "units k"]:
    """Inner products of pairs of images, unit by unit where there are too many images for one product of all."""
    if len(image_emb) <= SQUARE:
        return (image_emb @ image_emb.T)[one, other]
    return torch.stack([(image_emb[a] * image_emb[b]).sum(dim=1) for a, b in zip(one, other, strict=True)])
