"""BibTeX entries of the papers that rules, decoders and frozen parts come from."""

TOPK = """@inproceedings{gao2025scaling,
  title = {Scaling and evaluating sparse autoencoders},
  author = {Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and Goh, Gabriel and Troll, Rajan
            and Radford, Alec and Sutskever, Ilya and Leike, Jan and Wu, Jeffrey},
  booktitle = {International Conference on Learning Representations},
  year = {2025}
}"""
BATCHTOPK = """@article{bussmann2024batchtopk,
  title = {{BatchTopK} Sparse Autoencoders},
  author = {Bussmann, Bart and Leask, Patrick and Nanda, Neel},
  journal = {arXiv preprint arXiv:2412.06410},
  year = {2024}
}"""
JUMPRELU = """@article{rajamanoharan2024jumprelu,
  title = {Jumping Ahead: Improving Reconstruction Fidelity with {JumpReLU} Sparse Autoencoders},
  author = {Rajamanoharan, Senthooran and Lieberum, Tom and Sonnerat, Nicolas and Conmy, Arthur and Varma, Vikrant
            and Kram{\\'a}r, J{\\'a}nos and Nanda, Neel},
  journal = {arXiv preprint arXiv:2407.14435},
  year = {2024}
}"""
RELU = """@article{bricken2023monosemanticity,
  title = {Towards Monosemanticity: Decomposing Language Models With Dictionary Learning},
  author = {Bricken, Trenton and Templeton, Adly and Batson, Joshua and Chen, Brian and Jermyn, Adam
            and Conerly, Tom and others},
  journal = {Transformer Circuits Thread},
  year = {2023}
}"""
MATRYOSHKA = """@inproceedings{bussmann2025matryoshka,
  title = {Learning Multi-Level Features with Matryoshka Sparse Autoencoders},
  author = {Bussmann, Bart and Nabeshima, Noa and Karvonen, Adam and Nanda, Neel},
  booktitle = {International Conference on Machine Learning},
  year = {2025}
}"""
ARCHETYPAL = """@article{fel2025archetypal,
  title = {Archetypal {SAE}: Adaptive and Stable Dictionary Learning for Concept Extraction in Large Vision Models},
  author = {Fel, Thomas and Lubana, Ekdeep Singh and Prince, Jacob S. and Kowal, Matthew and Boutin, Victor
            and Papadimitriou, Isabel and Wang, Binxu and Wattenberg, Martin and Ba, Demba and Konkle, Talia},
  journal = {arXiv preprint arXiv:2502.12892},
  year = {2025}
}"""
SANITY_CHECKS = """@article{korznikov2026sanity,
  title = {Sanity Checks for Sparse Autoencoders: Do {SAEs} Beat Random Baselines?},
  author = {Korznikov, Anton and Galichin, Andrey and Dontsov, Alexey and Rogov, Oleg and Oseledets, Ivan
            and Tutubalina, Elena},
  journal = {arXiv preprint arXiv:2602.14111},
  year = {2026}
}"""
