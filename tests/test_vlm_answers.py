"""What a server may answer: every shape is read or listed, never raised; what it does not know is left out."""

import json
import math

import pytest
from asking import ask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seen import ANSWERS, with_choice, with_fields, with_message
from servers import FaultServer

from saelab.errors import UserError
from saelab.label.propose import load_chat
from saelab.label.vlm import completion
from saelab.label.vlm.cache import AnswerCache
from saelab.label.vlm.chat import Picture, Request
from saelab.label.vlm.completion import Broken, Completion

pytest.importorskip("openai")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def well_formed(found: Completion) -> None:
    found.text.encode()
    assert len(found.text) <= completion.LONGEST
    for own in (found.model, found.finish_reason):
        assert own is None or (isinstance(own, str) and own.isprintable() and len(own) <= 200)
    for number in (found.prompt_tokens, found.completion_tokens):
        assert number is None or (type(number) is int and 0 <= number <= completion.MOST_TOKENS)
    assert found.seconds is None or (math.isfinite(found.seconds) and found.seconds >= 0)


# ---- the one door --------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=())) | JSON.map(json.dumps))
def test_any_body_is_a_completion_or_broken(body):
    try:
        found = completion.read(body)
    except Broken as broken:
        assert str(broken).isprintable()
    else:
        well_formed(found)


@settings(max_examples=60)
@given(content=JSON, reasoning=JSON, model=JSON, reason=JSON, prompt=JSON, answered=JSON, usage=JSON)
def test_any_member_of_a_completion_gets_its_type(content, reasoning, model, reason, prompt, answered, usage):
    counts = usage if not isinstance(usage, dict) else {"prompt_tokens": prompt, "completion_tokens": answered}
    message = {"content": content, "reasoning_content": reasoning}
    body = {"model": model, "usage": counts, "choices": [{"message": message, "finish_reason": reason}]}
    well_formed(completion.read(json.dumps(body)))


@settings(max_examples=60)
@given(JSON, st.dictionaries(st.sampled_from(list(Completion.__dataclass_fields__)), JSON))
def test_any_file_of_the_cache_is_a_completion_or_nothing(row, fields):
    for own in (row, {"text": row} | fields):
        found = completion.restore(own)
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


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
