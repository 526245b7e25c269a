"""The OpenAI-compatible backend against a server that fails on purpose: nothing lost, paid twice or leaked."""

import base64
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures import Pictures, exemplars
from servers import PICTURE_TOKENS, FaultServer, free_port

from saelab.errors import UserError
from saelab.label import propose, selection
from saelab.label.propose import load_proposer

pytest.importorskip("openai")
IMAGES = Pictures()
FAST = {"model": "toy", "backoff": 0.01, "timeout": 0.5, "sheet_px": 448}


def ask(server: FaultServer, folder: Path, units=range(6), mode="contrast", budget=None, n=6, **settings):
    proposer = load_proposer("openai", **{"base_url": server.url, **FAST, **settings})
    rows = propose.run(proposer, exemplars(n), IMAGES, units, folder, mode=mode, budget=budget, progress=False)
    return rows, propose.summary(rows, units)


FAULTS = ["429", "500", "half", "nothing", "late", "cut"]


def test_through_every_fault_no_unit_is_lost_and_none_is_paid_twice(tmp_path):
    """Unit n meets the first n faults in a row before its answer."""
    with FaultServer(faults=lambda n: FAULTS[:n]) as server:
        rows, total = ask(server, tmp_path, units=range(7), n=7, prices={"input": 2.0, "output": 10.0})
    assert [p.status for p in rows] == ["answered"] * 7
    assert sorted(server.paid.values()) == [1] * 7  # each question once
    assert len({p.labels for p in rows}) == 7  # and each unit its own answer
    assert sorted(p.attempts for p in rows) == [1, 2, 3, 4, 5, 6, 7] == sorted(server.asked.values())
    # half a JSON, nothing, too late and a cut line may have been charged; 429 and 500 are not
    assert sorted(p.uncertain for p in rows) == [0, 0, 0, 1, 2, 3, 4]
    each = (20 + 2 * PICTURE_TOKENS) * 2.0 / 1e6 + 7 * 10.0 / 1e6
    assert total["cost"] == pytest.approx(7 * each) and rows[0].cost == pytest.approx(each)
    assert (total["requests"], total["prompt_tokens"], total["completion_tokens"]) == (7, 7 * 220, 49)
    assert (total["attempts"], total["uncertain"]) == (28, 10)


@pytest.mark.parametrize(
    "fault, timeout, why",
    [("drip", 1, "no answer within 1 s"), ("drip head", 1, "no answer within 1 s"), ("flood", 60, "more than 16 MB")],
)
def test_an_answer_without_an_end_is_cut_off_and_can_be_asked_for_again(tmp_path, fault, timeout, why):
    """Each byte comes long before a read times out."""
    with FaultServer(faults=lambda n: [fault]) as server:
        with pytest.raises(UserError, match=f"{why}, after 1 attempts"):
            ask(server, tmp_path, units=[0], n=1, retries=0, timeout=timeout)
        rows, _ = ask(server, tmp_path, units=[0], n=1, retries=0, timeout=60)
    assert (rows[0].status, rows[0].attempts, rows[0].uncertain) == ("answered", 2, 1)  # both runs' attempts
    assert list(server.paid.values()) == [1]


def test_a_unit_whose_attempts_are_used_up_fails_alone_and_is_asked_again(tmp_path):
    with FaultServer(faults=lambda n: ["500"] * 4 if n == 2 else []) as server:
        rows, total = ask(server, tmp_path, retries=2, concurrency=1)
        assert [p.status for p in rows].count("failed") == 1 and total["status"] == {"answered": 5, "failed": 1}
        (failed,) = [p for p in rows if p.status == "failed"]
        assert failed.error == "500 fault 500, after 3 attempts" and failed.attempts == 3 and failed.cost is None
        assert total["cost"] is None and total["prompt_tokens"] == 5 * 220
        rows, total = ask(server, tmp_path, retries=2, concurrency=1)
        assert total["status"] == {"answered": 6} and max(server.paid.values()) == 1
        assert sum(server.paid.values()) == 6


def test_the_cache_spares_every_unit_that_any_run_has_bought(tmp_path):
    with FaultServer() as server:
        first, _ = ask(server, tmp_path / "a", cache=tmp_path / "cache")
        again, total = ask(server, tmp_path / "b", cache=tmp_path / "cache")
        assert [p.labels for p in again] == [p.labels for p in first] and all(p.cached for p in again)
        assert sum(server.paid.values()) == 6 and total["prompt_tokens"] == 6 * 220
        assert all(p.attempts == 0 for p in again)
        ask(server, tmp_path / "c", cache=tmp_path / "cache", temperature=0.7)  # another question
        assert sum(server.asked.values()) == 12


def test_two_units_with_the_same_pictures_are_one_request_paid_once(tmp_path):
    ex = exemplars(2)
    ex.positives[1], ex.contrasts[1] = ex.positives[0], ex.contrasts[0]
    with FaultServer() as server:
        proposer = load_proposer("openai", base_url=server.url, cache=tmp_path / "cache", shown=1, **FAST)
        rows = propose.run(proposer, ex, IMAGES, [0, 1], tmp_path / "run", progress=False)
    total = propose.summary(rows, [0, 1])
    assert sum(server.paid.values()) == 1 and total["requests"] == 1 and total["prompt_tokens"] == 220
    assert rows[0].labels == rows[1].labels and sorted(p.cached for p in rows) == [False, True]


def test_no_more_requests_are_under_way_than_allowed(tmp_path):
    with FaultServer(faults=lambda n: ["late"], late=0.4) as server:
        ask(server, tmp_path, concurrency=3)
    assert 2 <= server.most_at_once <= 3


def test_what_is_sent_is_what_is_recorded(tmp_path):
    with FaultServer() as server:
        rows, _ = ask(server, tmp_path, concurrency=1, units=[4])
    body = server.bodies[0]  # the second is the same without pictures: are they seen at all?
    parts = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    sent = [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in urls]
    assert sent == [(tmp_path / sheet).read_bytes() for sheet in rows[0].sheets]
    text = "".join(p["text"] if p["type"] == "text" else "[]" for p in parts)
    assert rows[0].prompt.replace("[unit-00004-positives]", "[]").replace("[unit-00004-contrasts]", "[]") == text
    assert rows[0].model == "toy-1" and body["model"] == "toy" and rows[0].seconds > 0


@pytest.mark.parametrize(
    "words, unknown",
    [
        ("response_format of type json_schema is not supported", "response_format"),
        ("Unsupported value: 'temperature' only 1 is supported", "temperature"),
        ("Unrecognized request argument: seed", "seed"),
        ("Unsupported parameter: 'max_tokens', use 'max_completion_tokens' instead", "max_tokens"),
    ],
)
def test_a_server_that_knows_a_parameter_not_is_asked_without_it(tmp_path, words, unknown):
    with FaultServer(refuse=lambda body: words if unknown in body else None) as server:
        rows, total = ask(server, tmp_path, concurrency=4)
    assert total["status"] == {"answered": 6} and sum(server.paid.values()) == 6
    assert all(p.attempts == 1 for p in rows)
    assert ("max_completion_tokens" in server.bodies[-1]) == (unknown == "max_tokens")


def test_unparsed_answers_are_kept_verbatim_counted_and_not_bought_again(tmp_path):
    prose = "Well, these photos could be anything. I would not dare to say."
    with FaultServer(answer=lambda question: prose) as server:
        rows, total = ask(server, tmp_path)
        assert total["status"] == {"unparsed": 6} and {p.raw for p in rows} == {prose}
        assert all(p.labels == () for p in rows)
        ask(server, tmp_path)
        assert sum(server.paid.values()) == 6


def test_without_token_counts_or_prices_the_cost_is_unknown(tmp_path):
    with FaultServer(usage=False) as server:
        rows, total = ask(server, tmp_path / "a", prices={"input": 1.0, "output": 1.0})
        assert rows[0].prompt_tokens is None and total["cost"] is None
    with FaultServer() as server:
        _, total = ask(server, tmp_path / "b", prices={"input": 1.0, "output": None})
        assert total["cost"] is None and "cost unknown" in total["text"] and total["prompt_tokens"] == 6 * 220


def test_a_budget_in_money_is_kept_by_what_answers_really_cost(tmp_path):
    each = (20 + 2 * PICTURE_TOKENS + 7) * 1e-6 * 1000
    with FaultServer() as server:
        rows, total = ask(
            server,
            tmp_path,
            budget=selection.Budget(usd=each * 2 + 0.7),
            prices={"input": 1000.0, "output": 1000.0},
            picture_tokens=PICTURE_TOKENS,
            concurrency=1,
        )
    assert total["unsent"] == 6 - len(rows) > 0 and total["cost"] <= each * 2 + 0.7
    assert sum(server.paid.values()) == len(rows) >= 1


def test_the_dry_run_sends_nothing(tmp_path):
    proposer = load_proposer("openai", base_url="http://127.0.0.1:9/v1", prices={"input": 1.0, "output": 2.0}, **FAST)
    found = propose.estimate(proposer, exemplars(), IMAGES, range(6))
    text = len(proposer.request(propose.build_case(exemplars(), IMAGES, 0, "contrast", 0, 9)).text)
    assert found.requests == 6 and found.completion_tokens == 6 * 300
    assert (
        6 * 2 * 256 < found.prompt_tokens <= 6 * (2 * 256 + text)
    )  # two sheets of one InternVL tile each, and the text
    assert found.cost == pytest.approx((found.prompt_tokens + 2 * found.completion_tokens) / 1e6)


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_no_server_at_the_address(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(UserError, match=r"no server answers there .*start one, for example: vllm serve toy"):
        propose.run(load_proposer("openai", base_url=url, **FAST), exemplars(), IMAGES, [0], tmp_path, progress=False)
    with pytest.raises(UserError, match=r"proposer\.base_url=localhost:8000"):
        load_proposer("openai", model="toy", base_url="localhost:8000")


def test_a_refused_key_stops_at_once_and_the_key_is_nowhere(tmp_path, monkeypatch, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOY_KEY", "sk-wrong-secret-123")
    with FaultServer(key="sk-right-secret-456") as server:
        with pytest.raises(UserError, match=r"proposer\.key_env=TOY_KEY: .*refused the key") as refused:
            ask(server, tmp_path, key_env="TOY_KEY", cache=tmp_path / "cache")
        assert not server.asked
        monkeypatch.setenv("TOY_KEY", "sk-right-secret-456")
        _, total = ask(server, tmp_path, key_env="TOY_KEY", cache=tmp_path / "cache")
    assert total["status"] == {"answered": 6}
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    output = capsys.readouterr()
    said = str(refused.value) + caplog.text + output.out + output.err
    assert len(written) == 20 and not any(b"secret" in data for data in written)
    assert "secret" not in said and "***" in str(refused.value)


def test_a_key_in_the_address_is_refused_without_being_shown():
    for url in ("https://user:sk-secret@host/v1", "https://host/v1?api_key=sk-secret"):
        with pytest.raises(UserError, match="must hold no key") as error:
            load_proposer("openai", model="toy", base_url=url)
        assert "secret" not in str(error.value)


def test_a_model_that_takes_no_pictures_says_so(tmp_path):
    with (
        FaultServer(refuse=lambda body: "toy is not a multimodal model") as server,
        pytest.raises(UserError, match=r"proposer\.model=toy: takes no pictures"),
    ):
        ask(server, tmp_path)


def test_a_server_that_drops_the_pictures_without_a_word_is_found_out(tmp_path):
    with FaultServer(sees=False) as server:
        with pytest.raises(UserError, match="20 prompt tokens with and without them"):
            ask(server, tmp_path, cache=tmp_path / "cache", concurrency=1)
        assert server.probes == 1
    assert not list((tmp_path / "cache").rglob("*.json")), "a blind answer must not be kept"
    assert not (tmp_path / "proposals.jsonl").read_text()


def test_an_image_too_large_for_the_context(tmp_path):
    words = "This model's maximum context length is 512 tokens, your request has 2048 input tokens (max_tokens 300)"
    with (
        FaultServer(refuse=lambda body: words) as server,
        pytest.raises(UserError, match=r"all 6 units failed.*lower proposer\.sheet_px"),
    ):
        ask(server, tmp_path)
    assert all(count == 1 for count in server.asked.values())  # the same again would not get shorter


def test_an_unknown_model_and_an_empty_purse(tmp_path):
    with FaultServer(faults=lambda n: ["404"]) as server, pytest.raises(UserError, match=r"proposer\.model=toy.*404"):
        ask(server, tmp_path)
    with FaultServer(faults=lambda n: ["402"]) as server, pytest.raises(UserError, match="no credit left"):
        ask(server, tmp_path / "b")


def test_a_server_that_dies_midway_ends_the_run_and_keeps_what_it_answered(tmp_path):
    with FaultServer(faults=lambda n: ["500"] * 9 if n >= 10 else []) as server:
        with pytest.raises(UserError, match="8 requests in a row failed"):
            ask(server, tmp_path, units=range(24), n=24, concurrency=1, retries=0)
        assert len([p for p in propose.read(tmp_path) if p.status == "answered"]) == 10
        server.faults = lambda n: []
        server.left.clear()
        _, total = ask(server, tmp_path, units=range(24), n=24, concurrency=1, retries=0)
    assert total["status"] == {"answered": 24} and set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    "setting, value",
    [
        ("sheet_px", 300),
        ("layout", "heap"),
        ("tiles", "blurred"),
        ("prompt", "nowhere.jinja"),
        ("concurrency", 0),
        ("picture_tokens", "guess"),
        ("model", ""),
        ("prices", {"input": -1.0}),
    ],
)
def test_settings_that_can_not_be(setting, value):
    with pytest.raises(UserError, match=f"proposer.{setting}"):
        load_proposer("openai", **{"model": "toy", setting: value})


def test_a_unit_whose_image_is_gone_fails_alone(tmp_path):
    class Gone(Pictures):
        def load(self, i):
            if i == 5:
                raise UserError("image", "5.jpg", "can't be read")
            return super().load(i)

    with FaultServer() as server:
        proposer = load_proposer("openai", base_url=server.url, **FAST)
        rows = propose.run(proposer, exemplars(), Gone(), range(6), tmp_path, progress=False)
    assert [p.status for p in rows] == ["answered", "failed"] + ["answered"] * 4  # image 5 is unit 1's
    assert rows[1].error == "image=5.jpg: can't be read" and sum(server.paid.values()) == 5


def test_heat_maps_are_asked_for_where_they_are_needed(tmp_path):
    with FaultServer() as server, pytest.raises(UserError, match=r"proposer\.tiles=heatmap: needs heat maps"):
        ask(server, tmp_path, tiles="heatmap")


# ---- killed --------------------------------------------------------------------------------------------------------

KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pictures import Pictures, exemplars
from saelab.label import propose
proposer = propose.load_proposer("openai", base_url={url!r}, model="toy", sheet_px=448, timeout=60, concurrency=2,
    cache={folder!r} + "/answers")
propose.run(proposer, exemplars(12), Pictures(), range(12), {folder!r}, progress=False)
"""


def test_after_kill_9_the_run_goes_on_and_no_unit_is_paid_twice(tmp_path):
    """The server answers five questions and lets every further one hang, then the client is killed."""
    with FaultServer(faults=lambda n: ["hang"] if n >= 5 else []) as server:
        script = KILLED.format(tests=str(Path(__file__).parent), url=server.url, folder=str(tmp_path))
        process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
        file = tmp_path / "proposals.jsonl"
        deadline = time.monotonic() + 600
        while len(server.asked) < 7 or file.read_text().count("\n") < 5:  # two more are under way
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait(600)
        assert sum(server.paid.values()) == 5
        server.faults = lambda n: []
        rows, total = ask(server, tmp_path, units=range(12), n=12, timeout=60, cache=tmp_path / "answers")
        assert total["status"] == {"answered": 12} and len(rows) == 12
        assert (total["attempts"], total["uncertain"]) == (14, 2)  # two were under way at the kill
        assert len(server.paid) == 12 and set(server.paid.values()) == {1}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["unit"] for line in lines] == list(range(12))
