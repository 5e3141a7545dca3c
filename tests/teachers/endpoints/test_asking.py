"""Asking a service: few requests at a time, repeated when they fail, and whatever was paid for is kept."""

from __future__ import annotations

import threading
import time

import pytest

from rerank_trainer.teachers.endpoints import asking
from rerank_trainer.teachers.endpoints.apis import RerankApi
from rerank_trainer.teachers.endpoints.asking import Asking, Request, Retries
from rerank_trainer.teachers.endpoints.budget import Budget
from rerank_trainer.teachers.endpoints.errors import BudgetError, EndpointError
from rerank_trainer.teachers.endpoints.journal import Journal
from rerank_trainer.teachers.endpoints.sending import Failure

BUSY = Failure("status 429: slower", is_busy=True)
CUT = Failure("cut", is_charged=True)
WRONG = Failure("status 400: no such model", again=False)


def request(number, size=2):
    body = {"query": f"q{number}", "documents": [f"p{place}" for place in range(size)]}
    return Request(body, [bytes([number, place]) for place in range(size)])


class Desk:
    """Sends nowhere: gives 0.5 for every passage, or the failures that are laid out for a query, and counts."""

    def __init__(self, failures=(), seconds=0.0):
        self.failures = {query: list(found) for query, found in dict(failures).items()}
        self.seconds, self.sent, self.times, self.now, self.most = seconds, [], [], 0, 0
        self.lock = threading.Lock()

    def send(self, body):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.sent.append(body["query"])
            self.times.append(time.monotonic())
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
            if self.failures.get(body["query"]):
                return self.failures[body["query"]].pop(0)
        results = [{"index": index, "relevance_score": 0.5} for index in range(len(body["documents"]))]
        return {"results": results}


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def ask(requests, desk, journal, *, budget=None, max_retries=3, backoff=0.001, at_once=2, on_scores=lambda _: None):
    api, retries = RerankApi.named("cohere"), Retries(max_retries, backoff)
    asked = Asking(
        api,
        sender=desk,
        journal=journal,
        budget=budget or Budget(),
        retries=retries,
        max_concurrency=at_once,
        on_scores=on_scores,
    )
    return asked.ask(requests)


def kept(journal, *requests):
    return len(journal.read([pair for one in requests for pair in one.pairs]))


def test_requests_run_at_once_up_to_the_limit(journal):
    desk = Desk(seconds=0.02)
    scores = ask([request(number) for number in range(12)], desk, journal, at_once=3)

    assert desk.most == 3
    assert set(scores.values()) == {0.5} and len(scores) == 24


def test_a_request_that_fails_is_repeated_until_it_is_answered(journal):
    desk = Desk({"q1": [BUSY, CUT, BUSY]})
    ask([request(number) for number in range(4)], desk, journal)

    assert sorted(desk.sent) == ["q0", "q1", "q1", "q1", "q1", "q2", "q3"]


def test_a_request_that_fails_too_often_ends_the_run_and_the_rest_is_kept(journal):
    desk = Desk({"q2": [CUT] * 9})
    with pytest.raises(EndpointError, match=r"^cut \(attempt 3\)$"):
        ask([request(number) for number in range(3)], desk, journal, max_retries=2)

    assert desk.sent.count("q2") == 3
    assert kept(journal, request(0), request(1)) == 4


def test_a_refused_request_ends_the_run_at_once_and_what_is_under_way_is_kept(journal):
    desk = Desk({"q0": [WRONG]}, seconds=0.02)
    with pytest.raises(EndpointError, match="no such model"):
        ask([request(number) for number in range(9)], desk, journal, at_once=3)

    assert sorted(desk.sent)[:3] == ["q0", "q1", "q2"] and len(desk.sent) < 6
    assert kept(journal, *map(request, range(9))) == 2 * (len(desk.sent) - 1)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_loses_no_answer_that_is_under_way(journal, interrupt):
    calls = []

    def stop(num_pairs):
        calls.append(num_pairs)
        if len(calls) == 1:
            raise interrupt

    desk = Desk(seconds=0.02)
    with pytest.raises(interrupt):
        ask([request(number) for number in range(6)], desk, journal, at_once=3, on_scores=stop)

    assert sorted(desk.sent) == ["q0", "q1", "q2"]
    assert kept(journal, *map(request, range(3))) == 6


def test_a_busy_service_gets_no_request_before_the_time_it_asks_for(journal):
    desk = Desk({"q0": [Failure("busy", is_busy=True, wait=0.1)]})
    ask([request(number) for number in range(6)], desk, journal, at_once=1)

    assert desk.sent[0] == "q0" and len(desk.sent) == 7
    assert desk.times[1] - desk.times[0] >= 0.1


def test_a_service_that_asks_for_too_long_a_wait_ends_the_run(journal):
    desk = Desk({"q0": [Failure("status 429: quota", is_busy=True, wait=7200.0)]})
    with pytest.raises(EndpointError, match="quota, and asks to be asked again in 7200 s"):
        ask([request(0)], desk, journal)


def test_pauses_double_and_vary_and_end_at_a_minute():
    retries = Retries(9, 1.0)
    for attempt, longest in ((0, 1.0), (1, 2.0), (3, 8.0), (5, 32.0), (6, 60.0), (5000, 60.0)):
        pauses = [retries.pause(attempt, CUT) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest

    assert 20.0 < retries.pause(0, Failure("busy", wait=20.0)) <= 21.0


def test_the_global_random_state_is_left_alone():
    import random

    random.seed(3)
    Retries(1, 1.0).pause(0, CUT)
    drawn = random.random()
    random.seed(3)

    assert drawn == random.random()


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_budget_is_used_up_and_not_exceeded(journal, at_once):
    requests = [request(number) for number in range(6)]
    desk = Desk(seconds=0.005)
    with pytest.raises(BudgetError, match="8 pairs, cost 0.4 so far.*about 2 pairs; allowed is max_cost=0.4"):
        ask(requests, desk, journal, budget=Budget(max_cost=0.4, price_per_pair=0.05), at_once=at_once)

    assert len(desk.sent) == 4 and kept(journal, *requests) == 8


def test_a_larger_budget_goes_on_and_counts_what_was_spent(journal):
    with pytest.raises(BudgetError):
        ask([request(number) for number in range(3)], Desk(), journal, budget=Budget(max_requests=2))
    desk = Desk()
    ask([request(2)], desk, journal, budget=Budget(max_requests=3))

    assert desk.sent == ["q2"]
    assert journal.spent() == (3, 6)


def test_a_refused_request_costs_nothing_and_a_cut_answer_may_have_been_charged(journal):
    ask([request(0), request(1)], Desk({"q0": [BUSY, BUSY], "q1": [CUT]}), journal)

    assert journal.spent() == (3, 6)


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_refused_request_leaves_its_share_of_the_budget_to_others(journal, at_once):
    desk = Desk({"q0": [BUSY]})
    with pytest.raises(BudgetError):
        ask([request(number) for number in range(3)], desk, journal, budget=Budget(max_requests=2), at_once=at_once)

    assert kept(journal, *map(request, range(3))) == 4


def test_an_answer_that_cannot_be_read_ends_the_run_and_the_others_are_kept(journal, monkeypatch):
    desk = Desk(seconds=0.01)
    send = desk.send
    monkeypatch.setattr(desk, "send", lambda body: {"oh": "no"} if send(body) and body["query"] == "q1" else send(body))
    with pytest.raises(ValueError, match="to be a list of results"):
        ask([request(0), request(1)], desk, journal)

    assert kept(journal, request(0)) == 2


def test_who_waits_for_a_place_does_not_look_again_and_again(journal, monkeypatch):
    desk, commits = Desk({"q0": [CUT]}, seconds=0.2), []  # q0 is due again while q1 has the only place
    commit = journal.commit
    monkeypatch.setattr(journal, "commit", lambda: commits.append(commit()))
    ask([request(0), request(1)], desk, journal, at_once=1, backoff=0.02)

    assert desk.sent == ["q0", "q1", "q0"]
    assert len(commits) < 12  # before each of three requests, each wait, and in the end


def test_the_longest_wait_is_within_reason():
    assert asking.LONGEST_PAUSE <= asking.LONGEST_WAIT <= 3600
