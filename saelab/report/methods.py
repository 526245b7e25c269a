"""How a run was made, as a paragraph for a paper with every setting, and the BibTeX entries that it cites."""

from collections import Counter
from typing import Any

from saelab.report.reading import Basis, Run

# what a run used -> BibTeX entry
REFERENCES = {
    "csp": """@article{bouanani2026csp,
  title = {Contrastive Semantic Projection},
  author = {Bouanani, Oussama and Berend, Jim and Samek, Wojciech and Lapuschkin, Sebastian and Dreyer, Maximilian},
  journal = {arXiv preprint arXiv:2604.22477},
  year = {2026}
}""",
    "semanticlens": """@article{dreyer2025semanticlens,
  title = {Mechanistic understanding and validation of large {AI} models with {SemanticLens}},
  author = {Dreyer, Maximilian and Berend, Jim and Labarta, Tobias and Vielhaben, Johanna and Wiegand, Thomas
            and Lapuschkin, Sebastian and Samek, Wojciech},
  journal = {Nature Machine Intelligence},
  year = {2025}
}""",
    "dissect": """@inproceedings{oikarinen2023clipdissect,
  title = {{CLIP-Dissect}: Automatic Description of Neuron Representations in Deep Vision Networks},
  author = {Oikarinen, Tuomas and Weng, Tsui-Wei},
  booktitle = {International Conference on Learning Representations},
  year = {2023}
}""",
    "sae": """@inproceedings{gao2025scaling,
  title = {Scaling and evaluating sparse autoencoders},
  author = {Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and Goh, Gabriel and Troll, Rajan
            and Radford, Alec and Sutskever, Ilya and Leike, Jan and Wu, Jeffrey},
  booktitle = {International Conference on Learning Representations},
  year = {2025}
}""",
    "conse": """@inproceedings{norouzi2014conse,
  title = {Zero-Shot Learning by Convex Combination of Semantic Embeddings},
  author = {Norouzi, Mohammad and Mikolov, Tomas and Bengio, Samy and Singer, Yoram and Shlens, Jonathon
            and Frome, Andrea and Corrado, Greg S. and Dean, Jeffrey},
  booktitle = {International Conference on Learning Representations},
  year = {2014}
}""",
}
DISSECT = ("soft_wpmi", "wpmi", "cos_cubed", "clip_dissect")


def paragraph(run: Run) -> str:
    """Plain sentences: images, host, bases, labels, comparison; then every setting, as recorded in the recipes."""
    images, facts = run.images, run.facts
    counts = ", ".join(f"{n} {split}" for split, n in images.counts.items())
    host = f" of {facts['host']}" if facts.get("host") else ""
    lines = [
        f"We used {len(images)} images ({images.name}; {counts}; fingerprint {images.fingerprint[:12]}).",
        *(_sentence(basis, host) for basis in run.bases),
        f"Labels come from {facts['encoder']}; every unit of every basis went through the same scorers and vocabulary.",
        *(f"{comparison['selection']}" for comparison in run.comparisons[:1]),
        f"Made with saelab {facts['version']} on {str(facts.get('created', ''))[:10]}.",
    ]
    settings = dict(_flat(facts.get("config") or {}))
    for basis in run.bases:
        for stage, recipe in basis.recipes.items():
            settings |= {f"{basis.name}/{stage}/{key}": value for key, value in _flat(recipe)}
    return " ".join(lines) + "\n\nSettings: " + "; ".join(f"{key} = {value}" for key, value in settings.items()) + "."


def references(run: Run) -> str:
    """BibTeX of the methods that the run used, and nothing else."""
    scorers = {name for basis in run.bases for row in basis.labels for name in row["scores"]}
    used = {
        "csp": any(name.startswith("csp") for name in scorers),
        "semanticlens": "semanticlens" in scorers,
        "dissect": any(name.startswith(DISSECT) for name in scorers),
        "sae": any(basis.kind == "sae" for basis in run.bases),
        "conse": "conse" in run.facts["encoder"].lower(),
    }
    return "\n\n".join(entry for key, entry in REFERENCES.items() if used[key]) + "\n"


def _sentence(basis: Basis, host: str) -> str:
    counted = Counter(row["status"] for row in basis.labels)
    states = ", ".join(f"{n} {status}" for status, n in counted.items())
    seed = "" if basis.seed is None else f" (seed {basis.seed})"
    return f"Basis {basis.short}{seed} has {len(basis.labels)} units of layer {basis.layer}{host} ({states})."


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted name, value) pairs."""
    if isinstance(value, dict):
        return [
            pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)]
