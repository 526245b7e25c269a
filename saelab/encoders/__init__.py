"""Image-text encoders: the space in which images and labels are compared.

`load("conse")` needs no hub; `load("open_clip:ViT-B-32/laion2b_s34b_b79k")` and
`load("transformers:google/siglip-base-patch16-224")` take a hub name or a local path.
`image_embeddings` and `label_embeddings` keep what they compute as artifacts.
"""

from saelab.encoders.averages import WordAverages, second_reader
from saelab.encoders.base import CSP_PAPER_TEMPLATES, Encoder, embed_templates
from saelab.encoders.embed import ImageEmbeddings, image_embeddings, label_embeddings
from saelab.encoders.loaders import load
from saelab.encoders.sentences import SentenceEncoder

__all__ = [
    "CSP_PAPER_TEMPLATES",
    "Encoder",
    "ImageEmbeddings",
    "SentenceEncoder",
    "WordAverages",
    "embed_templates",
    "image_embeddings",
    "label_embeddings",
    "load",
    "second_reader",
]
