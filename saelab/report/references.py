"""BibTeX entries of what a run can have used, by citation key. Scorers and SAE rules bring their own."""

from collections.abc import Mapping
from typing import Any

from saelab.label.assign import SCORERS
from saelab.sae.rules import RULES, cite, literature

ENTRIES = {
    "norouzi2014conse": """@inproceedings{norouzi2014conse,
  title = {Zero-Shot Learning by Convex Combination of Semantic Embeddings},
  author = {Norouzi, Mohammad and Mikolov, Tomas and Bengio, Samy and Singer, Yoram and Shlens, Jonathon
            and Frome, Andrea and Corrado, Greg S. and Dean, Jeffrey},
  booktitle = {International Conference on Learning Representations},
  year = {2014}
}""",
    "oikarinen2025neuroneval": """@inproceedings{oikarinen2025neuroneval,
  title = {Evaluating Neuron Explanations: A Unified Framework with Sanity Checks},
  author = {Oikarinen, Tuomas and Yan, Ge and Weng, Tsui-Wei},
  booktitle = {International Conference on Machine Learning},
  year = {2025}
}""",
    "pach2025monosemantic": """@inproceedings{pach2025monosemantic,
  title = {Sparse Autoencoders Learn Monosemantic Features in Vision-Language Models},
  author = {Pach, Mateusz and Karthik, Shyamgopal and Bouniot, Quentin and Belongie, Serge and Akata, Zeynep},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2025}
}""",
    "cohen1960kappa": """@article{cohen1960kappa,
  title = {A Coefficient of Agreement for Nominal Scales},
  author = {Cohen, Jacob},
  journal = {Educational and Psychological Measurement},
  volume = {20},
  number = {1},
  pages = {37--46},
  year = {1960}
}""",
    "phipson2010permutation": """@article{phipson2010permutation,
  title = {Permutation P-values Should Never Be Zero},
  author = {Phipson, Belinda and Smyth, Gordon K.},
  journal = {Statistical Applications in Genetics and Molecular Biology},
  volume = {9},
  number = {1},
  year = {2010}
}""",
    "holm1979": """@article{holm1979,
  title = {A Simple Sequentially Rejective Multiple Test Procedure},
  author = {Holm, Sture},
  journal = {Scandinavian Journal of Statistics},
  volume = {6},
  number = {2},
  pages = {65--70},
  year = {1979}
}""",
}

METRICS = {
    "auprc": "oikarinen2025neuroneval",
    "scs": "bouanani2026csp",
    "clarity": "dreyer2025semanticlens",
    "monosemanticity": "pach2025monosemantic",
}


def entries() -> dict[str, str]:
    """Every entry by its key, those of the scorers and of the SAE rules included."""
    cited = [scorer.citation for scorer in SCORERS.values() if scorer.citation is not None]
    trained = [rule.citation for rule in RULES.values()]
    trained += [literature.MATRYOSHKA, literature.ARCHETYPAL, literature.SANITY_CHECKS]
    own = {citation.key: citation.bibtex for citation in cited}
    return ENTRIES | own | {_key(entry): entry for entry in trained if entry}


def of_sae(settings: Mapping[str, Any]) -> list[str]:
    """The citation keys of what an SAE of these settings (a recipe's) rests on."""
    return [_key(entry) for entry in cite(settings)]


def _key(entry: str) -> str:
    return entry.partition("{")[2].partition(",")[0]


def of_scorer(name: str) -> str | None:
    """The citation key of a scorer; None for one without a paper."""
    row = SCORERS.get(name)
    return row.citation.key if row and row.citation else None
