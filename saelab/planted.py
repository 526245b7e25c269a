"""Planted worlds: units whose right label is known, to see which labelling method can be believed, and when.

A world imitates what makes labelling hard. Pictures of a *child* concept (a breed) show its *parent* too (the dog) and
an incidental *scene* that mostly goes with the parent (grass), each of which is a label of its own; image and text
embeddings sit in two cones (CLIP's modality gap). Units fire for a child (narrow), a parent (broad), or two unrelated
children. A scorer that listens to the mean of the top images says the scene; one that asks what the unit tells apart
says the concept. Our own generator; the kinds of worlds are those by which saelab's scorers are compared.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from saelab.errors import UserError

KINDS = ("narrow", "broad", "two")


@dataclass(frozen=True)
class WorldSpec:
    """What a planted world is like. The same spec gives the same world."""

    images: int = 2000  # number of images
    units: int = 300  # number of units
    parents: int = 100  # parent labels; of them `live` have images of their own, the others serve as scenes
    live: int = 20  # parents with pictures
    children: int = 9  # child labels of each parent, all of them in the vocabulary
    dim: int = 256  # dimensions of the embedding space
    scene: float = 0.95  # strength of the incidental scene in an image, where the concept has 0.75
    habit: float = 0.75  # share of images whose scene is their parent's habitual one
    gap: float = 0.9  # strength of the direction that all images share, and of that which all texts share
    image_noise: float = 0.6  # strength of what an image shows beside all that
    label_noise: float = 0.0  # share of images whose listed concepts are those of another image
    kinds: tuple[float, float, float] = (0.7, 0.2, 0.1)  # shares of narrow, broad and two-concept units
    act_noise: float = 0.12  # sd of the noise in activations, where a concept gives about 1
    sibling: float = 0.15  # a narrow unit's response to its concept's siblings
    sparse: float = 0.05  # bias subtracted before the ReLU: 0.05 leaves many weak activations, 0.5 next to none
    dense: bool = False  # no ReLU: units are signed and fire everywhere
    seed: int = 0  # of everything random


@dataclass(frozen=True)
class World:
    """A planted world: what a labelling method sees, and what is true."""

    acts: Float[Tensor, "images units"]  # float32; use .to_sparse_csr() for CSR
    image_emb: Float[Tensor, "images d_text"]  # rows of unit length
    label_emb: Float[Tensor, "labels d_text"]  # rows of unit length
    truth: Bool[Tensor, "images labels"]  # which labels hold on which image, as a data set would list them
    label: Int[Tensor, "units"]  # the planted label; of two, the stronger
    second: Int[Tensor, "units"]  # the other planted label of a two-concept unit, else -1
    kind: Int[Tensor, "units"]  # index into KINDS
    parent: Int[Tensor, "labels"]  # each label's parent; a parent's is itself
    scene: Int[Tensor, "labels"]  # the label of the scene that goes with each label


def make(spec: WorldSpec) -> World:
    """The world of a spec; the same on every machine that has the same torch. Raises UserError for impossible specs."""
    if not 0 < spec.live < spec.parents:
        raise UserError("live", spec.live, f"expected 1 to {spec.parents - 1}: some parents must be left for scenes")
    g = torch.Generator().manual_seed(spec.seed)
    parent, core = _concepts(spec, g)
    first_child = spec.parents
    with_pictures = torch.arange(first_child, first_child + spec.live * spec.children)
    habit = spec.live + torch.randint(spec.parents - spec.live, (spec.parents,), generator=g)

    child = with_pictures[torch.randint(len(with_pictures), (spec.images,), generator=g)]
    other = spec.live + torch.randint(spec.parents - spec.live, (spec.images,), generator=g)
    usual = torch.rand(spec.images, generator=g) < spec.habit
    scene = torch.where(usual, habit[parent[child]], other)
    image_gap, text_gap = _directions(2, spec.dim, g)
    rest = _directions(spec.images, spec.dim, g)
    seen = 0.75 * core[child] + spec.scene * core[scene] + spec.gap * image_gap + spec.image_noise * rest
    member = torch.zeros(spec.images, len(parent), dtype=torch.bool)
    for labels in (child, parent[child], scene):
        member[torch.arange(spec.images), labels] = True

    kind = torch.multinomial(torch.tensor(spec.kinds), spec.units, replacement=True, generator=g)
    label = with_pictures[torch.randint(len(with_pictures), (spec.units,), generator=g)]
    second = with_pictures[torch.randint(len(with_pictures), (spec.units,), generator=g)]
    label = torch.where(kind == 1, parent[label], label)
    second = torch.where((kind == 2) & (second != label), second, -1)
    return World(
        acts=_activations(spec, member, label, second, kind, parent, g),
        image_emb=normalize(seen, dim=1),
        label_emb=normalize(core + spec.gap * text_gap, dim=1),
        truth=_listed(spec, member, g),
        label=label,
        second=second,
        kind=kind,
        parent=parent,
        scene=habit[parent],
    )


def named_right(predicted: Int[Tensor, "units"], world: World) -> dict[str, float]:
    """Shares of units whose predicted label (-1: none) is a planted one: over all units and by kind; and of slips.

    `scene`: units named after the scene that goes with their concept; `parent`: narrow units named after the parent.
    """
    right = (predicted == world.label) | ((predicted == world.second) & (world.second >= 0))
    shares = {"all": float(right.float().mean())}
    for i, name in enumerate(KINDS):
        shares[name] = _share(right, world.kind == i)
    shares["scene"] = float((predicted == world.scene[world.label]).float().mean())
    shares["parent"] = _share(predicted == world.parent[world.label], world.kind == 0)
    return shares


def _share(right: Bool[Tensor, "units"], among: Bool[Tensor, "units"]) -> float:
    return float(right[among].float().mean()) if bool(among.any()) else float("nan")


def _directions(n: int, dim: int, g: torch.Generator) -> Float[Tensor, "n dim"]:
    return normalize(torch.randn(n, dim, generator=g), dim=1)


def _concepts(spec: WorldSpec, g: torch.Generator) -> tuple[Int[Tensor, "labels"], Float[Tensor, "labels dim"]]:
    """Each label's parent, and its direction: a child's is mostly its parent's (cosine 0.8)."""
    base = _directions(spec.parents, spec.dim, g)
    own = _directions(spec.parents * spec.children, spec.dim, g)
    above = torch.arange(spec.parents).repeat_interleave(spec.children)
    child = normalize(0.8 * base[above] + 0.6 * own, dim=1)
    return torch.cat([torch.arange(spec.parents), above]), torch.cat([base, child])


def _activations(
    spec: WorldSpec, member: Tensor, label: Tensor, second: Tensor, kind: Tensor, parent: Tensor, g: torch.Generator
) -> Float[Tensor, "images units"]:
    """Drive by the concept with varying strength, a little by its siblings; noise, ReLU, a scale for each unit."""
    size = (spec.images, spec.units)
    there = member[:, label].float()
    drive = there * (1 + 0.25 * torch.randn(size, generator=g))
    also = member[:, second.clamp(min=0)].float() * (second >= 0)
    drive = torch.maximum(drive, 0.8 * also * (1 + 0.25 * torch.randn(size, generator=g)))
    siblings = member[:, parent[label]].float() * (1 - there) * (kind == 0)
    acts = drive + spec.sibling * siblings + spec.act_noise * torch.randn(size, generator=g)
    if not spec.dense:
        acts = (acts - spec.sparse).relu()
    return acts * (2 + 6 * torch.rand(spec.units, generator=g))


def _listed(
    spec: WorldSpec, member: Bool[Tensor, "images labels"], g: torch.Generator
) -> Bool[Tensor, "images labels"]:
    wrong = torch.rand(spec.images, generator=g) < spec.label_noise
    return torch.where(wrong[:, None], member[torch.randperm(spec.images, generator=g)], member)
