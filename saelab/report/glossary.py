"""What each number means, in a newcomer's words, with its source: shown on hover and focus wherever it appears."""

from typing import Any

from saelab.label.assign import SCORERS

# key: (title, what it says, how to read it, source)
TERMS: dict[str, tuple[str, str, str]] = {
    "unit": (
        "Unit",
        "Anything that fires on an image: a neuron, an SAE feature, a control direction. All are treated alike here.",
        "",
    ),
    "neuron": ("Neurons", "The layer's own coordinates, one unit each.", ""),
    "sae": (
        "SAE features",
        "Latents of a sparse autoencoder trained on the layer's activations; few of them are active at a time.",
        "Gao et al., ICLR 2025",
    ),
    "heads": (
        "Attention heads",
        "What each head of an attention says, before it is projected back: the direction in which it varies most.",
        "",
    ),
    "neuron_groups": (
        "Groups of neurons",
        "Sets of neurons that are high on the same pictures, more often than by chance. A group fires where all its "
        "members do.",
        "after FALCON, Kalibhat et al., ICML 2023",
    ),
    "sae_groups": (
        "Groups of SAE features",
        "Sets of SAE features that are high on the same pictures, more often than by chance. A group fires where all "
        "its members do.",
        "after FALCON, Kalibhat et al., ICML 2023",
    ),
    "pca": ("Principal components", "Directions of largest variance: a control without sparsity.", ""),
    "random_rotation": (
        "Random directions",
        "A random orthogonal basis of the same layer: the control for whether the neurons' own axes are special.",
        "",
    ),
    "untrained": (
        "Untrained SAE features",
        "Latents of an SAE with random weights: what the architecture gives before it learns anything.",
        "Sanity checks for SAEs, arXiv 2602.14111",
    ),
    "frozen_decoder": (
        "SAE features, frozen decoder",
        "Latents of an SAE whose directions stayed random: only its encoder learned.",
        "Sanity checks for SAEs, arXiv 2602.14111",
    ),
    "soft_frozen": (
        "SAE features, soft-frozen decoder",
        "Latents of an SAE whose directions stayed near their random start.",
        "Sanity checks for SAEs, arXiv 2602.14111",
    ),
    "planted": (
        "Planted units",
        "Units made to fire for concepts that people wrote of the pictures: whether labels are right is known. They "
        "are in no model, and compared with nothing.",
        "after the synthetic neurons of MAIA, Shaham et al., ICML 2024",
    ),
    "label": ("Label", "The name that this run's scorer ranks first for the unit.", ""),
    "source": (
        "Where a label comes from",
        "The lists that hold the word: vocabularies, the pictures' classes or captions, and proposers that named it "
        "for any unit, not this one alone.",
        "",
    ),
    "score": (
        "Score",
        "How well the label fits the unit by the scorer's own measure. Scores of different scorers can't be compared.",
        "",
    ),
    "margin": ("Margin", "Score of the label less that of the runner-up. Near zero: the choice was close.", ""),
    "label_set": (
        "Label set",
        "The labels that the scorer might have put first had other images been drawn; the images can't rule any of "
        "them out as the best. A set of one: the label's lead is clear. A long one: the images single out no label. It "
        "says how firm the scorer's choice is, not that the choice is true.",
        "bootstrap over images, docs/scorers.md",
    ),
    "null_percentile": (
        "Beats shuffles",
        "The share of shuffles of the unit's activations over the images whose best label scores lower. Above 95 % the "
        "unit reacts to something nameable; whether this label is right, held-out images say.",
        "permutation test",
    ),
    "random_percentile": (
        "Beats random directions",
        "The share of random directions of this layer whose label does worse on held-out images, above chance and by "
        "the metric that decides. Above 95 % the unit does better than its place in the layer explains.",
        "",
    ),
    "badge": (
        "On held-out images",
        "What photos that neither labelling nor the SAE saw say of the label. holds: the whole 95 % interval of its "
        "correlation with what people wrote lies 0.1 or more above what labels dealt out at random reach on the unit. "
        "weak: above, by less. may be luck: it reaches down to chance, or too few images fire the unit to tell.",
        "0.1: a small effect, Cohen 1988",
    ),
    "abstains": (
        "Abstains",
        "The scorer is not confident: shuffles of the unit's activations give labels that score as high. The label is "
        "shown all the same.",
        "permutation test",
    ),
    "fvu": (
        "Variance unexplained",
        "FVU: the share of the tokens' variance that the SAE's reconstruction misses; 0 is perfect. Much more on "
        "held-out tokens than on those that trained it: the SAE overfits.",
        "",
    ),
    "l0": ("L0", "Mean number of features that are active at a time, on held-out tokens.", ""),
    "stability": (
        "Found again",
        "Share of the features that an SAE of another seed has too (decoder rows matched one to one, cosine 0.7 or "
        "more); beside it what random dictionaries of the data's covariance reach.",
        "Paulo & Belrose, 2025",
    ),
    "hits": (
        "Held-out photos",
        "Photos of the test split, which neither mining nor labelling nor SAE training saw. The label is true of a "
        "photo where its caption or class says so; people mention less than a photo shows, so some false alarms are "
        "none. A hit and a false alarm reach the unit's threshold (without one, fire it); a miss does not.",
        "",
    ),
    "fires": (
        "Fires",
        "An image fires a unit where the activation is above zero (beyond rounding), however little; on all others the "
        "unit is silent. To call an image by the label more is asked: the unit's threshold.",
        "",
    ),
    "threshold": (
        "Its threshold",
        "The activation from which on calling a photo by the unit's label agrees best with what people wrote of the "
        "mined photos (highest F1). A unit fires on more photos than reach it.",
        "",
    ),
    "firing_rate": ("Fires on", "The share of mined images that fire the unit: its activation is above zero.", ""),
    "clarity": (
        "Clarity",
        "Mean pairwise cosine of the strongest images' embeddings: 1 when they all look alike, 0 when unrelated.",
        "SemanticLens, Dreyer et al., 2025",
    ),
    "caption_r": (
        "Caption correlation",
        "Correlation over held-out images between the unit's activation and how well its label fits people's captions.",
        "after simulation correlation, Bills et al., 2023, with captions in a sentence encoder",
    ),
    "caption_clarity": (
        "Caption clarity",
        "Mean pairwise cosine of the captions of the strongest images: coherence judged without any image model.",
        "clarity of captions, after Dreyer et al., 2025",
    ),
    "redundancy": (
        "Redundancy",
        "The largest cosine of this unit's mean image embedding with another unit's: near 1, another says the same.",
        "SemanticLens, Dreyer et al., 2025",
    ),
    "polysemanticity": (
        "Polysemanticity",
        "Distance of the two clusters into which the strongest images fall; 0 one meaning, larger: several.",
        "SemanticLens, Dreyer et al., 2025",
    ),
    "monosemanticity": (
        "Monosemanticity",
        "How alike the images are on which the unit fires, each pair weighed by both activations.",
        "Pach et al., NeurIPS 2025",
    ),
    "scs": (
        "Simulation correlation",
        "Correlation over held-out images between the unit's activation and what its label predicts.",
        "Bouanani et al., arXiv 2604.22477",
    ),
    "truth_r": (
        "Truth correlation",
        "Correlation over held-out images between the unit's activation and whether the label is true of the image.",
        "NeuronEval, ICML 2025",
    ),
    "auprc": (
        "Average precision",
        "Rank held-out images by activation: how purely do those with the label come first? 1 is perfect; "
        "chance is the label's share.",
        "NeuronEval, ICML 2025",
    ),
    "f1": (
        "F1",
        "Agreement of reaching the unit's threshold, fitted on mined images, with the label being true; 0 to 1.",
        "NeuronEval, ICML 2025",
    ),
    "iou": (
        "IoU",
        "Images that reach the unit's threshold and have its label, as a share of those that do either.",
        "Bau et al., CVPR 2017",
    ),
    "auroc": (
        "AUROC",
        "Chance that an image with the label excites the unit more than one without; 0.5 is chance.",
        "Bykov et al., NeurIPS 2023",
    ),
    "interval": (
        "95 % interval",
        "Where the number would lie with other test images like these: bootstrap over images. None where it hangs on "
        "fewer than five images.",
        "percentile bootstrap, 1,000 resamples",
    ),
    "meanings": (
        "Two meanings",
        "The strongest images fall into two clusters that get different labels, each more of one thing than random "
        "images that are split alike: the unit answers to more than one thing.",
        "2-means of the strongest images; after PRISM, 2025",
    ),
    "detection": (
        "Detection accuracy",
        "Of held-out photos a model says which show the label. Some are the strongest that fire the unit, some lie "
        "below its mean (weak): the mean of the shares of either that it tells right; 0.5 is chance.",
        "",
    ),
    "fuzzing": (
        "Fuzzing accuracy",
        "Held-out photos that fire the unit, half framed where it fires and half elsewhere: a model says in which "
        "frames it sees the label. The mean of the shares of either that it tells right: 0.5 is chance.",
        "after Paulo et al., 2024",
    ),
    "intruder": (
        "Intruder found",
        "Of a few photos all but one are among the unit's strongest; a model that knows no label names the other. It "
        "is a look-alike of a strong image that lies below the unit's mean. Chance is one over the number of photos; "
        "the interval is exact binomial.",
        "after Paulo & Belrose, 2025",
    ),
    "embedding_score": (
        "Embedding score",
        "Chance that a held-out photo above the unit's mean lies nearer to the mean embedding of its strongest images "
        "than one below its mean: 0.5 is chance. Beside it, the same for nearness to the mean of all photos.",
        "after Paulo & Belrose, 2025",
    ),
    "positives": ("Strongest images", "The images that excite the unit most, strongest first.", ""),
    "alike": (
        "Alike",
        "Others of the unit's strongest images that are near-duplicates of this one (the photo again, re-encoded, "
        "resized or mirrored), or of its series. A strip shows the strongest of them alone; all count in every number.",
        "",
    ),
    "contrast": (
        "Contrast",
        "For each strong image, the one most like it that leaves the unit below its mean. What sets the two apart is "
        "what the unit responds to.",
        "Bouanani et al., arXiv 2604.22477, section 3",
    ),
    "enrichment": (
        "Over-represented classes",
        "Classes more common among the strongest images than among all that were mined, one image of each series or "
        "set of near-duplicates, chosen before activations are looked at: p is the chance of as many in a random draw "
        "(hypergeometric), times the number of classes (Bonferroni).",
        "",
    ),
    "band": (
        "Activation bands",
        "Images drawn by seed from each tenth of the unit's range, not only from its top. A tenth without an image is "
        "left out.",
        "",
    ),
    "percentile": (
        "Percentile",
        "Where this unit stands among the units of its basis: 90 means better than nine in ten.",
        "",
    ),
    "cofire": ("Fires together", "Pearson correlation of the two units' activations over images.", ""),
    "meaning": (
        "Nearest in meaning",
        "Cosine of the mean embeddings of two units' strongest images, each image by its activation, less the mean of "
        "all mined images; in the space in which the labels were made.",
        "",
    ),
    "decoder": ("Decoder cosine", "Cosine of the two features' directions in the layer.", ""),
    "cliffs_delta": (
        "Cliff's delta",
        "How often a unit of the first side is above one of the second, less how often it is below: 1 where it always "
        "is, 0 where neither is ahead. It needs no unit of measurement.",
        "Cliff 1993",
    ),
    "causal_net": (
        "Own class, net of other units",
        "Take the unit out, and rank all outputs of the network by how much they lose: the percentile of those that "
        "its label means, less the same for other units that fire on the same pictures. Above 0 the network uses this "
        "unit for what its label says.",
        "ours; docs/effects.md",
    ),
    "causal_pct": (
        "Own class",
        "Percentile of the outputs that the label means among all, by how much they lose when the unit is taken out. "
        "Chance is 0.5, but pictures that fire a unit mostly show what its label says, which lifts any unit.",
        "ours; docs/effects.md",
    ),
    "causal": (
        "Own class above dealt labels",
        "The same percentile above what the labels of the basis reach when they are dealt out among its units. The "
        "pictures still show the label, so it decides nothing.",
        "ours; docs/effects.md",
    ),
    "causal_p": (
        "Other labels",
        "The share of the basis' labels whose outputs the unit raises at least as much as those of its own label; "
        "below 5 % the network is taken to use it for its label. So are 5 % of all units by chance.",
        "",
    ),
    "causal_q": (
        "Corrected p",
        "The share of other labels as a p-value, corrected for all units of the basis that were measured (false "
        "discovery rate): of the units below 0.05 one in twenty is expected to be there by chance. The command saelab "
        "effects corrects by the same rule.",
        "Benjamini & Hochberg 1995",
    ),
    "uses_corrected": (
        "Used, corrected",
        "Of the units compared that could be measured, the share whose p-value stays below 0.05 when it is corrected "
        "for all units of the basis that were measured (false discovery rate). The four fields are not corrected: 5 % "
        "of units are used by chance there.",
        "Benjamini & Hochberg 1995",
    ),
    "uses": (
        "Detects and uses",
        "Detects: the label beats shuffles of the unit's activations. Uses: of all labels of the basis, fewer than 5 % "
        "mean outputs that the unit raises as much as those of its own. Chance lets 5 % of units pass either.",
        "",
    ),
    "ok": ("ok", "Fires on enough images and not on nearly all.", ""),
    "dead": ("dead", "Fires on no image.", ""),
    "rare": ("rare", "Fires on fewer than 10 images; still labelled.", ""),
    "dense": ("dense", "Fires on 80 % of the images or more; still labelled.", ""),
    "constant": ("constant", "The same activation on every image.", ""),
    "invalid": ("invalid", "Its activations hold NaN or infinities.", ""),
    "no_contrast": ("no contrast", "No image leaves it below its mean, so no contrast can be drawn.", ""),
}


def terms(scorers: list[str]) -> dict[str, Any]:
    """`{key: {"title", "text", "source"}}` for the pages: all terms, and `scorer:NAME` for each scorer of the run.

    What a scorer is called, and why, stands in its row (`saelab.label.scorers`); one that is gone has its name alone.
    """
    found = dict(TERMS)
    for name in scorers:
        row = SCORERS.get(name)
        found[f"scorer:{name}"] = (row.title, row.explanation, row.reference) if row else (name, "", "")
    return {key: {"title": a, "text": b, "source": c} for key, (a, b, c) in found.items()}
