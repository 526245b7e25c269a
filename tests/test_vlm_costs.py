"""What answers cost: nothing is bought twice or forgotten, budgets hold, a server that asks for time gets it."""

from dataclasses import replace
from email.utils import formatdate
from time import time

import pytest
from asking import FAST, IMAGES, ask
from pictures import exemplars
from seen import FINAL
from servers import FaultServer

from saelab.artifacts import digest
from saelab.errors import UserError
from saelab.label import propose, selection
from saelab.label.propose import load_proposer
from saelab.label.vlm.cache import AnswerCache

pytest.importorskip("openai")


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


class Killed(BaseException):
    """What ends a run between two instructions; nothing in the way of it may tidy up."""


def test_requests_under_way_at_a_kill_are_counted_and_told(tmp_path, monkeypatch, caplog):
    """The third answer is bought, after a 500, and lost: the kill comes before it is kept."""

    def kill(self, digest, answer):
        if answer.name.endswith("/2"):
            raise Killed
        put(self, digest, answer)

    put, settings = AnswerCache.put, {"cache": tmp_path / "cache"}
    with FaultServer(faults=lambda n: ["500"] if n == 2 else []) as server:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(AnswerCache, "put", kill)
            ask(server, tmp_path / "run", range(4), **settings)
        assert len(list(tmp_path.rglob("*.sent"))) == 1 and sum(server.paid.values()) == 3
        other, _ = ask(server, tmp_path / "other", range(3), **settings)
        assert other[2].uncertain == 0  # the lost request was another run's
        next(tmp_path.glob(f"cache/*/{other[2].request}.json")).unlink()
        rows, total = ask(server, tmp_path / "run", range(4), **settings)
        again = ask(server, tmp_path / "run", range(4), **settings)
    assert [(row.attempts, row.uncertain) for row in rows] == [(1, 0), (1, 0), (3, 1), (1, 0)]
    assert (total["attempts"], total["uncertain"]) == (6, 1) and again == (rows, total)
    told = [record.message for record in caplog.records if "under way" in record.message]
    assert len(told) == 1 and "propose/2 " in told[0]
    assert not list(tmp_path.rglob("*.sent"))


@pytest.mark.parametrize("note", [b"", b"[]", b'{"attempts": -1}', b'{"attempts": 1, "uncertain": 1}'])
def test_a_note_that_cannot_be_read_still_says_that_something_was_sent(tmp_path, note):
    answers = AnswerCache(tmp_path)
    answers.note("0" * 64, "run", 2, 2)
    next(tmp_path.rglob("*.sent")).write_bytes(note)
    assert answers.left_under_way("0" * 64, "run") == (1, 1)
    assert answers.left_under_way("0" * 64, "another run") == answers.left_under_way("1" * 64, "run") == (0, 0)


def test_what_ends_the_run_leaves_only_what_was_left_before(tmp_path):
    """A refused key is no payment; the request that a kill lost before it stays counted."""
    with FaultServer(faults=lambda n: ["401"]) as server:
        for lost in (0, 1):
            for path in tmp_path.rglob("*.sent"):
                path.unlink()
            proposer = load_proposer("openai", base_url=server.url, cache=tmp_path / "cache", **FAST)
            request = replace(
                proposer.request(propose.build_case(exemplars(1, 1), IMAGES, 0, "contrast", 0, None)), buyer="run"
            )
            key = digest([server.url, "toy", request.digest, proposer.chat.options])
            proposer.chat.cache.note(key, "run", lost, lost)
            server.asked.clear()
            with pytest.raises(UserError, match="refused the key"):
                list(proposer.chat.ask([request]))
            assert proposer.chat.cache.left_under_way(key, "run") == (lost, lost)


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
    with FaultServer(faults=lambda n: ["503"], headers={"Retry-After": formatdate(time() + 40)}) as server:
        (waited,) = waits(server, tmp_path, monkeypatch, backoff=0.001)
    assert 0 < waited <= 40


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_budget_counts_what_is_under_way_and_what_nobody_counted(tmp_path, concurrency):
    ex = exemplars(12)
    with FaultServer(usage=False) as server:
        proposer = load_proposer("openai", base_url=server.url, **FAST | {"concurrency": concurrency})
        each = propose.estimate(proposer, ex, IMAGES, [0]).tokens
        budget = selection.Budget(tokens=int(each * 3.5))
        rows = propose.run(proposer, ex, IMAGES, range(12), tmp_path, budget=budget, progress=False)
    assert (
        len(rows) == 3 and sum(server.paid.values()) == 3 and "9 not sent" in propose.summary(rows, range(12))["text"]
    )
