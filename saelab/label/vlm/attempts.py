"""One request, as many attempts as it takes: what is tried again, what is adapted, what is fatal, what is counted."""

import json
import random
import re
import threading
from typing import Any

from saelab.errors import UserError

LONGEST_WAIT = 60.0  # seconds between two attempts
TOO_LARGE = re.compile(
    r"context|too (long|large|many tokens)|maximum.{0,40}(tokens|length)|max_model_len", re.IGNORECASE
)
NO_PICTURES = re.compile(
    r"not (a )?(multi-?modal|vision)|at most 0 image|(does|do)(n't| not) (support|accept|take).{0,30}image"
    r"|image.{0,40}(not|n't|un)\s?(be )?(supported|allowed|accepted)",
    re.IGNORECASE,
)
OPTIONAL = {  # parameters that a server may not know, and how its refusal names them
    "response_format": r"response_format|json_schema|guided|grammar|strict",
    "temperature": r"\btemperature\b",
    "seed": r"\bseed\b",
    "max_tokens": r"\bmax_tokens\b",
}


class Refused(Exception):
    """A request that got no answer; its text says why."""

    def __init__(self, why: str, attempts: int, uncertain: int) -> None:
        super().__init__(why)
        self.attempts, self.uncertain = attempts, uncertain


class Attempts:
    """Sends request bodies through an official client and counts. Safe to use from several threads."""

    def __init__(
        self, client: Any, retries: int, backoff: float, secret: str, model: str, base_url: str, key_env: str
    ) -> None:
        self.client, self.retries, self.backoff = client, retries, backoff
        self.model, self.base_url, self.key_env = model, base_url, key_env
        self._secret = secret
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
            self.client.with_options(timeout=10.0).models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._key_refused(error) from None
        except openai.APIConnectionError as error:
            if not _reached(error):
                raise self._no_server(error) from None
        except openai.OpenAIError:
            return  # a server without a list of models is a server

    def send(self, body: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
        """The completion's JSON, the attempts made, and those of them that may have been charged without an answer.

        Raises Refused when the server refuses this request or when the attempts are used up, and UserError for what
        every other request would meet too.
        """
        import openai

        uncertain, attempt = 0, 0
        while True:
            attempt += 1
            wait, sent = None, self._adapted(body)
            try:
                raw = self.client.chat.completions.with_raw_response.create(**sent)
                return _complete(raw.text), attempt, uncertain
            except _Broken as error:
                why, uncertain = str(error), uncertain + 1
            except openai.APITimeoutError as error:
                why, uncertain = f"no answer within {self.client.timeout:g} s", uncertain + _reached(error)
            except openai.APIConnectionError as error:
                why, uncertain = f"the line was cut ({_cause(error)})", uncertain + _reached(error)
            except openai.APIStatusError as error:
                why = self._told(error)
                if self._adapt(sent, error.status_code, why):
                    attempt -= 1  # the same attempt in words that this server understands
                    continue
                if not self._again(error, why):
                    raise Refused(why, attempt, uncertain) from None
                wait = _asked_to_wait(error)
            if attempt > self.retries or self._pause(attempt, wait):
                raise Refused(f"{why}, after {attempt} attempts", attempt, uncertain)

    def _again(self, error: Any, why: str) -> bool:
        """Whether a status is worth another attempt. Raises UserError for those that are final for all requests."""
        status = error.status_code
        if status in (401, 403):
            raise self._key_refused(error) from None
        if status == 404:
            raise UserError("proposer.model", self.model, f"{self.base_url} says: {why}", "check both") from None
        if status == 402 or "insufficient_quota" in why:
            raise UserError("proposer.base_url", self.base_url, f"no credit left: {why}", "top it up, run again")
        if status < 500 and NO_PICTURES.search(why):
            raise UserError("proposer.model", self.model, f"takes no pictures: {why}", "serve a vision-language model")
        return status in (408, 409, 429) or status >= 500

    def _told(self, error: Any) -> str:
        """The server's own words with the status, on one line, without the key."""
        body = error.body if error.body is not None else error.response.text
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body.get("error") or body
        words = " ".join(str(body).split())[:300]
        if self._secret:
            words = words.replace(self._secret, "***")
        if error.status_code < 500 and TOO_LARGE.search(words):
            words += " (too large for the model's context: lower proposer.sheet_px or proposer.shown)"
        return f"{error.status_code} {words}"

    def _adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body without the parameters that this server refused."""
        kept = {name: value for name, value in body.items() if name not in self._dropped}
        if "max_tokens" in self._dropped:
            kept["max_completion_tokens"] = body["max_tokens"]
        return kept

    def _adapt(self, sent: dict[str, Any], status: int, why: str) -> bool:
        """Drop an optional parameter that the server's refusal names; False if it names none that was sent.

        Servers differ: some know no response_format, no seed, only temperature 1, or only max_completion_tokens.
        """
        if status not in (400, 422) or TOO_LARGE.search(why):
            return False
        for name, pattern in OPTIONAL.items():
            if name in sent and re.search(pattern, why):
                self._dropped.add(name)
                return True
        return False

    def _pause(self, attempt: int, wait: float | None) -> bool:
        """Wait before the next attempt: as long as the server asked, or doubling with jitter. True if stopped."""
        longest = min(LONGEST_WAIT, self.backoff * 2 ** (attempt - 1))
        seconds = min(LONGEST_WAIT, wait) if wait is not None else random.uniform(longest / 2, longest)
        return self._stopped.wait(seconds)

    def _key_refused(self, error: Any) -> UserError:
        expected = f"{self.base_url} refused the key ({self._told(error)})"
        return UserError("proposer.key_env", self.key_env, expected, f"set {self.key_env} to a valid key")

    def _no_server(self, error: Exception) -> UserError:
        how = f"start one, for example: vllm serve {self.model}, or: transformers serve (docs/proposals.md)"
        return UserError("proposer.base_url", self.base_url, f"no server answers there ({_cause(error)})", how)


class _Broken(Exception):
    """An answer that is no completion."""


def _complete(text: str) -> dict[str, Any]:
    """The JSON of a completion. Raises _Broken for half of one, nothing, or another thing."""
    try:
        body = json.loads(text)
        body["choices"][0]["message"]["role"]
    except (json.JSONDecodeError, KeyError, IndexError, TypeError):
        raise _Broken(f"a broken answer ({text[:60]!r})" if text.strip() else "an empty answer") from None
    return body


def _reached(error: Exception) -> bool:
    """Whether the request may have got through to the server: everything but a connection that never stood."""
    return "Connect" not in type(error.__cause__).__name__


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error).splitlines()[0] or type(error.__cause__).__name__


def _asked_to_wait(error: Any) -> float | None:
    """Seconds in the answer's Retry-After, if it has any."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None
