"""ImageNet's and WordNet's names and definitions, as timm and open_clip carry them: nothing is downloaded."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def _inside(package: str, *parts: str) -> Path:
    """A file of a required package, found without importing it (open_clip takes seconds to import)."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent.joinpath(*parts)


def _info(name: str) -> list[str]:
    return _inside("timm", "data", "_info", name).read_text(encoding="utf-8").splitlines()


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """The 1000 WordNet ids of ILSVRC-2012 in the order of every classifier's logits ("n01440764" first)."""
    return tuple(_info("imagenet_synsets.txt"))


@cache
def imagenet_names() -> tuple[str, ...]:
    """A readable name for each of the 1000 classes (open_clip's list, in which every name says one thing)."""
    tree = ast.parse(_inside("open_clip", "zero_shot_metadata.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "IMAGENET_CLASSNAMES":
            return tuple(ast.literal_eval(statement.value))
    raise RuntimeError("open_clip no longer carries IMAGENET_CLASSNAMES in zero_shot_metadata.py")


@cache
def imagenet_definitions() -> tuple[str, ...]:
    """WordNet's definition for each of the 1000 classes."""
    definitions = dict(line.split("\t", 1) for line in _info("imagenet_synset_to_definition.txt"))
    return tuple(definitions[synset] for synset in imagenet_synsets())


@cache
def imagenet_lemmas() -> tuple[tuple[str, ...], ...]:
    """WordNet's synonyms for each of the 1000 classes."""
    lemmas = dict(line.split("\t", 1) for line in _info("imagenet_synset_to_lemma.txt"))
    return tuple(tuple(word.strip() for word in lemmas[synset].split(",")) for synset in imagenet_synsets())


@cache
def imagenet21k_names() -> tuple[str, ...]:
    """The first lemma of each of ImageNet-21k's 21,841 synsets, in the order of the list."""
    lemmas = dict(line.split("\t", 1) for line in _info("imagenet_synset_to_lemma.txt"))
    return tuple(lemmas[synset].split(",")[0].strip() for synset in _info("imagenet22k_synsets.txt"))
