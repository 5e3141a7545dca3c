"""The journal of answers and the budget: nothing that was paid is lost, nothing is spent beyond what is allowed."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rerank_trainer.teachers.endpoints.budget import Budget
from rerank_trainer.teachers.endpoints.journal import Journal


def pair(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_scores_come_back_as_they_were(tmp_path):
    scores = [0.1 + 0.2, -1e-300, 5e15 + 1]
    with Journal(tmp_path / "deep" / "journal.sqlite") as journal:
        journal.add([pair(number) for number in range(3)], scores)
        journal.commit()
    with Journal(tmp_path / "deep" / "journal.sqlite") as journal:
        found = journal.read(pair(number) for number in range(1200))

    assert found == {pair(number): score for number, score in enumerate(scores)}


def test_what_was_not_committed_is_not_there(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.add([pair(0)], [1.0])
    with Journal(tmp_path / "j") as journal:
        assert journal.read([pair(0)]) == {}


def test_a_file_that_is_no_journal_is_refused_and_stays(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b"something else" * 1000)

    with pytest.raises(ValueError, match="is damaged or none .*Move it away"):
        Journal(path)
    assert path.read_bytes() == b"something else" * 1000


def test_the_budget_holds_over_runs(tmp_path):
    budget = Budget(max_requests=3)
    reserved = []
    for _ in range(5):
        with Journal(tmp_path / "j") as journal:
            reserved.append(journal.reserve(4, budget))
            journal.commit()

    assert reserved == [True, True, True, False, False]
    with Journal(tmp_path / "j") as journal:
        assert journal.spent() == (3, 12)
        journal.release(4)
        assert journal.reserve(4, budget)


def test_the_budget_holds_over_journals_that_are_open_at_once(tmp_path):
    opened, reserved = threading.Event(), threading.Event()

    def reserve_too() -> bool:
        with Journal(tmp_path / "j") as other:
            opened.set()
            reserved.wait()
            return other.reserve(1, Budget(max_requests=1))

    with Journal(tmp_path / "j") as journal, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(reserve_too)
        opened.wait()
        assert journal.reserve(1, Budget(max_requests=1))
        reserved.set()
        time.sleep(0.1)  # the other one would read what is spent before this one has written it
        journal.commit()
        assert answer.result() is False


def test_journals_that_are_made_at_once_count_together(tmp_path):
    def spend(_: int) -> None:
        with Journal(tmp_path / "j") as journal:
            journal.reserve(1, Budget())
            journal.commit()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(spend, range(4)))
    with Journal(tmp_path / "j") as journal:
        assert journal.spent() == (4, 4)


@pytest.mark.parametrize(
    ("budget", "num_requests", "num_pairs", "allowed"),
    [
        (Budget(), 10**9, 10**9, True),
        (Budget(max_requests=2), 2, 100, True),
        (Budget(max_requests=2), 3, 100, False),
        (Budget(max_pairs=0), 1, 1, False),
        (Budget(max_pairs=8), 3, 8, True),
        (Budget(max_cost=0.3, price_per_request=0.1), 3, 9, True),  # 3 * 0.1 > 0.3 in floating point
        (Budget(max_cost=0.3, price_per_request=0.1), 4, 9, False),
        (Budget(max_cost=1.0, price_per_pair=0.1, price_per_request=0.05), 2, 9, True),
        (Budget(max_cost=1.0, price_per_pair=0.1, price_per_request=0.05), 2, 10, False),
    ],
)
def test_a_budget_allows_up_to_its_limits(budget, num_requests, num_pairs, allowed):
    assert budget.allows(num_requests, num_pairs) is allowed


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"max_pairs": -1}, "max_pairs must be 0 or more, found -1"),
        ({"price_per_pair": math.nan}, "price_per_pair must be 0 or more, found nan"),
        ({"max_cost": 5.0}, "max_cost=5.0 needs price_per_request or price_per_pair"),
    ],
)
def test_a_budget_that_cannot_be_right_is_refused(fields, found):
    with pytest.raises(ValueError, match=found):
        Budget(**fields)
