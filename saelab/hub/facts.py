"""What is known of a shared SAE, in one record: card, index and `saes.json` are made from it."""

from typing import Any

from saelab.artifacts import read_json, read_jsonl
from saelab.hub.entries import Entry
from saelab.hub.labels import digest_weights
from saelab.images import ImageSet
from saelab.sae import SAE

Facts = dict[str, Any]
FROM_TRAINING = ("sae", "train", "steps", "data")  # of training.json; of its data only the counts
NUMBERS = {  # column -> what it is, for card and index
    "fvu": "share of variance unexplained, tokens of training",
    "fvu_test": "share of variance unexplained, tokens of test pictures",
    "l0": "active latents a token",
    "dead": "share of latents that never fire",
    "loss_recovered": "share of the host's loss recovered on test pictures",
    "truth_r": "labels against people's words on test pictures: mean correlation, abstaining labels counted",
    "truth_r_shuffled": "the same with labels dealt to other latents",
    "truth_r_above_chance": "the difference",
    "causal_net": "effect on the output that the label names, less that of other latents (percentile)",
}


def gather(entry: Entry, sae: SAE, images: ImageSet | None) -> Facts:
    """Everything that is known: identity, training, quality, labels, effects. A number that nobody measured is None."""
    meta = {"rule": sae.meta.rule, "k": sae.meta.k, "input_norm": sae.meta.input_norm, "digest": digest_weights(sae)}
    about = {"place": entry.place, "name": entry.name, "host": entry.host, "layer": entry.layer}
    known = about | {"d_in": sae.d_in, "latents": sae.latents} | meta | dict.fromkeys(NUMBERS)
    known |= _quality(entry) | _labels(entry) | _effects(entry)
    return known | {"training": _training(entry), "images": _images(images), "encoder": entry.encoder}


def _training(entry: Entry) -> Facts:
    """{setting: value} of training.json, flat; {} for an SAE that was trained elsewhere."""
    file = entry.sae / "training.json"
    made = read_json(file) if file.is_file() else {}
    flat: Facts = {}
    for part in FROM_TRAINING:
        value = made.get(part)
        inner = value if isinstance(value, dict) else {part: value}
        flat |= {name: v for name, v in inner.items() if isinstance(v, int | float | str) and name not in flat}
    return flat


def _quality(entry: Entry) -> Facts:
    """Of the quality stage; else what training measured at its end."""
    if entry.quality is not None:
        found = read_json(entry.quality / "quality.json")
        mine, held, loss = found["mine"], found["held_out"], found.get("loss_recovered")
        numbers = {"fvu": mine["fvu"], "fvu_test": held["fvu"], "l0": held["l0"], "dead": held["dead"]}
        return numbers | {"loss_recovered": loss and loss["ce_recovered"]}
    file = entry.sae / "quality.json"
    found = read_json(file) if file.is_file() else {}
    return {name: found.get(name) for name in ("fvu", "l0", "dead")}


def _labels(entry: Entry) -> Facts:
    known: Facts = {"labelled": 0, "abstained": 0, "truth": None, "test_images": None}
    if entry.labels is not None:
        rows = read_jsonl(entry.labels / "labels.jsonl")
        named = [row for row in rows if row["label"] is not None]
        known |= {"labelled": len(named), "abstained": sum(bool(row["abstained"]) for row in named)}
    if entry.evaluation is None:
        return known
    found = read_json(entry.evaluation / "evaluation.json")
    own, dealt = (found["by_scorer"][side]["metrics"]["truth_r"]["mean_all"] for side in ("named", "shuffled"))
    known |= {"truth_r": own, "truth_r_shuffled": dealt, "truth": found["truth"]}
    known |= {"truth_r_above_chance": None if own is None or dealt is None else own - dealt}
    return known | {"test_images": found["images"]["test"]}


def _effects(entry: Entry) -> Facts:
    file = None if entry.effects is None else entry.effects / "effects.json"
    if file is None or not file.is_file():
        return {}
    net = read_json(file)["mean"]["causal_net"]
    return {"causal_net": net and net["mean"]}


def _images(images: ImageSet | None) -> Facts | None:
    if images is None:
        return None
    return {"name": images.name, "count": len(images), "splits": images.counts, "credit": images.credit} | {
        "fingerprint": images.fingerprint
    }
