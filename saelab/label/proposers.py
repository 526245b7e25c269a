"""The proposers by name: what each takes from conf/proposer, and who makes it."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from saelab.errors import UserError
from saelab.label.proposal import Proposer
from saelab.settings import nearest

if TYPE_CHECKING:
    from saelab.label.vlm.chat import Chat
    from saelab.label.vlm.openai import OpenAIChat

OF_RUN = ("mode", "units", "seed", "dry_run")
# Settings of a vision-language proposer that are not its backend's: its question, its picture, and the run's.
OF_QUESTION = ("prompt", "guided", "shown", "max_tokens", "synthesised", "rerank", "weight")
OF_VLM = (*OF_QUESTION, "layout", "tiles", "sheet_px", "part_px", *OF_RUN)


def load_proposer(name: str, **settings: Any) -> Proposer | None:
    """A proposer by name: none (returns None), tagger, agent, command, describe_dissect, or a model's backend in CHATS.

    `settings` are those listed in conf/proposer/<name>.yaml, save `name`, `mode` and `units`, which are the run's.
    Raises UserError for a name or a setting that does not exist, and for values that can't be.
    """
    makers: dict[str, Callable[..., Proposer | None]] = {"none": lambda: None, "tagger": _tagger}
    makers |= {"agent": _agent, "command": _command, "describe_dissect": _describe}
    makers |= {backend: partial(_vlm, backend) for backend in CHATS}
    if name not in makers:
        raise UserError("proposer", name, f"must be one of {', '.join(makers)}")
    try:
        return makers[name](**settings)
    except TypeError as error:
        if "argument" in str(error):
            raise UserError(
                "proposer", name, str(error).split("() ", 1)[-1], f"see conf/proposer/{name}.yaml"
            ) from None
        raise


def _tagger(**settings: Any) -> Proposer:
    from saelab.label.tagger import Tagger

    return Tagger(**settings)


def _command(**settings: Any) -> Proposer:
    from saelab.label.outside.command import CommandProposer

    return CommandProposer(**settings)


def _vlm(backend: str, **settings: Any) -> Proposer:
    """A vision-language model's proposer; the settings are those of the picture, of the question and of the backend."""
    from saelab.label.vlm.proposer import VLMProposer
    from saelab.label.vlm.show import Look

    look = Look(**_take(settings, [field.name for field in dataclasses.fields(Look)]))
    question = _take(settings, ["prompt", "guided", "shown", "max_tokens", "synthesised"])
    rule, weight = settings.pop("rerank", None), _take(settings, ["weight"])
    if rule not in (None, "pmi"):
        raise UserError("proposer.rerank", rule, "must be null or pmi")
    if rule == "pmi" and backend != "openai":
        raise UserError(
            "proposer.rerank", rule, f"{backend} names no log-probabilities", "use proposer=openai, or null"
        )
    if rule == "pmi" and question.get("synthesised", "none") != "none":
        what = "asks about photos, not about pictures made to raise the unit"
        raise UserError("proposer.rerank", rule, what, "use synthesised=none, or rerank=null")
    asked = VLMProposer(load_chat(backend, **settings), look, **question)
    if rule is None:
        return asked
    from saelab.label.vlm.reranked import RerankedProposer

    return RerankedProposer(asked, **weight)


def _agent(sight: Any, **settings: Any) -> Proposer:
    """A model that looks for itself; `sight` (`saelab.label.agent.hands.Sight`) is the caller's, not a setting."""
    from saelab.label.agent.proposer import AgentProposer, Bounds
    from saelab.label.vlm.show import Look

    for name in ("guided", "rerank", "weight", "synthesised"):  # of openai.yaml, for questions of another kind
        settings.pop(name, None)
    look = Look(**_take(settings, [field.name for field in dataclasses.fields(Look)]))
    bounds = Bounds(**_take(settings, [field.name for field in dataclasses.fields(Bounds)]))
    question = _take(settings, ["prompt", "shown"])
    return AgentProposer(_openai(**settings), sight, look, bounds, **question)


def _describe(
    chat: dict[str, Any], captions: str = "tagger", see: Any = None, names: Sequence[str] = (), **settings: Any
) -> Proposer:
    """Describe-and-Dissect; `see` and `names`, a classifier's, are the caller's, not settings."""
    from saelab.label.describe.captions import CAPTIONS, Captioner, ChatCaptioner, TaggerCaptioner
    from saelab.label.describe.proposer import DescribeDissect

    text = load_chat(**{name: value for name, value in chat.items() if name not in OF_VLM})
    if captions not in CAPTIONS:
        near = nearest(captions, CAPTIONS)
        raise UserError("proposer.captions", captions, "unknown", f"{near}known: {', '.join(CAPTIONS)}")
    if captions == "tagger" and see is None:
        raise UserError("proposer.captions", "tagger", "the encoder gives no class probabilities", "use captions=chat")
    captioner: Captioner = ChatCaptioner(text) if captions == "chat" else TaggerCaptioner(see, names)
    return DescribeDissect(captioner, text, **settings)


def load_chat(name: str, **settings: Any) -> "Chat":
    """A backend of vision-language models by its name in CHATS, to ask it other things. Raises UserError."""
    if name not in CHATS:
        raise UserError("chat", name, f"must be one of {', '.join(CHATS)}")
    return CHATS[name](**settings)


def _recorded(**settings: Any) -> "Chat":
    from saelab.label.vlm.recorded import RecordedChat

    return RecordedChat(**settings)


def _openai(prices: dict[str, Any] | None = None, **settings: Any) -> "OpenAIChat":
    from saelab.label.vlm.openai import OpenAIChat
    from saelab.label.vlm.tokens import Prices

    return OpenAIChat(prices=Prices(**(prices or {})), **settings)


def _transformers(**settings: Any) -> "Chat":
    from saelab.label.vlm.transformers import TransformersChat

    return TransformersChat(**settings)


CHATS: dict[str, Callable[..., "Chat"]] = {"openai": _openai, "transformers": _transformers, "recorded": _recorded}


def _take(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: settings.pop(name) for name in names if name in settings}
