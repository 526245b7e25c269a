"""One request, as many attempts as it takes: what is tried again, what is adapted, what is fatal, what is counted."""

import json
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from saelab.errors import UserError
from saelab.label.vlm.bounded import CutOff
from saelab.label.vlm.completion import Broken, Completion, read
from saelab.label.vlm.secret import Secret
from saelab.label.vlm.text import one_line, readable

log = logging.getLogger("saelab")

LONGEST_WAIT = 60.0  # seconds between two attempts
TOO_LARGE = re.compile(
    r"context[ _-]?(length|window|size|limit)|too (long|large|many tokens)|max_model_len|\bn_ctx\b"
    r"|\bmaximum\b.{0,40}(tokens|length)|exceed.{0,40}(tokens|context|length)|larger than the context",
    re.IGNORECASE,
)
NO_PICTURES = re.compile(
    r"not (a )?(multi-?modal|vision)|at most 0 image|(does|do)(n't| not) (support|accept|take).{0,30}image"
    r"|no endpoints.{0,30}image|image.{0,40}(not|n't|un)\s?(be )?(supported|allowed|accepted)",
    re.IGNORECASE,
)
BOUNDS = ("maxItems", "minItems", "maxLength", "minLength")  # parts of a schema that many servers don't know
SCHEMA = re.compile(  # how a refusal names the schema; never how it says that a request is too large
    r"response[_ ]?format|json[_ ]?schema|\bschema\b|guided|grammar|structured[_ ]?output|outlines|additionalProperties"
    r"|\bstrict\b|(max|min)_?items\b",
    re.IGNORECASE,
)
OPTIONAL = {"temperature": r"\btemperature\b", "seed": r"\bseed\b", "max_tokens": r"\bmax_tokens\b"}
FINAL = (401, 402, 403, 408, 409, 429)  # statuses that are never about a parameter


class Refused(Exception):
    """A request that got no answer; its text says why."""

    def __init__(self, why: str, attempts: int, uncertain: int) -> None:
        super().__init__(why)
        self.attempts, self.uncertain = attempts, uncertain


class Attempts:
    """Sends request bodies through an official client and counts. Safe to use from several threads.

    Whatever the server sends is freed from the key (`secret`) before anything else is done with it.
    """

    def __init__(
        self, client: Any, retries: int, backoff: float, secret: Secret, model: str, base_url: str, key_env: str
    ) -> None:
        self.client, self.retries, self.backoff = client, retries, backoff
        self.model, self.base_url, self.key_env = model, base_url, key_env
        self.secret = secret
        self._stopped = threading.Event()
        self._dropped: set[str] = set()  # parameters that this server refused

    def stop(self) -> None:
        """Let no further attempt wait: requests that are between two attempts fail now."""
        self._stopped.set()

    def check_server(self) -> None:
        """Raise UserError if nothing answers at the address or if the key is refused; one light request."""
        import openai

        self._stopped.clear()
        try:
            self.client.with_options(timeout=10.0).models.with_raw_response.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._key_refused(error) from None
        except (CutOff, openai.APIConnectionError) as error:
            if not _reached(error):
                raise self._no_server(error) from None
        except openai.OpenAIError:
            return  # a server without a list of models is a server

    def send(self, body: dict[str, Any], note: Callable[[int, int], None] = lambda *_: None) -> Completion:
        """The completion, with the attempts made and those of them that may have been charged without an answer.

        note: called before each attempt with both numbers, as they will be if nothing comes back.
        Raises Refused when the server refuses this request or when the attempts are used up, and UserError for what
        every other request would meet too.
        """
        import openai

        started, uncertain, attempt = time.monotonic(), 0, 0
        while True:
            attempt += 1
            wait, sent = None, self._drop_refused(body)
            note(attempt, uncertain + 1)
            try:
                raw = self.client.chat.completions.with_raw_response.create(**sent)
                found = self._blot(read(self.secret.blot(raw.text)))
                seconds = round(time.monotonic() - started, 3)
                return replace(found, seconds=seconds, attempts=attempt, uncertain=uncertain)
            except Broken as error:
                why, uncertain = str(error), uncertain + 1
            except openai.APITimeoutError as error:
                why, uncertain = f"no answer within {self.client.timeout:g} s", uncertain + _reached(error)
            except (CutOff, openai.APIConnectionError) as error:
                why, uncertain = self._cut(error), uncertain + _reached(error)
            except openai.APIStatusError as error:
                why = self._words(error)
                if self._adapt(sent, error.status_code, why):
                    attempt -= 1  # the same attempt in words that this server understands
                    continue
                if not self._again(error, why):
                    raise Refused(why, attempt, uncertain) from None
                wait = _asked_to_wait(error.response.headers)
            except openai.OpenAIError as error:
                why, uncertain = f"an answer that can't be read ({self._cause(error)})", uncertain + 1
            if attempt > self.retries or self._pause(attempt, wait):
                raise Refused(f"{why}, after {attempt} attempts", attempt, uncertain)

    def _blot(self, found: Completion) -> Completion:
        """The same once more, for a key that stood in the body in JSON's escapes."""
        text, model, reason = (self.secret.blot(own or "") for own in (found.text, found.model, found.finish_reason))
        calls = tuple(
            replace(c, name=self.secret.blot(c.name), arguments=self.secret.blot(c.arguments)) for c in found.calls
        )
        return replace(found, text=text, model=model or None, finish_reason=reason or None, calls=calls)

    def _again(self, error: Any, why: str) -> bool:
        """Whether a status is worth another attempt. Raises UserError for those that are final for all requests."""
        status = error.status_code
        if 300 <= status < 400:
            raise self._refuse_redirect(error) from None
        if status in (401, 403):
            raise self._key_refused(error) from None
        if status < 500 and NO_PICTURES.search(why):
            raise UserError("proposer.model", self.model, f"takes no pictures: {why}", "serve a vision-language model")
        if status == 404:
            raise UserError("proposer.model", self.model, f"{self.base_url} says: {why}", "check both") from None
        if status == 402 or "insufficient_quota" in why:
            raise UserError("proposer.base_url", self.base_url, f"no credit left: {why}", "top it up, run again")
        return status in (408, 409, 429) or status >= 500

    def _words(self, error: Any) -> str:
        """The server's own words with the status, on one line, without the key."""
        words = one_line(self.secret.blot(readable(_message(self.secret.blot(error.response.text)))), 300)
        if error.status_code < 500 and TOO_LARGE.search(words):
            words += " (too large for the model's context: lower proposer.sheet_px or proposer.shown)"
        return f"{error.status_code} {words}"

    def _drop_refused(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body without the parameters that this server refused."""
        kept = {name: value for name, value in body.items() if name not in self._dropped}
        if "max_tokens" in self._dropped:
            kept["max_completion_tokens"] = body["max_tokens"]
        if "bounds" in self._dropped and "response_format" in kept:
            kept["response_format"] = _drop_bounds(kept["response_format"])
        return kept

    def _adapt(self, sent: dict[str, Any], status: int, why: str) -> bool:
        """Drop an optional parameter that the server's refusal names; False if it names none that was sent.

        Servers differ: some know no response_format, or not all of JSON schema, no seed, only temperature 1, or only
        max_completion_tokens. Of a schema the bounds go first, then all of it. A refusal that names the schema is
        about the schema, whatever else it says; one that names another parameter may just be counting tokens.
        """
        if status < 400 or status in FINAL:
            return False
        refused = None
        if "response_format" in sent and SCHEMA.search(why):
            schema = sent["response_format"]
            bounded = any(bound in why for bound in BOUNDS) and _drop_bounds(schema) != schema
            refused = "bounds" if bounded else "response_format"
        elif status in (400, 422) and not TOO_LARGE.search(why):
            refused = next((own for own, words in OPTIONAL.items() if own in sent and re.search(words, why)), None)
        if refused is None:
            return False
        if refused not in self._dropped:
            what = f"the schema's {' and '.join(BOUNDS[:2])}" if refused == "bounds" else refused
            log.warning("%s is asked without %s from now on: %s", self.model, what, why)
        self._dropped.add(refused)
        return True

    def _pause(self, attempt: int, wait: float | None) -> bool:
        """Wait before the next attempt: as long as the server asked, or doubling with jitter. True if stopped."""
        longest = min(LONGEST_WAIT, self.backoff * 2 ** min(attempt - 1, 30))
        seconds = min(LONGEST_WAIT, wait) if wait is not None else random.uniform(longest / 2, longest)
        return self._stopped.wait(seconds)

    def _refuse_redirect(self, error: Any) -> UserError:
        """A redirect is not followed: the pictures and the key would go to whoever it names."""
        to = urlsplit(error.response.headers.get("location", ""))
        target = f"to {self.secret.blot(f'{to.scheme}://{to.netloc}')}" if to.netloc else "elsewhere"
        expected = one_line(f"redirects {target} ({error.status_code}), which is not followed", 300)
        return UserError("proposer.base_url", self.base_url, expected, "give the final address, if you trust it")

    def _key_refused(self, error: Any) -> UserError:
        expected = f"{self.base_url} refused the key ({self._words(error)})"
        return UserError("proposer.key_env", self.key_env, expected, f"set {self.key_env} to a valid key")

    def _no_server(self, error: Exception) -> UserError:
        how = f"start one, for example: vllm serve {self.model}, or: transformers serve (docs/proposals.md)"
        return UserError("proposer.base_url", self.base_url, f"no server answers there ({self._cause(error)})", how)

    def _cut(self, error: Exception) -> str:
        """Why a line was cut: by us (newer clients pass our error on, older ones wrap it) or by the server."""
        own = error if isinstance(error, CutOff) else error.__cause__
        return str(own) if isinstance(own, CutOff) else f"the line was cut ({self._cause(error)})"

    def _cause(self, error: Exception) -> str:
        cause = error.__cause__ or error
        return one_line(self.secret.blot(str(cause)), 200) or type(cause).__name__


def _message(body: str) -> str:
    """The words in the body of a refusal: those of its `error`, `message` or `detail`, or all of it."""
    try:
        found = json.loads(body)
        found = found.get("error", found) if isinstance(found, dict) else found
        if isinstance(found, dict):
            found = found.get("message") or found.get("detail") or found
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body


def _drop_bounds(schema: Any) -> Any:
    """The schema without BOUNDS."""
    if isinstance(schema, dict):
        return {key: _drop_bounds(value) for key, value in schema.items() if key not in BOUNDS}
    return [_drop_bounds(value) for value in schema] if isinstance(schema, list) else schema


def _reached(error: Exception) -> bool:
    """Whether the request may have got through to the server: everything but a connection that never stood."""
    return "Connect" not in type(error.__cause__).__name__


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds until the moment that the answer's Retry-After names (a number or a date), if it has any."""
    asked = headers.get("retry-after-ms"), headers.get("retry-after")
    for value, unit in zip(asked, (1e-3, 1.0), strict=True):
        try:
            seconds = float(value or "") * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value or "").timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
