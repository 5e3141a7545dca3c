"""Many requests to a service: a few at a time, repeated where they fail, each answer kept before the next is asked."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from random import SystemRandom
from typing import Any, Protocol

from rerank_trainer.teachers.endpoints.apis import Api
from rerank_trainer.teachers.endpoints.budget import Budget
from rerank_trainer.teachers.endpoints.errors import BudgetError, EndpointError
from rerank_trainer.teachers.endpoints.journal import Journal
from rerank_trainer.teachers.endpoints.sending import Failure

LONGEST_PAUSE = 60.0  # seconds: where doubling ends
LONGEST_WAIT = 600.0  # seconds that a service may ask for; longer, and the run ends instead
_CHANCE = SystemRandom()  # not of the seed that training draws from


@dataclass(frozen=True)
class Request:
    """Passages of one query that are asked for together.

    Attributes:
        body: What is sent, as JSON.
        pairs: The digest of each pair, in the order of its passages there.
        about: In words, for an error that the request itself brings about.
    """

    body: Mapping[str, Any]
    pairs: Sequence[bytes]
    about: str = ""


@dataclass(frozen=True)
class Retries:
    """How often and when a request is repeated.

    Attributes:
        max_retries: Times that a request is repeated before the run ends.
        backoff: Seconds before the first repetition; they double each time.
    """

    max_retries: int
    backoff: float

    def pause(self, attempt: int, failure: Failure) -> float:
        """Seconds before the attempt after this one, never fewer than the service asks for.

        A random half of them is left out, so that what failed together does not come back together.
        """
        seconds = min(LONGEST_PAUSE, self.backoff * 2.0 ** min(attempt, 30)) * _CHANCE.uniform(0.5, 1.0)
        return seconds if failure.wait is None else failure.wait + min(seconds, self.backoff)


class SendsRequests(Protocol):
    """What sends a request, from any thread."""

    def send(self, body: Mapping[str, Any]) -> Any | Failure:
        """The JSON of the answer, or why there is none."""
        ...


class Asking:
    """Asks a service for the scores of requests.

    One thread decides, writes the journal and counts; the others send. A request is counted in the journal before it
    goes out, and its scores are in the journal before the next one does. Whatever ends a run, what is under way is
    waited for and kept.

    Args:
        api: Reads the answers.
        sender: Sends the requests.
        journal: Keeps the answers.
        budget: What may be spent.
        retries: How often a request is repeated.
        max_concurrency: Requests under way at a time.
        on_scores: Called with the number of pairs whenever a request is answered.
    """

    def __init__(
        self,
        api: Api,
        *,
        sender: SendsRequests,
        journal: Journal,
        budget: Budget,
        retries: Retries,
        max_concurrency: int,
        on_scores: Callable[[int], object],
    ) -> None:
        self._api, self._sender, self._journal, self._budget, self._retries = api, sender, journal, budget, retries
        self._max_concurrency, self._on_scores = max_concurrency, on_scores
        self._fresh: deque[tuple[Request, int]] = deque()  # with the attempts that failed
        self._later: list[tuple[float, int, Request, int]] = []  # a heap: when, a number, the request, failed attempts
        self._running: dict[Future[Any], tuple[Request, int]] = {}
        self._paused_until = 0.0  # on the clock of time.monotonic
        self._num_failures = 0
        self._trouble: Exception | None = None
        self._scores: dict[bytes, float] = {}

    def ask(self, requests: Iterable[Request]) -> dict[bytes, float]:
        """The score of each pair.

        Raises:
            BudgetError: If the next request would exceed the budget.
            EndpointError: If the service refuses a request, or fails too often.
            ValueError: If an answer is not as it must be.
        """
        self._fresh.extend((request, 0) for request in requests)
        with ThreadPoolExecutor(self._max_concurrency, thread_name_prefix="endpoint") as pool:
            try:
                while self._trouble is None and (self._fresh or self._later or self._running):
                    self._start(pool)
                    self._collect()
            finally:
                while self._running:  # under way, so paid for
                    self._collect()
                self._journal.commit()
        if self._trouble is not None:
            raise self._trouble
        return self._scores

    def _start(self, pool: ThreadPoolExecutor) -> None:
        """Send what is due, as far as places and budget go."""
        chosen: list[tuple[Request, int]] = []
        while len(self._running) + len(chosen) < self._max_concurrency and (waiting := self._next()) is not None:
            num_pairs = len(waiting[0].pairs)
            if not self._journal.reserve(num_pairs, self._budget):
                self._fresh.appendleft(waiting)
                if not self._running and not chosen:  # no request under way may yet be refused and leave its share
                    self._trouble = BudgetError(self._over_budget(num_pairs))
                break
            chosen.append(waiting)
        self._journal.commit()
        for request, failed in chosen:
            self._running[pool.submit(self._sender.send, request.body)] = request, failed

    def _next(self) -> tuple[Request, int] | None:
        """The next request that is due, taken out of those that wait."""
        now = time.monotonic()
        if now < self._paused_until:
            return None
        if self._later and self._later[0][0] <= now:
            return heapq.heappop(self._later)[2:]
        return self._fresh.popleft() if self._fresh else None

    def _collect(self) -> None:
        """Wait until an answer comes or a request is due, and keep what came."""
        self._journal.commit()  # others may write meanwhile
        now = time.monotonic()
        if self._trouble is not None or len(self._running) == self._max_concurrency:
            seconds = None  # nothing can start before something ends
        elif now < self._paused_until:
            seconds = self._paused_until - now
        else:
            seconds = max(0.0, self._later[0][0] - now) if self._later else None
        if not self._running:
            time.sleep(seconds or 0.0)
            return
        done, _ = wait(self._running, seconds, return_when=FIRST_COMPLETED)
        for future in done:
            request, failed = self._running.pop(future)
            answer = future.result()
            if isinstance(answer, Failure):
                self._failed(request, failed, answer)
            else:
                self._answered(request, answer)

    def _answered(self, request: Request, answer: Any) -> None:
        try:
            scores = self._api.read(answer, len(request.pairs))
        except ValueError as error:
            self._trouble = self._trouble or ValueError(f"{error}{_asked(request)}")
            return
        self._journal.add(request.pairs, scores)
        self._scores.update(zip(request.pairs, scores, strict=True))
        self._on_scores(len(scores))

    def _failed(self, request: Request, failed: int, failure: Failure) -> None:
        if not failure.is_charged:
            self._journal.release(len(request.pairs))
        too_long = failure.wait is not None and failure.wait > LONGEST_WAIT
        if not failure.again or failed >= self._retries.max_retries or too_long:
            times = f" (attempt {failed + 1})" if failed else ""
            asks = f", and asks to be asked again in {failure.wait:.0f} s" if failure.wait is not None else ""
            self._trouble = self._trouble or EndpointError(
                f"{failure.reason}{times}{asks}{'' if failure.again else _asked(request)}"
            )
            return
        due = time.monotonic() + self._retries.pause(failed, failure)
        if failure.is_busy or failure.wait is not None:  # then it has no time for the others either
            self._paused_until = max(self._paused_until, due)
        self._num_failures += 1
        heapq.heappush(self._later, (due, self._num_failures, request, failed + 1))

    def _over_budget(self, num_pairs: int) -> str:
        spent = self._budget.report(*self._journal.spent())
        limits = ", ".join(
            f"{name}={value:g}"
            for name, value in vars(self._budget).items()
            if name.startswith("max_") and value is not None
        )
        return (
            f"the budget is spent: {spent} so far, with all runs before, and the next request is about {num_pairs} "
            f"pairs; allowed is {limits}. Raise the budget to go on"
        )


def _asked(request: Request) -> str:
    return f". It was asked about {request.about}" if request.about else ""
