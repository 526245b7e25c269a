"""BibTeX entries of what a run can have used, by citation key. Scorers bring their own (`saelab.label.scorers`)."""

from saelab.label.assign import SCORERS

ENTRIES = {
    "gao2025scaling": """@inproceedings{gao2025scaling,
  title = {Scaling and evaluating sparse autoencoders},
  author = {Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and Goh, Gabriel and Troll, Rajan
            and Radford, Alec and Sutskever, Ilya and Leike, Jan and Wu, Jeffrey},
  booktitle = {International Conference on Learning Representations},
  year = {2025}
}""",
    "bussmann2024batchtopk": """@article{bussmann2024batchtopk,
  title = {{BatchTopK} Sparse Autoencoders},
  author = {Bussmann, Bart and Leask, Patrick and Nanda, Neel},
  journal = {arXiv preprint arXiv:2412.06410},
  year = {2024}
}""",
    "bussmann2025matryoshka": """@inproceedings{bussmann2025matryoshka,
  title = {Learning Multi-Level Features with Matryoshka Sparse Autoencoders},
  author = {Bussmann, Bart and Nabeshima, Noa and Karvonen, Adam and Nanda, Neel},
  booktitle = {International Conference on Machine Learning},
  year = {2025}
}""",
    "rajamanoharan2024jumprelu": """@article{rajamanoharan2024jumprelu,
  title = {Jumping Ahead: Improving Reconstruction Fidelity with {JumpReLU} Sparse Autoencoders},
  author = {Rajamanoharan, Senthooran and Lieberum, Tom and Sonnerat, Nicolas and Conmy, Arthur and Varma, Vikrant
            and Kram{\\'a}r, J{\\'a}nos and Nanda, Neel},
  journal = {arXiv preprint arXiv:2407.14435},
  year = {2024}
}""",
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

# an SAE's rule -> what to cite for it
RULES = {
    "topk": "gao2025scaling",
    "batchtopk": "bussmann2024batchtopk",
    "matryoshka": "bussmann2025matryoshka",
    "jumprelu": "rajamanoharan2024jumprelu",
}
METRICS = {
    "auprc": "oikarinen2025neuroneval",
    "scs": "bouanani2026csp",
    "clarity": "dreyer2025semanticlens",
    "monosemanticity": "pach2025monosemantic",
}


def entries() -> dict[str, str]:
    """Every entry by its key, those of the scorers included."""
    cited = [scorer.citation for scorer in SCORERS.values() if scorer.citation is not None]
    return ENTRIES | {citation.key: citation.bibtex for citation in cited}


def of_scorer(name: str) -> str | None:
    """The citation key of a scorer; None for one without a paper."""
    row = SCORERS.get(name)
    return row.citation.key if row and row.citation else None
