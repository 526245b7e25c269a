"""What must not leave: no redirect is followed, and a key that a server repeats is in no file, log or error."""

import json
import logging
import math
import os

import pytest
from asking import ask
from hypothesis import given, settings
from hypothesis import strategies as st
from seen import with_choice, with_fields, with_message
from servers import FaultServer

from saelab.errors import UserError
from saelab.label.propose import load_chat
from saelab.label.vlm.secret import Secret

pytest.importorskip("openai")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_pictures_and_the_key_do_not_follow_a_redirect(tmp_path, monkeypatch, status):
    monkeypatch.setenv("TOY_KEY", "sk-right-secret-456")
    with FaultServer() as stranger, FaultServer(faults=lambda n: [str(status)]) as server:
        server.headers = {"Location": f"{stranger.url}/chat/completions?k=sk-right-secret-456"}
        with pytest.raises(
            UserError, match=r"proposer\.base_url=.*redirects to http://127\.0\.0\.1:\d+.*not followed"
        ) as error:
            ask(server, tmp_path, range(2), key_env="TOY_KEY")
        assert not stranger.bodies and not stranger.asked and "secret" not in str(error.value)


KEY = "sk-right/secret-456+7890"
ECHOES = {
    "content": with_message(content=f"Your key is {KEY}, isn't it?"),
    "concept": with_message(content=json.dumps({"concepts": ["dog"], "evidence": f"key {KEY}"})),
    "reasoning": with_message(content=None, reasoning_content=f"The key {KEY}"),
    "model": with_fields(model=f"toy-{KEY}"),
    "finish reason": with_choice(finish_reason=KEY),
    "broken body": lambda _: f'{{"choices": [{{"message": "{KEY}'.encode(),
    "broken at the cut": lambda _: (" " * 0 + "x" * 50 + KEY).encode(),
    "half of the key": with_message(content=f"key: {KEY[:14]}"),
    "JSON's escapes": lambda reply: json.dumps(with_message(content=f"key {KEY}")(reply)).replace("/", "\\/").encode(),
    "unicode escapes": lambda reply: (
        json.dumps(with_message(content="key @")(reply)).replace("@", "".join(f"\\u{ord(c):04x}" for c in KEY)).encode()
    ),
}


@pytest.mark.parametrize("name", ECHOES)
def test_a_key_that_an_answer_repeats_is_nowhere(tmp_path, monkeypatch, caplog, capsys, name):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOY_KEY", KEY)
    headers = {"X-Echo": f"Bearer {KEY}", "X-Request-Id": KEY}
    with FaultServer(key=KEY, reshape=ECHOES[name], headers=headers) as server:
        rows = None
        try:
            rows, total = ask(server, tmp_path, range(2), key_env="TOY_KEY", cache=tmp_path / "cache", retries=0)
            print(rows, total)
        except UserError as error:
            print(error)
    output = capsys.readouterr()
    said = output.out + output.err + caplog.text + "".join(record.getMessage() for record in caplog.records)
    files = [
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.suffix != ".jpg" and path.is_file()
    ]
    assert said and files and len(caplog.records) > 5
    for text in (said, *files):
        assert KEY not in text and KEY[:14] not in text and KEY.replace("/", "\\/") not in text
    if rows is not None:
        assert any("***" in text for text in files)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500])
def test_a_key_in_a_refusal_is_nowhere(tmp_path, monkeypatch, caplog, capsys, status):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOY_KEY", KEY)
    for number, words in enumerate([f"bad {KEY}", "x" * 292 + KEY, f"\ud800 {KEY}\x1b[2J"]):
        with FaultServer(key=KEY, refuse=lambda body, words=words: words) as server:
            server.refusal_status = status
            with pytest.raises(UserError) as error:
                ask(server, tmp_path / str(number), range(1), key_env="TOY_KEY", retries=0)
        said = str(error.value)
        assert KEY not in said and KEY[:8] not in said and said.isprintable()
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    output = capsys.readouterr()
    assert not any(KEY.encode() in data for data in files) and KEY not in caplog.text + output.out + output.err


def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(monkeypatch):
    for key in ("sk-sécret-1", "sk-secret one", "sk-secret\n1"):
        monkeypatch.setenv("TOY_KEY", key)
        with pytest.raises(UserError, match=r"proposer\.key_env=TOY_KEY") as error:
            load_chat("openai", model="toy", key_env="TOY_KEY")
        assert "cret" not in str(error.value)
    monkeypatch.setenv("TOY_KEY", "sk-secret\n")  # as `$(cat file)` in some shells
    assert load_chat("openai", model="toy", key_env="TOY_KEY").secret.key == "sk-secret"


@settings(max_examples=60)
@given(st.text(st.characters(codec="ascii", exclude_categories=("C", "Z")), min_size=6, max_size=60), st.data())
def test_no_piece_of_a_key_that_matters_is_left(key, data):
    os.environ["HYPOTHESIS_KEY"] = key
    secret = Secret("HYPOTHESIS_KEY")
    del os.environ["HYPOTHESIS_KEY"]
    around = st.text(max_size=10)
    start = data.draw(st.integers(0, len(key) - 1))
    piece = key[start : data.draw(st.integers(start + 1, len(key)))]
    text = secret.blot(data.draw(around) + key + data.draw(around) + piece + data.draw(around))
    assert key not in text.replace("***", "\0")
    longest = min(16, max(8, math.ceil(len(key) / 2)))
    for at in range(len(key) - longest + 1):
        assert key[at : at + longest] not in text or "*" in key


def test_a_placeholder_is_no_key_and_blots_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_KEY", "none")
    with FaultServer(key="none") as server:
        rows, _ = ask(server, tmp_path, range(1), key_env="TOY_KEY")
    assert rows[0].status == "answered" and '"none"' in rows[0].raw
