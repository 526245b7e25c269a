"""SAE rules: which latents stay. One object a rule, looked up by its name; this table is the only list of them.

To add a rule, write a subclass of `Selection` or `Gate` (rule.py) and enter it here (`RULES[rule.name] = rule`):
configs, training, files, quality and citations then know it.
"""

from collections.abc import Mapping
from typing import Any

from saelab.errors import UserError
from saelab.sae.rules import literature
from saelab.sae.rules.gates import JumpReLU, ReLU
from saelab.sae.rules.rule import Gate, Rule, Selection
from saelab.sae.rules.topk import BatchTopK, TopK

RULES: dict[str, Rule] = {rule.name: rule for rule in (TopK(), BatchTopK(), JumpReLU(), ReLU())}

__all__ = ["RULES", "Gate", "Rule", "Selection", "cite", "find", "name_supporting"]


def find(name: str) -> Rule:
    """The rule of this name. Raises UserError, with all names, where there is none."""
    if name not in RULES:
        raise UserError("rule", name, f"one of {', '.join(RULES)}")
    return RULES[name]


def name_supporting(field: str) -> str:
    """The rules that honour a field of SAEConfig, as messages name them: `rule=topk or batchtopk`."""
    return "rule=" + " or ".join(name for name, rule in RULES.items() if field in rule.supports)


def cite(settings: Mapping[str, Any]) -> list[str]:
    """BibTeX entries of what an SAE rests on, from its settings (the fields of SAEConfig, as a recipe holds them)."""
    decoder, frozen = settings.get("decoder", "free"), settings.get("frozen", "none")
    entries = [
        find(settings["rule"]).citation,
        literature.MATRYOSHKA if settings.get("prefixes") else "",
        literature.ARCHETYPAL if decoder == "archetypal" else "",
        literature.SANITY_CHECKS if frozen != "none" else "",
    ]
    return [entry for entry in entries if entry]
