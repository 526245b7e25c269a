"""Any OpenAI-compatible server: vLLM, SGLang, `transformers serve`, hosted models.

The official client sends and reads; this file decides what is sent again, what is fatal, and what it has cost. The
client's own retries are off, because every attempt is counted: one that ends without an answer may have been charged.
"""

import base64
import json
import logging
import re
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from saelab.artifacts import digest, plain
from saelab.errors import UserError
from saelab.label.proposal import Estimate
from saelab.label.vlm import tokens
from saelab.label.vlm.attempts import Attempts, Refused
from saelab.label.vlm.bounded import bounded_client
from saelab.label.vlm.cache import AnswerCache
from saelab.label.vlm.chat import Picture, Reply, Request
from saelab.label.vlm.completion import Completion, unfinished
from saelab.label.vlm.secret import Secret
from saelab.label.vlm.tokens import Prices

log = logging.getLogger("saelab")
OURS = (
    "model",
    "messages",
    "stream",
    "n",
    "max_tokens",
    "temperature",
    "seed",
    "tools",
    "tool_choice",
)  # never in extra_body
MOST_LIKELY = 20  # first words of an answer that are listed with their probability; servers give no more
KEY_NAMES = re.compile(r'"[^"]*(api[-_]?key|authorization|password|secret|credential)[^"]*"\s*:', re.IGNORECASE)


class OpenAIChat:
    """Asks a model behind an OpenAI-compatible address, `concurrency` requests at a time.

    model: as the server names it. base_url: ends in /v1 as a rule. key_env: the environment variable that holds the
    key, if the server wants one; the key is written nowhere. timeout: seconds for one attempt, from the connection to
    the answer's last byte; answers may have 16 MB. retries: further attempts after 408, 409, 429, 5xx, time-outs, cut
    lines and broken answers, `backoff` seconds apart at first and twice as long each time (at most 60, or what the
    server asks for). prices: dollars per million tokens. picture_tokens: a rule of `tokens.picture_tokens`, for
    estimates only. cache: folder of bought answers. extra_body: further fields of the request, for switches of the
    server's own, such as {"chat_template_kwargs": {"enable_thinking": False}}. Redirects are not followed.
    Thirteen parameters: they are the settings in conf/proposer/openai.yaml, by their names.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 1.0,
        temperature: float | None = 0.0,
        seed: int | None = 0,
        prices: Prices | None = None,
        picture_tokens: str | int = "internvl",
        cache: Path | str | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError("proposer.base_url", base_url, "must be an address such as http://localhost:8000/v1")
        if address.username or address.password or address.query:
            plain = f"{address.scheme}://{address.hostname}"
            raise UserError("proposer.base_url", plain, "must hold no key or password", "put it into proposer.key_env")
        if not model:
            raise UserError("proposer.model", model, "must name the model that the server serves")
        if concurrency < 1:
            raise UserError("proposer.concurrency", concurrency, "must be at least 1")
        tokens.picture_tokens((448, 448), picture_tokens)
        self.model, self.base_url, self.key_env = model, base_url, key_env
        self.concurrency, self.prices, self.picture_tokens = concurrency, prices or Prices(), picture_tokens
        self.cache = AnswerCache(cache)
        self.secret = Secret(key_env)
        self.attempts = Attempts(self._client(timeout), retries, backoff, self.secret, model, base_url, key_env)
        self.options: dict[str, Any] = {"temperature": temperature, "seed": seed}
        if extra_body:
            self.options["extra_body"] = self._check_extra(extra_body)
        self.recipe = {"name": self.name, "model": model, "base_url": base_url, **self.options}
        self.failed_in_a_row = 0  # over all rounds of questions, however few a round has
        self._sight = threading.Lock()
        self._sighted = False

    def estimate(self, request: Request) -> Estimate:
        """Tokens and money of a request; the cache isn't looked at."""
        return tokens.estimate(request, self.prices, self.picture_tokens)

    def ask(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Every request with its reply as it comes.

        Raises UserError where no server answers, the key is refused, the model is unknown or takes no pictures, or
        too many requests in a row fail; replies under way by then are still yielded.
        """
        with self.secret.out_of_logs():
            yield from self._ask(requests)

    def _ask(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        source = iter(requests)
        first = next(source, None)
        if first is None:
            return
        self.attempts.check_server()
        waiting: dict[Future[Reply], Request] = {}
        fatal: UserError | None = None
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while waiting or (fatal is None and first is not None):
                    while fatal is None and first is not None and len(waiting) < self.concurrency:
                        waiting[pool.submit(self._answer, first)] = first
                        first = next(source, None)
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        request = waiting.pop(future)
                        try:
                            reply = future.result()
                        except UserError as error:
                            fatal = fatal or error
                            self.attempts.stop()
                            continue
                        self.failed_in_a_row = self.failed_in_a_row + 1 if reply.text is None else 0
                        if self.failed_in_a_row >= max(8, 2 * self.concurrency):
                            fatal = fatal or self._too_many(self.failed_in_a_row, reply)
                            self.attempts.stop()
                        yield request, reply
            finally:
                self.attempts.stop()
        if fatal:
            raise fatal

    def _answer(self, request: Request) -> Reply:
        """The reply from the cache, or bought now and put there before anything else is done with it.

        An answer that the same run bought for the same unit is this run's, although it comes from the cache: the run
        was killed before it could write the unit's row.
        """
        key = digest([self.base_url, self.model, request.digest, self.options])
        with self.cache.turn(key):
            if (kept := self.cache.get(key)) is not None:
                own = bool(request.buyer) and (kept.name, kept.buyer) == (request.name, request.buyer)
                kept = kept if own else replace(kept, attempts=0, uncertain=0)
                return replace(self._reply(key, request, kept), cached=not own)
            return self._bought(key, request)

    def _bought(self, key: str, request: Request) -> Reply:
        """The reply to a request that is sent; noted on disk while it is under way."""
        started, note = time.monotonic(), partial(self.cache.note, key, request.buyer)
        sent, unsure = self.cache.left_under_way(key, request.buyer)
        if sent:
            told = "%s was under way when a run was killed: it is sent again; the first time may have been charged"
            log.warning(told, request.name)
        try:
            body = self._body(request)
            answer = self.attempts.send(body, lambda tries, uncertain: note(sent + tries, unsure + uncertain))
            self._check_sight(request, answer)
        except Refused as refused:
            note()
            tries, uncertain = sent + refused.attempts, unsure + refused.uncertain
            seconds = round(time.monotonic() - started, 3)
            return Reply(None, str(refused), key, attempts=tries, uncertain=uncertain, seconds=seconds)
        except UserError:
            note(sent, unsure)
            raise
        tries, uncertain = sent + answer.attempts, unsure + answer.uncertain
        answer = replace(answer, name=request.name, buyer=request.buyer, attempts=tries, uncertain=uncertain)
        self.cache.put(key, answer)
        return self._reply(key, request, answer)

    def _reply(self, key: str, request: Request, answer: Completion) -> Reply:
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        model, cost = self.secret.blot(answer.model or self.model), self.prices.cost(prompt, completion)
        return Reply(
            self.secret.blot(answer.text),
            None,
            key,
            model,
            prompt,
            completion,
            cost,
            attempts=answer.attempts,
            uncertain=answer.uncertain,
            seconds=answer.seconds,
            unfinished=unfinished(answer.finish_reason, request.max_tokens),
            calls=answer.calls,
            likely=answer.likely,
        )

    def _body(self, request: Request, pictures: bool = True) -> dict[str, Any]:
        """The request as the client's keyword arguments."""
        body: dict[str, Any] = {"model": self.model, "messages": _messages(request, pictures)}
        if request.likely:
            body |= {"logprobs": True, "top_logprobs": MOST_LIKELY}
        if request.tools:
            body["tools"] = [{"type": "function", "function": tool} for tool in request.tools]
            body["tool_choice"] = "none" if request.answer_now else "auto"
        body |= {"max_tokens": request.max_tokens, **{k: v for k, v in self.options.items() if v is not None}}
        if request.schema:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _check_sight(self, request: Request, answer: Completion) -> None:
        """Some servers drop the pictures of a text model without a word: ask once again without them and compare.

        If the text alone takes as many prompt tokens, the pictures were not seen, and the answer is worth nothing.
        """
        with self._sight:
            if self._sighted or not request.pictures or not answer.prompt_tokens:
                return
            try:
                blind = self.attempts.send(self._body(request, pictures=False) | {"max_tokens": 1}).prompt_tokens
            except Refused as refused:
                log.warning("could not check that %s sees pictures: %s", self.model, refused)
            else:
                if blind == answer.prompt_tokens:
                    found = f"takes no pictures ({blind} prompt tokens with and without them)"
                    raise UserError("proposer.model", self.model, found, "serve a vision-language model")
                log.info("%s sees pictures (checked with one request of %s tokens)", self.model, blind)
            self._sighted = True

    def _too_many(self, count: int, reply: Reply) -> UserError:
        found = f"{count} requests in a row failed, the last with: {reply.error}"
        return UserError("proposer.base_url", self.base_url, found, "run again to go on: what was answered is kept")

    def _check_extra(self, extra_body: Any) -> dict[str, Any]:
        """`extra_body` as plain values. Raises UserError for what is no JSON object, holds a key or a field of ours."""
        try:
            found = plain(dict(extra_body))
            text = json.dumps(found, allow_nan=False)
        except (TypeError, ValueError):
            kind = type(extra_body).__name__  # not its text, which may hold a key
            raise UserError("proposer.extra_body", kind, "must be a JSON object, or null") from None
        if self.secret.blot(text) != text or KEY_NAMES.search(text):
            raise UserError("proposer.extra_body", "...", "must hold no key", "put it into proposer.key_env")
        for name in OURS:
            if name in found:
                raise UserError("proposer.extra_body", name, "is set by saelab", "leave it out of extra_body")
        return found

    def _client(self, timeout: float) -> Any:
        try:
            import openai
        except ImportError:
            raise UserError("proposer", "openai", "needs the openai package", "pip install 'saelab[vlm]'") from None
        http = bounded_client(openai.DefaultHttpxClient, timeout)
        weakref.finalize(self, http.close)
        key = self.secret.key or "none"
        return openai.OpenAI(api_key=key, base_url=self.base_url, timeout=timeout, max_retries=0, http_client=http)


def _messages(request: Request, pictures: bool) -> list[dict[str, Any]]:
    """The question, then each turn: the model's calls, their answers, and pictures, which only a user may send."""

    def user(parts: Iterable[str | Picture]) -> dict[str, Any]:
        return {"role": "user", "content": [_part(part) for part in parts if pictures or isinstance(part, str)]}

    found = [user(request.parts)]
    for turn in request.turns:
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in turn.calls
        ]
        found.append({"role": "assistant", "content": turn.said, "tool_calls": calls})
        pairs = zip(turn.calls, turn.answers, strict=True)
        found += [{"role": "tool", "tool_call_id": call.id, "content": answer} for call, answer in pairs]
        found += [user(turn.shown)] if turn.shown else []
    return found


def _part(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = "data:image/jpeg;base64," + base64.b64encode(part.jpeg).decode()
    return {"type": "image_url", "image_url": {"url": url}}
