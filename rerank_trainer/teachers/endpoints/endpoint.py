"""The endpoint teacher: scores of a service behind HTTP, each pair paid for once."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.constants import HF_HOME
from tqdm.auto import tqdm

from rerank_trainer.models.progress import MANY_PAIRS
from rerank_trainer.teachers.endpoints.apis import Api, RerankApi, shortened
from rerank_trainer.teachers.endpoints.asking import Asking, Request, Retries
from rerank_trainer.teachers.endpoints.budget import Budget, Estimate
from rerank_trainer.teachers.endpoints.errors import EndpointError
from rerank_trainer.teachers.endpoints.journal import Journal
from rerank_trainer.teachers.endpoints.sending import Sender, check_url, shown

logger = logging.getLogger(__name__)

SMALLEST_PROBABILITY = 1e-7  # a probability of 0 or 1, which is rounded, has no logit
_NOT_SENT = {"scale", "max_passages"}  # what an api says that changes no answer


class EndpointTeacher:
    """A service behind HTTP as teacher: a rerank service, or a language model that judges.

    Requests run a few at a time and are repeated after 429, 5xx, cut answers and timeouts. Every answer is kept in a
    journal as it comes, by a digest of its pair, so a run that ends early pays only for the rest when it starts again,
    and a pair that comes back in another data set is not paid for again. ``docs/endpoints.md`` says more.

    Args:
        url: The whole address, such as ``https://api.cohere.com/v2/rerank``.
        api: A :class:`RerankApi` or :class:`ChatJudge`, or the name of a known service: "cohere", "jina", "vllm",
            "vllm-score", "tei".
        model: The name of the model in every request; None leaves it out, for servers of one model.
        api_key_env: Name of the environment variable that holds the key; None sends none. The key is read when it is
            needed and stands in no attribute, file, log line or error.
        to_logits: Turn probabilities into log(p / (1 - p)), which a softmax needs.
        max_concurrency: Requests under way at a time.
        max_retries: Times that a request is repeated before the run ends.
        backoff: Seconds before the first repetition; they double each time, up to a minute. A ``Retry-After`` of the
            service is followed.
        timeout: Seconds that an answer may take.
        budget: What may be spent; None is no limit.
        journal_dir: Folder of the journals, one file a service and model; None takes one beside the Hub's own cache.
        show_progress_bar: Whether to show pairs scored, pairs a second and time left; None does from a thousand pairs
            on.

    Raises:
        ValueError: If an argument cannot be right, or the address holds a secret.

    >>> teacher = EndpointTeacher("http://localhost:8080/rerank", api="tei")
    >>> teacher
    EndpointTeacher('http://localhost:8080/rerank', api=RerankApi, model=None)
    >>> teacher.scale
    'logit'
    """

    def __init__(
        self,
        url: str,
        *,
        api: str | Api,
        model: str | None = None,
        api_key_env: str | None = None,
        to_logits: bool = False,
        max_concurrency: int = 8,
        max_retries: int = 6,
        backoff: float = 1.0,
        timeout: float = 60.0,
        budget: Budget | None = None,
        journal_dir: str | Path | None = None,
        show_progress_bar: bool | None = None,
    ) -> None:
        check_url(url)
        if not (max_concurrency >= 1 and max_retries >= 0 and backoff >= 0 and timeout > 0):
            raise ValueError(
                "expected max_concurrency of 1 or more, max_retries and backoff of 0 or more and a timeout above 0, "
                f"found {max_concurrency}, {max_retries}, {backoff} and {timeout}"
            )
        self.url, self.model, self.api_key_env = url, model, api_key_env
        self.api: Api = RerankApi.named(api) if isinstance(api, str) else api
        if to_logits and self.api.scale != "probability":
            raise ValueError(f"to_logits=True, but the scores are declared as {self.api.scale!r}: leave it out")
        self.to_logits = to_logits
        self.scale = "logit" if to_logits else self.api.scale
        self.budget = budget or Budget()
        self.show_progress_bar = show_progress_bar
        self._sending: dict[str, Any] = {
            "api_key_env": api_key_env,
            "timeout": timeout,
            "max_concurrency": max_concurrency,
        }
        self._retries = Retries(max_retries, backoff)
        self._identity = _digest([url, model, _settings(self.api)]).hex()
        self.fingerprint = f"{self._identity} to_logits={to_logits}"
        folder = Path(journal_dir) if journal_dir is not None else Path(HF_HOME) / "rerank_trainer" / "endpoint_answers"
        self.journal_path = folder / f"{str(urlsplit(url).hostname).replace(':', '-')}-{self._identity[:16]}.sqlite"

    def __repr__(self) -> str:
        return f"EndpointTeacher({shown(self.url)!r}, api={type(self.api).__name__}, model={self.model!r})"

    def score(self, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, list[list[float]]]:
        """As :meth:`Teacher.score`: the scores of the service; pairs that the journal has are not asked for.

        Raises:
            BudgetError: If the next request would exceed the budget; what is answered is kept.
            EndpointError: If the service refuses a request or fails too often; what is answered is kept.
            ImportError: If the extra ``endpoint`` is not installed.
            ValueError: If an answer is not as it must be, the key is missing, or a row cannot be asked about.
        """
        with Journal(self.journal_path) as journal:
            pairs, scores, requests = self._plan(groups, journal)
            if requests:
                scores |= self._ask(requests, journal, num_kept=len(scores))
        return {"scores": [[self._scaled(scores[pair]) for pair in row] for row in pairs]}

    def estimate(self, groups: Sequence[Mapping[str, Any]]) -> Estimate:
        """What is left to ask the service for, and its cost; nothing is sent."""
        with Journal(self.journal_path) as journal:
            _, _, requests = self._plan(groups, journal)
        num_pairs = sum(len(request.pairs) for request in requests)
        cost = self.budget.cost(len(requests), num_pairs) if self.budget.has_price else None
        return Estimate(num_pairs, len(requests), cost)

    def _plan(
        self, groups: Sequence[Mapping[str, Any]], journal: Journal
    ) -> tuple[list[list[bytes]], dict[bytes, float], list[Request]]:
        """The digests of each group's pairs, the scores that are kept of them, and the requests for the others."""
        pairs = [list(self._pairs(group)) for group in groups]
        kept = journal.read({pair for row in pairs for pair in row})
        return pairs, kept, self._requests(groups, pairs, kept)

    def _ask(self, requests: list[Request], journal: Journal, *, num_kept: int) -> dict[bytes, float]:
        num_pairs = sum(len(request.pairs) for request in requests)
        wanted = self.budget.report(len(requests), num_pairs)
        logger.info("asking %s: %s; %d pairs are in %s", shown(self.url), wanted, num_kept, self.journal_path)
        hidden = num_pairs <= MANY_PAIRS if self.show_progress_bar is None else not self.show_progress_bar
        # where it is shown, tqdm may still be told otherwise by its own TQDM_DISABLE
        options: dict[str, Any] = {"disable": True} if hidden else {}
        bar = tqdm(total=num_pairs, unit="pair", desc=str(urlsplit(self.url).hostname), leave=False, **options)
        trouble: EndpointError | ValueError
        try:
            with bar, Sender(self.url, **self._sending) as sender:
                asking = Asking(
                    self.api,
                    sender=sender,
                    journal=journal,
                    budget=self.budget,
                    retries=self._retries,
                    max_concurrency=self._sending["max_concurrency"],
                    on_scores=bar.update,
                )
                return asking.ask(requests)
        except (EndpointError, ValueError) as error:
            trouble = error
        # outside of the except: whatever led to it is no part of what the caller sees
        kind = type(trouble) if isinstance(trouble, EndpointError) else ValueError
        raise kind(
            f"{shown(self.url)}: {trouble}. What was answered is kept in {self.journal_path}; start again to go on."
        )

    def _pairs(self, group: Mapping[str, Any]) -> Iterator[bytes]:
        """The digest of each pair: of all that its score depends on."""
        for place, passage in enumerate(group["passages"]):
            others = [place, *group["passages"]] if self.api.together else []
            yield _digest([self._identity, group["query"], group.get("instruction"), passage, others])[:16]

    def _requests(
        self, groups: Sequence[Mapping[str, Any]], pairs: Sequence[Sequence[bytes]], kept: Collection[bytes]
    ) -> list[Request]:
        """What to ask for the pairs that are not kept, equal ones once."""
        planned = set(kept)
        wanted: dict[Any, dict[bytes, str]] = {}
        for number, (group, row) in enumerate(zip(groups, pairs, strict=True)):
            passages = group["passages"]
            if self.api.together and len(passages) > self.api.max_passages:
                raise ValueError(
                    f"a group has {len(passages)} passages, and a request takes {self.api.max_passages}: the scores of "
                    "two requests do not compare where passages are scored together. Raise max_passages, or cut the "
                    "groups"
                )
            new = {pair: passage for pair, passage in zip(row, passages, strict=True) if pair not in planned}
            if new and self.api.together:
                new = dict(zip(row, passages, strict=True))
            planned.update(new)
            asked_with = group["query"], group.get("instruction"), number if self.api.together else None
            wanted.setdefault(asked_with, {}).update(new)
        requests = []
        for (query, instruction, _), found in wanted.items():
            for start in range(0, len(found), self.api.max_passages):
                part = dict(list(found.items())[start : start + self.api.max_passages])
                body = self.api.body(query, list(part.values()), instruction)
                body = body if self.model is None else {**body, "model": self.model}
                requests.append(Request(body, list(part), about=_in_words(query, list(part.values()))))
        return requests

    def _scaled(self, score: float) -> float:
        if not self.to_logits:
            return score
        probability = min(max(score, SMALLEST_PROBABILITY), 1 - SMALLEST_PROBABILITY)
        return math.log(probability / (1 - probability))


def _in_words(query: str, passages: Sequence[str]) -> str:
    """What a request is about, so that its row can be found."""
    first = f"the query {shortened(query, 100)!r} and the passage {shortened(passages[0], 100)!r}"
    return first if len(passages) == 1 else f"{first} with {len(passages) - 1} more"


def _settings(api: Api) -> Any:
    """What an api says that answers or their reading depend on."""
    if not is_dataclass(api):
        return repr(api)
    return [type(api).__name__, {name: value for name, value in asdict(api).items() if name not in _NOT_SENT}]


def _digest(parts: list[Any]) -> bytes:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
