"""Pictures by any server with an OpenAI-compatible images API (`/v1/images/generations`). Extra: `vlm`."""

import base64
import binascii
import io
import json
import logging
import random
import time
import weakref
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from saelab.errors import UserError
from saelab.evaluate.painters import Generation
from saelab.label.vlm.attempts import LONGEST_WAIT
from saelab.label.vlm.bounded import CutOff, bounded_client
from saelab.label.vlm.secret import Secret
from saelab.label.vlm.text import one_line

log = logging.getLogger("saelab")
BACKOFF = 1.0  # seconds before the first retry, twice as long each time
LARGEST = 64 << 20  # pixels of a picture


class BrokenError(Exception):
    """An answer without the pictures that were asked for; its text says what it is instead."""


class ImagesServer:
    """Asks a server for pictures of a prompt. The official client sends; what is tried again is decided here."""

    def __init__(self, settings: Generation) -> None:
        address = urlsplit(settings.base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.password:
            expected = "must be an address such as http://localhost:8000/v1, without a key"
            raise UserError("cosy.generate.base_url", address.hostname or settings.base_url, expected)
        try:
            import openai
        except ImportError:
            raise UserError("cosy.source", "openai", "needs the openai package", "pip install 'saelab[vlm]'") from None
        self.settings, self.secret = settings, Secret(settings.key_env)
        http = bounded_client(openai.DefaultHttpxClient, settings.timeout)
        weakref.finalize(self, http.close)
        key = self.secret.key or "none"
        self.client = openai.OpenAI(
            api_key=key, base_url=settings.base_url, timeout=settings.timeout, max_retries=0, http_client=http
        )
        self.refused: set[str] = set()  # prompts of which the log has said so
        self.body: dict[str, Any] = {"model": settings.model, "response_format": "b64_json"}
        if settings.size is not None:
            self.body["size"] = f"{settings.size}x{settings.size}"

    def __call__(self, prompt: str, seeds: Sequence[int]) -> list[Image.Image | None]:
        """A picture for each seed (servers don't take seeds: only their number counts).

        None: refused, as the log says once a prompt.

        Raises UserError for what every request would meet: no server, a refused key, an unknown model, no credit, a
        redirect, and where retries are used up.
        """
        import openai

        attempt, why = 0, ""
        with self.secret.out_of_logs():
            while attempt <= self.settings.retries:
                if attempt:
                    longest = min(LONGEST_WAIT, BACKOFF * 2 ** (attempt - 1))
                    time.sleep(random.uniform(longest / 2, longest))
                attempt += 1
                try:
                    raw = self.client.images.with_raw_response.generate(prompt=prompt, n=len(seeds), **self.body)
                    return list(read_pictures(raw.text, len(seeds)))
                except BrokenError as error:
                    why = str(error)
                except openai.APITimeoutError:
                    why = f"no answer within {self.settings.timeout:g} s"
                except (CutOff, openai.APIConnectionError) as error:
                    why = f"no answer ({self._blot(str(error.__cause__ or error))})"
                except openai.APIStatusError as error:
                    why = f"{error.status_code} {self._words(error)}"
                    if self._drop_format(error.status_code, why):
                        attempt -= 1
                    elif not self._again(error.status_code, why):
                        if prompt not in self.refused:  # fifty pictures of it would be fifty lines
                            log.warning("%s: refused (%s): left out", one_line(prompt, 60), why)
                        self.refused.add(prompt)
                        return [None] * len(seeds)
        remedy = "run again to go on: pictures that came are kept"
        raise UserError("cosy.generate.base_url", self.settings.base_url, f"{why}, after {attempt} attempts", remedy)

    def _again(self, status: int, why: str) -> bool:
        """Whether a status is worth another attempt. Raises UserError for those that are final for all requests."""
        own = self.settings
        if 300 <= status < 400:
            what = f"redirects ({status}), which is not followed"
            raise UserError("cosy.generate.base_url", own.base_url, what, "give the final address, if you trust it")
        if status in (401, 403):
            raise UserError("cosy.generate.key_env", own.key_env, f"{own.base_url} refused the key ({why})", "set it")
        if status in (404, 405):
            raise UserError("cosy.generate.model", own.model, f"{own.base_url} says: {why}", "check both")
        if status == 402 or "insufficient_quota" in why:
            raise UserError("cosy.generate.base_url", own.base_url, f"no credit left: {why}", "top it up, run again")
        return status in (408, 409, 429) or status >= 500

    def _drop_format(self, status: int, why: str) -> bool:
        """Some servers always send base64 and refuse a request that names a format."""
        if status in (400, 422) and "response_format" in why and "response_format" in self.body:
            del self.body["response_format"]
            return True
        return False

    def _words(self, error: Any) -> str:
        try:
            found = json.loads(error.response.text)
            found = found.get("error", found)
            found = found.get("message", found) if isinstance(found, dict) else found
        except (ValueError, AttributeError, RecursionError):
            found = error.response.text
        return self._blot(found if isinstance(found, str) else json.dumps(found))

    def _blot(self, text: str) -> str:
        return one_line(self.secret.blot(text), 300)


def read_pictures(body: str, count: int) -> list[Image.Image]:
    """The pictures in the body of an answer. Raises BrokenError for another number of them, links, and what is none."""
    try:
        data = json.loads(body)["data"]
        texts = [entry.get("b64_json") for entry in data]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenError(f"an answer without pictures ({one_line(body, 60)!r})") from None
    if len(texts) != count:
        raise BrokenError(f"{len(texts)} pictures in place of {count}")
    if not all(isinstance(text, str) for text in texts):
        raise BrokenError("links in place of pictures, which are not followed")
    found = []
    for text in texts:
        try:
            picture = Image.open(io.BytesIO(base64.b64decode(text)))
            if picture.width * picture.height > LARGEST:
                raise BrokenError(f"a picture of {picture.width} x {picture.height} pixels")
            found.append(picture.convert("RGB"))
        except (binascii.Error, ValueError, UnidentifiedImageError, OSError, SyntaxError):
            raise BrokenError("a broken picture") from None
    return found
