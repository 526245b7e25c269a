"""The text and tables of docs/melanoma.md from what melanoma.py measured."""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from saelab.tables import draw_markdown

LEVEL, GOOD, MOST = 0.05, 0.7, 0.9
WIDTH = 120  # columns
HEAD = """# A case study: what does "melanoma" rest on?

PH2 has 200 dermoscopy pictures (80 common nevi, 80 atypical ones, {sick} melanomas) with what dermatologists saw in
each (Mendonça et al., EMBC 2013). **It is for research and education. Nothing on this page is clinical**: {sick}
melanomas of one hospital, one camera, and a network that was trained on ImageNet. The page shows how saelab is used
where truth comes from experts and not from a text encoder, and how little {count} pictures can say. One command made
it, in about five minutes:

```bash
python scripts/studies/melanoma.py FOLDER > docs/melanoma.md
```

Host: EfficientNet-Lite0. Layer: `_blocks.15`, 320 neurons; an SAE of 640 latents, k 16, trained on the mine pictures'
tokens. Head: a logistic regression for *melanoma* on the host's outputs, fitted on the mine pictures (penalty by
cross-validation inside them). {splits} random splits, three fifths to mine and two fifths to test; near-duplicates
stay together. Every number is a mean over the splits, ± their standard deviation. Splits of the same 200 pictures
overlap, so the spread understates how far another hospital's pictures might lie.

## The head
AUROC of melanoma on test pictures: **{real}**. The same head fitted on diagnoses dealt out anew over the mine
pictures: {dealt}.

## Which unit is which concept?
For every concept that at least {fewest} mine pictures have and as many lack: the unit of the highest AUROC on mine, and
its AUROC on test. `p` asks how often the best of *all* units does as well on mine where the concept is dealt out anew
over the pictures ({permutations} times): it knows how many units were tried, which the AUROC on mine does not. The
median over splits, and the share of splits in which p is below .05.

"""
CONTROL = """
**The control**: the same with every concept dealt out anew over the pictures. Of {tried} such tests {share:.1%} are
below .05; 5 % are expected. A split has one deal for all concepts and both bases, so these are {splits} independent
draws and not {tried}.

**What is left**: p below .05 in every split and a mean test AUROC of .70 or more: {found}.

"""
EFFECTS = """## Does the head use them?
The five best units of a concept (on mine) are taken out together, on up to {shown} test pictures that show it. `fall`:
by how much the logit of melanoma falls. Beside it what five other units do, the mean of {sets} draws, and the share of
draws that make it fall less (.50: no difference). `as loud`: others whose parts are as long on these pictures.
`as telling`: others that tell melanoma from nevi as well on mine. The second is the control that matters:
dermatologists look for these signs *because* melanomas have them, so whatever reacts to melanoma reacts to them too.
The host's later layers run anew; in an SAE only the units' parts are taken out, and its error stays.

"""
END = """
**What is left**: a larger fall than nine in ten of both controls: {used}.

## How to read it
* The AUROC on mine is a maximum over hundreds of units, and the fall to test shows how much of it was luck. Only a
  concept with a small p in most splits *and* a test AUROC clear of .50 has a unit here.
* Far above `as loud` but not above `as telling`: the head rests on these units because they react to melanomas, and
  nothing here says that it sees *this sign*. Near .50 in both: it does not rest on them. Neither says that the signs
  don't matter: this network was never taught a word for them.
* The rules of *what is left* (.70; nine in ten) were set with an earlier run of these tables in sight: they sum up,
  and test nothing.
* A head on ImageNet features, 24 melanomas to learn from, 16 to be tested on: the standard error of one split's AUROC
  is near .07.

## With a dermatology model
For real work take a host that has seen lesions, an encoder that reads dermoscopy, and more pictures. These commands are
given and were not run here, since their weights and pictures are not free to fetch:

```bash
# ISIC 2019, HAM10000 or BCN20000, one folder a diagnosis; labels in WhyLesionCLIP's space (figure 6 of CSP)
saelab quickstart +experiment=melanoma images.root=ISIC host.weights=CHECKPOINT label.vocabulary='[file:TERMS.txt]'
# PanDerm's ViT-L/16 as host, patches only
saelab quickstart images=folder images.root=HAM10000 host=own host.name=timm:vit_large_patch16_224 \\
  host.weights=PANDERM.pth layers='[blocks.20]' policy=patches label.vocabulary='[file:TERMS.txt]'
saelab effects run=runs/quickstart.json head=probe
```
"""


def draw(names: Sequence[str], concepts: np.ndarray, found: Sequence[dict[str, list[dict]]]) -> str:
    """The page in Markdown."""
    from melanoma import DISEASE, FEWEST, PERMUTATIONS, SETS, SHOWN

    heads = [row for one in found for row in one["head"]]
    best = [row for one in found for row in one["best"]]
    effects = [row for one in found for row in one["effects"]]
    chance = np.array([row["chance_p"] for row in best])
    text = HEAD.format(
        sick=int(concepts[:, names.index(DISEASE)].sum()),
        count=len(concepts),
        splits=len(found),
        real=_spread([row["real"] for row in heads]),
        dealt=_spread([row["dealt"] for row in heads]),
        fewest=FEWEST,
        permutations=PERMUTATIONS,
    )
    text += (
        _best_table(best)
        + "\n"
        + CONTROL.format(
            tried=len(chance), share=float((chance < LEVEL).mean()), splits=len(found), found=_named(best, _is_found)
        )
    )
    text += EFFECTS.format(sets=SETS, shown=SHOWN) + _effects_table(effects) + "\n"
    return wrap(text + END.format(used=_named(effects, _is_used)))


def wrap(text: str) -> str:
    """Long lines in lines of at most 120 columns; tables as they are."""
    fill = partial(textwrap.fill, width=WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(fill(line) if len(line) > WIDTH and line[0] != "|" else line for line in text.split("\n"))


def _is_found(rows: Sequence[dict]) -> bool:
    return max(row["p"] for row in rows) < LEVEL and float(np.mean([row["test"] for row in rows])) >= GOOD


def _is_used(rows: Sequence[dict]) -> bool:
    return min(float(np.mean([row[name] for row in rows])) for name in ("above_loud", "above_telling")) > MOST


def _named(rows: Sequence[dict], is_so: Callable[[Sequence[dict]], bool]) -> str:
    """The concepts and bases of which it is so, in words."""
    return ", ".join(f"*{concept}* ({basis})" for basis, concept, own in _grouped(rows) if is_so(own)) or "none"


def _best_table(rows: Sequence[dict]) -> str:
    lines = []
    for basis, concept, own in _grouped(rows):
        p = np.array([row["p"] for row in own])
        spread = [_spread([row[name] for row in own]) for name in ("mine", "test")]
        lines.append([concept, basis, _pictures(own), *spread, f"{np.median(p):.3f}", f"{(p < LEVEL).mean():.0%}"])
    return draw_markdown(("concept", "basis", "mine pictures", "AUROC mine", "AUROC test", "p", "p < .05"), lines)


def _effects_table(rows: Sequence[dict]) -> str:
    lines = []
    for basis, concept, own in _grouped(rows):
        spread = [_spread([row[name] for row in own], 2) for name in ("fall", "loud", "telling")]
        above = [_spread([row[f"above_{name}"] for row in own], 2) for name in ("loud", "telling")]
        lines.append([concept, basis, spread[0], spread[1], above[0], spread[2], above[1]])
    return draw_markdown(("concept", "basis", "fall", "as loud", "share below", "as telling", "share below"), lines)


def _grouped(rows: Sequence[dict]) -> list[tuple[str, str, list[dict]]]:
    """(basis, concept, its rows over splits), concepts by name; only what at least half the splits could measure."""
    keys = sorted({(row["concept"], row["basis"]) for row in rows})
    splits = max(sum((row["concept"], row["basis"]) == key for row in rows) for key in keys)
    grouped = [(b, c, [row for row in rows if (row["concept"], row["basis"]) == (c, b)]) for c, b in keys]
    return [entry for entry in grouped if 2 * len(entry[2]) >= splits]


def _pictures(rows: Sequence[dict]) -> str:
    counts = [row["pictures"] for row in rows]
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"
