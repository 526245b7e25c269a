"""What a server may answer: every shape is read or listed, never raised; the key is in none; nothing goes elsewhere."""

import json
import logging
import math
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import Pictures, exemplars
from servers import ANSWERS, FINAL, FaultServer, with_choice, with_fields, with_message

from saelab.errors import UserError
from saelab.label import propose, selection
from saelab.label.propose import load_chat, load_proposer
from saelab.label.vlm import completion
from saelab.label.vlm.cache import AnswerCache
from saelab.label.vlm.chat import Picture, Request
from saelab.label.vlm.completion import Broken, Completion

pytest.importorskip("openai")
IMAGES = Pictures()
FAST = {"model": "toy", "backoff": 0.001, "timeout": 20, "sheet_px": 448, "concurrency": 1}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def ask(server, folder, units, **more):
    proposer = load_proposer("openai", **{"base_url": server.url, **FAST, **more})
    rows = propose.run(proposer, exemplars(len(units), 1), IMAGES, units, folder, progress=False)
    return rows, propose.summary(rows, units)


def well_formed(found: Completion) -> None:
    found.text.encode()
    assert len(found.text) <= completion.LONGEST
    for own in (found.model, found.finish_reason):
        assert own is None or (isinstance(own, str) and own.isprintable() and len(own) <= 200)
    for number in (found.prompt_tokens, found.completion_tokens):
        assert number is None or (type(number) is int and 0 <= number <= completion.MOST_TOKENS)
    assert found.seconds is None or (math.isfinite(found.seconds) and found.seconds >= 0)


# ---- the one door --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=())) | JSON.map(json.dumps))
def test_any_body_is_a_completion_or_broken(body):
    try:
        found = completion.read(body)
    except Broken as broken:
        assert str(broken).isprintable()
    else:
        well_formed(found)


@settings(max_examples=60, deadline=None)
@given(content=JSON, reasoning=JSON, model=JSON, reason=JSON, prompt=JSON, answered=JSON, usage=JSON)
def test_any_member_of_a_completion_gets_its_type(content, reasoning, model, reason, prompt, answered, usage):
    counts = usage if not isinstance(usage, dict) else {"prompt_tokens": prompt, "completion_tokens": answered}
    message = {"content": content, "reasoning_content": reasoning}
    body = {"model": model, "usage": counts, "choices": [{"message": message, "finish_reason": reason}]}
    well_formed(completion.read(json.dumps(body)))


@settings(max_examples=60, deadline=None)
@given(JSON, st.dictionaries(st.sampled_from(list(Completion.__dataclass_fields__)), JSON))
def test_any_file_of_the_cache_is_a_completion_or_nothing(row, fields):
    for own in (row, {"text": row} | fields):
        found = completion.kept(own)
        assert found is not None or not isinstance(own, dict) or "text" not in own
        if found is not None:
            well_formed(found)


def test_a_completion_is_read_from_the_cache_as_it_was_put_there(tmp_path):
    cache = AnswerCache(tmp_path)
    answer = Completion("dog \ufffd\n", "toy", 12, 3, "stop", 0.25, 2, 1, "propose/3", "abc")
    cache.put("ab12", answer)
    assert cache.get("ab12") == answer and cache.get("ab13") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"model": "x"}', "[" * 100_000, '{"text": ' + "9" * 5000 + "}"]
)
def test_a_damaged_answer_in_the_cache_is_bought_anew(tmp_path, text):
    with FaultServer() as server:
        first, _ = ask(server, tmp_path / "a", range(1), cache=tmp_path / "cache")
        (file,) = (tmp_path / "cache").rglob("*.json")
        file.write_text(text)
        again, _ = ask(server, tmp_path / "b", range(1), cache=tmp_path / "cache")
        assert again[0].labels == first[0].labels and not again[0].cached and sum(server.paid.values()) == 2


@pytest.mark.parametrize("old", [["dog", "cat"], {"concepts": ["dog"]}, 5, None, "\ud800 dog", "[" * 3000])
def test_a_run_that_died_of_a_kept_answer_goes_on(tmp_path, old):
    """Answers as they were kept before they were checked: any JSON in any place."""
    with FaultServer() as server:
        ask(server, tmp_path / "a", range(1), cache=tmp_path / "cache")
        (file,) = (tmp_path / "cache").rglob("*.json")
        row = {"text": old, "model": {"id": 1}, "prompt_tokens": -5, "completion_tokens": True, "seconds": "3"}
        file.write_text(json.dumps(row))
        rows, total = ask(server, tmp_path / "b", range(1), cache=tmp_path / "cache", prices={"input": 1, "output": 1})
    assert rows[0].cached and rows[0].status in ("answered", "unparsed") and rows[0].model == "toy"
    assert (rows[0].prompt_tokens, rows[0].completion_tokens, total["cost"]) == (None, None, None)


# ---- through a server ----------------------------------------------------------------------------------------------


def test_every_answer_that_was_ever_seen_gets_a_row_and_a_rerun_reads_the_same(tmp_path):
    shapes, n = list(ANSWERS.values()), [-1]

    def next_shape(reply):
        n[0] += 1
        return (
            shapes[n[0] // 2](reply) if n[0] % 2 else reply
        )  # a good one in between: 8 failures in a row are too many

    units = range(2 * len(shapes))
    with FaultServer(reshape=next_shape) as server:
        rows, total = ask(server, tmp_path / "a", units, cache=tmp_path / "cache", retries=0)
        server.reshape = lambda reply: reply
        again, _ = ask(server, tmp_path / "b", units, cache=tmp_path / "cache", retries=0)
    assert all(row.status == "answered" for row in rows[::2])
    found = dict(zip(ANSWERS, rows[1::2], strict=True))
    for name, row in found.items():
        assert row.status in ("answered", "unparsed", "failed"), name
        assert (row.status == "failed") == (row.raw is None) == (row.error is not None and name != "cut off"), name
        assert row.model is None or row.model.isprintable()
    wet = ("text parts", "object", "reasoning", "reasoning list", "message is text")
    assert all(found[name].labels == ("wet fur",) for name in wet)
    assert found["bad escape"].labels == ("polka_dots", "it's wet") and found["digits"].labels == ("cat",)
    assert found["control character"].labels == ("polka dots",)
    assert found["byte-order mark"].status == "answered" and found["refusal"].raw == "I can't help with that."
    uncounted = [name for name in found if "tokens" in name or "usage" in name]
    assert all(found[name].completion_tokens is None for name in uncounted) and len(uncounted) == 7
    assert all(found[name].status == "answered" for name in uncounted)
    broken = [name for name, row in found.items() if row.status == "failed"]
    assert all("answer" in found[name].error and found[name].uncertain == 1 for name in broken) and len(broken) == 10
    for first, second in zip(rows, again, strict=True):
        if first.status != "failed":
            assert (second.raw, second.labels, second.status, second.cached) == (
                first.raw,
                first.labels,
                first.status,
                True,
            )
    assert "failed" in total["status"]


@pytest.fixture(scope="module")
def changeable():
    with FaultServer() as server:
        yield server, load_chat("openai", base_url=server.url, model="toy", backoff=0.001, retries=0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_answer_of_a_server_raises(changeable, data):
    server, chat = changeable
    reshape = data.draw(
        st.sampled_from(list(ANSWERS.values()))
        | JSON.map(lambda value: with_message(content=value))
        | JSON.map(lambda value: with_fields(usage=value, model=value))
        | JSON.map(lambda value: with_choice(message=value))
        | JSON.map(lambda value: lambda _: json.dumps(value).encode())
        | st.binary(max_size=60).map(lambda body: lambda _: body)
    )
    server.reshape = reshape
    server.headers = data.draw(
        st.sampled_from(
            [{}, {"Content-Type": "text/html; charset=nonsense"}, {"X-A": "\xe9"}, {"Content-Encoding": "gzip"}]
        )
    )
    request = Request("propose/0", ("look ", Picture(b"jpeg", (8, 8), "p")))
    ((_, reply),) = chat.ask([request])
    assert (reply.text is None) == (reply.error is not None)
    json.dumps(reply.record, allow_nan=False).encode()
    (reply.text or "").encode()


def test_a_thought_that_was_cut_off_says_what_to_raise(tmp_path):
    thought = {"role": "assistant", "content": None, "reasoning_content": 'Maybe {"concepts": ["dog"]}? Let me look at'}
    with FaultServer(reshape=with_choice(message=thought, finish_reason="length")) as server:
        rows, total = ask(server, tmp_path, range(1))
    assert rows[0].status == "unparsed" and "Let me look" in rows[0].raw
    assert rows[0].error.startswith("cut off at 300 tokens: raise proposer.max_tokens")
    assert total["requests"] == 1 and total["prompt_tokens"] == 220  # it was paid for all the same


# ---- what a server does not know -----------------------------------------------------------------------------------

SCHEMA_REFUSALS = [
    "Invalid schema for response_format 'answer': In context=('properties', 'concepts'), 'maxItems' is not permitted.",
    "Invalid JSON payload received. Unknown name \"maxItems\" at 'response_json_schema'",
    "The provided JSON schema contains features not supported by xgrammar.",
    "guided_json is not supported by this engine",
    "This response_format type is unavailable now",
    "json: grammar too large for the compiler (maximum 10000 tokens)",
    "Structured outputs are not available for this model",
]


@pytest.mark.parametrize("status, words", zip([400, 422, 500, 400, 503, 400, 404], SCHEMA_REFUSALS, strict=True))
def test_a_refused_schema_is_left_out_before_the_request_is_called_too_large(tmp_path, status, words):
    with FaultServer(refuse=lambda body: words if "response_format" in body else None) as server:
        server.refusal_status = status
        rows, _ = ask(server, tmp_path, range(2), retries=0)
    assert [row.status for row in rows] == ["answered"] * 2 and [row.attempts for row in rows] == [1, 1]


def test_of_a_schema_the_bounds_go_first(tmp_path):
    with FaultServer(refuse=lambda b: SCHEMA_REFUSALS[0] if "maxItems" in json.dumps(b) else None) as server:
        rows, _ = ask(server, tmp_path, range(2), retries=0)
    assert [row.status for row in rows] == ["answered"] * 2
    schema = server.bodies[-1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["concepts"] == {"type": "array", "items": {"type": "string"}}


def test_switches_of_the_servers_own_reach_the_request_and_the_recipe_only_when_set(tmp_path):
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    with FaultServer() as server:
        plain, _ = ask(server, tmp_path / "a", range(1), cache=tmp_path / "cache")
        assert not set(server.bodies[0]) - {"model", "messages", "max_tokens", "temperature", "seed", "response_format"}
        before = len(server.bodies)
        ask(server, tmp_path / "b", range(1), cache=tmp_path / "cache", extra_body=off)
        assert server.bodies[before]["chat_template_kwargs"] == {"enable_thinking": False}  # and not from the cache
        recipes = [load_chat("openai", model="toy", extra_body=own).recipe for own in (None, {}, off)]
    assert recipes[0] == recipes[1] == load_chat("openai", model="toy").recipe
    assert recipes[2] == recipes[0] | {"extra_body": off} and plain[0].status == "answered"


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        ["a"],
        {"model": "x"},
        {"stream": True},
        {"x": float("nan")},
        {"api_key": "sk-1"},
        {"a": {"b": "sk-right-secret"}},
    ],
)
def test_switches_that_can_not_be(monkeypatch, wrong):
    monkeypatch.setenv("TOY_KEY", "sk-right-secret")
    with pytest.raises(UserError, match=r"proposer\.extra_body") as error:
        load_chat("openai", model="toy", key_env="TOY_KEY", extra_body=wrong)
    assert "sk-" not in str(error.value)


# ---- where pictures and keys must not go ---------------------------------------------------------------------------


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
    for number, words in enumerate([f"bad {KEY}", "x" * 285 + KEY, f"\ud800 {KEY}\x1b[2J"]):
        with FaultServer(key=KEY, refuse=lambda body, words=words: words) as server:
            server.refusal_status = status
            with pytest.raises(UserError) as error:
                ask(server, tmp_path / str(number), range(1), key_env="TOY_KEY", retries=0)
        said = str(error.value)
        assert KEY not in said and KEY[:12] not in said and said.isprintable()
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


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_categories=("C", "Z")), min_size=6, max_size=60), st.data())
def test_no_piece_of_a_key_that_matters_is_left(key, data):
    from saelab.label.vlm.secret import Secret

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


# ---- what it costs -------------------------------------------------------------------------------------------------


def test_what_a_killed_run_has_paid_appears_in_the_totals(tmp_path):
    """Killed between the purchase and the row: the answers lie in the cache, the rows of two units are missing."""
    prices = {"input": 2.0, "output": 10.0}
    with FaultServer(faults=lambda n: ["500"] if n == 2 else []) as server:
        first, total = ask(server, tmp_path / "run", range(4), cache=tmp_path / "cache", prices=prices)
        file = tmp_path / "run" / "proposals.jsonl"
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:2]))
        rows, again = ask(server, tmp_path / "run", range(4), cache=tmp_path / "cache", prices=prices)
        assert rows == first and again == total and again["attempts"] == 5  # to the letter, seconds included
        assert not any(row.cached for row in rows) and sum(server.paid.values()) == 4
        other, _ = ask(server, tmp_path / "other", range(4), cache=tmp_path / "cache", prices=prices)
        assert all(row.cached and row.attempts == 0 for row in other)
        small = selection.Budget(tokens=4 * 227 + 10)
        proposer = load_proposer("openai", base_url=server.url, cache=tmp_path / "cache", **FAST)
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:2]))
        kept = propose.run(proposer, exemplars(4, 1), IMAGES, range(4), tmp_path / "run", budget=small, progress=False)
        assert len(kept) == 2, "the two rows and the estimate of a third pass the budget"


def test_attempts_of_a_unit_that_failed_stay_in_the_totals(tmp_path):
    with FaultServer(faults=lambda n: ["half"] * 3 if n == 1 else []) as server:
        _, first = ask(server, tmp_path, range(3), retries=1)
        rows, total = ask(server, tmp_path, range(3), retries=1)
    assert first["status"] == {"answered": 2, "failed": 1} and (first["attempts"], first["uncertain"]) == (4, 2)
    assert total["status"] == {"answered": 3} and (total["attempts"], total["uncertain"]) == (6, 3)
    assert (rows[1].attempts, rows[1].uncertain) == (4, 3)


def test_equal_answers_give_equal_digests_whatever_they_took(tmp_path):
    with FaultServer(faults=lambda n: ["500"] if n else []) as server:
        for run in ("a", "b"):
            ask(server, tmp_path / run, range(3), cache=tmp_path / "cache", concurrency=3)
        ask(server, tmp_path / "c", range(3))
        server.answer = lambda question: FINAL
        ask(server, tmp_path / "d", range(3))
    digests = [propose.answers_digest(tmp_path / run) for run in "abcd"]
    texts = [(tmp_path / run / "proposals.jsonl").read_text() for run in "ab"]
    assert digests[0] == digests[1] == digests[2] != digests[3] and texts[0] != texts[1]


def test_the_same_question_to_another_model_or_server_is_another_question(tmp_path):
    with FaultServer() as server, FaultServer() as other:
        for where, model in ((server, "toy"), (server, "toy-large"), (other, "toy"), (server, "toy")):
            rows, _ = ask(
                where, tmp_path / f"{where.url[-6:-3]}{model}", range(1), model=model, cache=tmp_path / "cache"
            )
            assert not rows[0].cached
        assert sum(server.paid.values()) == 2 and sum(other.paid.values()) == 1


def waits(server, folder, monkeypatch, **more) -> list[float]:
    seconds: list[float] = []
    proposer = load_proposer("openai", **{"base_url": server.url, **FAST, **more})
    monkeypatch.setattr(proposer.chat.attempts._stopped, "wait", lambda timeout: seconds.append(timeout))
    propose.run(proposer, exemplars(1), IMAGES, range(1), folder, progress=False)
    return seconds


@pytest.mark.parametrize(
    "asked, seconds",
    [("7.5", 7.5), ("0", 0.0), ("600", 60.0), ("-3", 0.0), ("inf", None), ("nan", None), ("soon", None)],
)
def test_a_server_that_says_when_to_come_back_is_left_alone_until_then(tmp_path, monkeypatch, asked, seconds):
    with FaultServer(faults=lambda n: ["429", "429"], headers={"Retry-After": asked}) as server:
        waited = waits(server, tmp_path, monkeypatch, backoff=2.0)
    if seconds is None:
        assert 1 <= waited[0] <= 2 <= waited[1] <= 4  # as if it had said nothing: doubling, with jitter
    else:
        assert waited == [seconds, seconds]


def test_a_date_to_come_back_at_is_understood(tmp_path, monkeypatch):
    from email.utils import formatdate
    from time import time

    with FaultServer(faults=lambda n: ["503"], headers={"Retry-After": formatdate(time() + 40)}) as server:
        (waited,) = waits(server, tmp_path, monkeypatch, backoff=0.001)
    assert 0 < waited <= 40


def test_a_budget_counts_what_is_under_way_and_what_nobody_counted(tmp_path):
    ex = exemplars(12)
    with FaultServer(usage=False) as server:
        proposer = load_proposer("openai", base_url=server.url, **FAST | {"concurrency": 4})
        each = propose.estimate(proposer, ex, IMAGES, [0]).tokens
        budget = selection.Budget(tokens=int(each * 3.5))
        rows = propose.run(proposer, ex, IMAGES, range(12), tmp_path, budget=budget, progress=False)
    assert (
        len(rows) == 3
        and sum(server.paid.values()) == 3
        and re.search("9 not sent", propose.summary(rows, range(12))["text"])
    )
