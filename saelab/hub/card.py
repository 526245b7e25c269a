"""Cards made from data: of one SAE, and of a repository. The front matter is the hub's, with a model index."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab import tables
from saelab.hub.facts import NUMBERS, Facts
from saelab.hub.settings import PushSettings

TAGS = ["sparse-autoencoder", "interpretability", "vision", "saelab", "saelens"]
INDEX = {"fvu": "FVU", "fvu_test": "FVU, test", "l0": "L0", "dead": "dead", "loss_recovered": "loss recovered"}
INDEX |= {"truth_r_above_chance": "truth r above chance"}
DRAWN, SEED = 20, 0  # labels on a card, drawn by this seed: none is picked


def write_card(facts: Facts, rows: Sequence[dict[str, Any]], repo: str, settings: PushSettings) -> str:
    """README.md of one SAE; `rows`: of its labels.jsonl, [] without labels."""
    place = facts["place"]
    load = f'sae = SAE.from_pretrained("{repo}", "{place}")  # codes = sae.encode(activations)'
    code = ["from saelab.sae import SAE", "from saelab.hub import labels", "", load]
    code += [f'rows = labels.from_pretrained("{repo}", "{place}")'] if rows else []
    if facts["saelens"] is None:
        code += ["", f'from sae_lens import SAE as SAELens\nSAELens.from_pretrained("{repo}", "{place}")']
    parts = [
        write_front_matter([facts], repo, settings),
        f"# {escape(facts['name'])}: layer {escape(facts['layer'])} of {escape(facts['host'])}",
        f"A sparse autoencoder of this layer's activations: {facts['latents']} latents ({facts['rule']}).",
        "```python\n" + "\n".join(code) + "\n```",
        "## Training\n" + draw_table(["setting", "value"], list(facts["training"].items())),
        "## Measured\n" + _measured(facts),
        *(["## Labels\n" + _drawn(rows)] if rows else []),
        "## Limits\n" + "\n".join(f"* {line}" for line in _limits(facts, settings)),
    ]
    return "\n\n".join(parts) + "\n"


def write_index_page(all_facts: Sequence[Facts], repo: str) -> str:
    """index.html: the same table, sorted by whichever column is clicked. It loads nothing from elsewhere."""
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("saelab.hub", "."), autoescape=True).get_template("index.html")
    return page.render(repo=repo, columns=INDEX, meaning=NUMBERS, saes=all_facts)


def write_index(all_facts: Sequence[Facts], repo: str, settings: PushSettings) -> str:
    """README.md of the repository: its SAEs, best labels first. `index.html` beside it sorts by any column."""
    ranked = sorted(all_facts, key=lambda facts: -(facts["truth_r_above_chance"] or 0))
    head = ["SAE", "rule", "latents", *INDEX.values()]
    links = [f"[{escape(f['layer'])} {escape(f['name'])}]({f['place']}/README.md)" for f in ranked]
    rows = [[Raw(link), f["rule"], f["latents"], *(f[key] for key in INDEX)] for link, f in zip(links, ranked)]
    title = f"# SAEs of {', '.join(dict.fromkeys(escape(f['host']) for f in all_facts))}"
    beside = "The same as data: `saes.json`; as a table to sort: `index.html`."
    beside += " Pictures: `pictures/`, with `CREDITS.md`." if settings.pictures else ""
    return "\n\n".join([write_front_matter(all_facts, repo, settings), title, draw_table(head, rows), beside]) + "\n"


def write_front_matter(all_facts: Sequence[Facts], repo: str, settings: PushSettings) -> str:
    """The YAML between dashes, by huggingface_hub's own ModelCardData; what is not known is left out."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="feature-extraction",
            task_name=f"SAE of {facts['layer']}",
            dataset_type=facts["images"]["name"] if facts["images"] else "unknown",
            dataset_name=facts["images"]["name"] if facts["images"] else "unknown",
            dataset_split="train" if key == "fvu" else "test",
            metric_type=key,
            metric_name=f"{INDEX[key]} ({facts['place']})",
            metric_value=facts[key],
        )
        for facts in all_facts
        for key in INDEX
        if facts[key] is not None
    ]
    data = ModelCardData(
        library_name="saelab",
        tags=TAGS,
        license=settings.license,
        base_model=settings.base_model or find_base_model(all_facts[0]["host"]),
        datasets=sorted({name for facts in all_facts if (name := find_dataset(facts))}) or None,
        model_name=repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def find_base_model(host: str) -> str | None:
    """The host's name on the hub, where its name in the run says so; None for any other host."""
    family, _, name = host.partition(":")
    if family == "transformers" and name.count("/") == 1:
        return name
    return f"timm/{name}" if family == "timm" and "." in name and "/" not in name else None


def find_dataset(facts: Facts) -> str | None:
    """The image set's name on the hub, where its credit says that it comes from there."""
    credit = (facts["images"] or {}).get("credit") or ""
    name = credit.removeprefix("Hugging Face dataset ")
    return name if name != credit and name.count("/") == 1 and not name.startswith((".", "/")) else None


def _measured(facts: Facts) -> str:
    rows = [[key, facts[key], meaning] for key, meaning in NUMBERS.items() if facts[key] is not None]
    where = f"{facts['test_images']} test pictures" if facts["test_images"] else "the pictures of training"
    images = facts["images"]
    of = f" of {escape(images['name'])} (fingerprint {images['fingerprint'][:10]})" if images else ""
    return draw_table(["number", "value", "what it is"], rows) + f"\n\nLabels and held-out numbers: on {where}{of}."


def _drawn(rows: Sequence[dict[str, Any]]) -> str:
    """Some labels, drawn from those that latents have."""
    named = [row for row in rows if row["label"] is not None]
    count = min(DRAWN, len(named))
    chosen = sorted(np.random.default_rng(SEED).choice(len(named), count, replace=False).tolist()) if named else []
    lines = []
    for row in (named[i] for i in chosen):
        score = row["scores"].get(row.get("final")) or {}
        mark = "abstains" if row["abstained"] else ""
        lines.append([row["unit"], row["label"], score.get("score"), score.get("null_percentile"), mark])
    head = ["latent", "label", "score", "null percentile", ""]
    return (
        draw_table(head, lines)
        + f"\n\n{count} of {len(named)} labels, drawn by seed {SEED}. All are in `labels.jsonl`."
    )


def _limits(facts: Facts, settings: PushSettings) -> list[str]:
    lines = [f"It reads raw activations of this layer of this host ({facts['d_in']} numbers a token), and no other."]
    if facts["abstained"]:
        lines.append(
            f"{facts['abstained']} of {facts['labelled']} labels abstain: their score is not above what chance gives."
        )
    if facts["truth_r"] is None:
        lines.append("No label was compared with what people see in the pictures.")
    if facts["fvu_test"] is None:
        lines.append("Reconstruction was not measured on held-out pictures.")
    if facts["loss_recovered"] is None:
        lines.append("What the host still recognises through the SAE was not measured.")
    if facts["causal_net"] is None:
        lines.append("What latents do to the host's output was not measured.")
    if facts["saelens"] is not None:
        lines.append(f"SAELens cannot express it: {escape(facts['saelens'])}.")
    if settings.license is None:
        lines.append("Its owner has named no licence.")
    return lines


class Raw(str):
    """Markdown that goes into a table as it is."""


def draw_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with four significant digits, what is not known as a dash."""
    return tables.draw_markdown(head, [[escape(cell) for cell in row] for row in rows])


def escape(value: Any) -> str:
    """A value in Markdown, in one line and without markup of its own: labels may hold anything."""
    if value is None:
        return "–"
    if isinstance(value, Raw):
        return value
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return text
