"""The shapes of rerank services: what a request says, and how the scores are read from its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

LARGEST_SCORE = 3e38  # scores are kept in float32
_PLACES = re.compile(r"\{(instruction|query|passage)\}")


class Api(Protocol):
    """How to ask a service about passages.

    Attributes:
        scale: What its scores are: "logit" or "probability".
        max_passages: The most passages of one request, all of the same query.
        together: Whether a passage's score depends on the others of its request.
    """

    @property
    def scale(self) -> str: ...
    @property
    def max_passages(self) -> int: ...
    @property
    def together(self) -> bool: ...

    def body(self, query: str, passages: Sequence[str], instruction: str | None) -> dict[str, Any]:
        """The request as JSON, without the model's name."""
        ...

    def read(self, answer: Any, num_passages: int) -> list[float]:
        """One score a passage, in their order, from the JSON of an answer."""
        ...


@dataclass(frozen=True)
class RerankApi:
    """A service that scores the passages of one query in one request, as most rerank services do.

    :meth:`named` makes those that are known; the fields describe any other.

    Args:
        scale: What the scores are: "probability" (from 0 to 1) or "logit" (no bounds).
        max_passages: The most passages of one request. Where requests are billed up to a number of passages, that one.
        together: Whether a passage's score depends on the others of its request, as with a listwise model. Then the
            passages of a group are asked for together or not at all, and no score is taken over from another group.
        query_field: Where the request has the query.
        passages_field: Where it has the list of passages.
        results_field: Where the answer has its list of results, each with an ``index``; None if it is that list.
        score_field: Where a result has its score.
        query_template: The query as it is sent: ``{query}``, with an ``{instruction}`` where the model reads one.
        passage_template: The passage as it is sent.
        instruction: Stands in the place ``{instruction}`` for rows without an instruction of their own.
        options: What every request says besides, such as ``{"max_tokens_per_doc": 1000}``.

    Raises:
        ValueError: If a field cannot be right, or two of them write into the same place.

    >>> api = RerankApi.named("tei", max_passages=8)
    >>> api.body("what heats water", ["a kettle", "a map"], None)
    {'raw_scores': True, 'truncate': True, 'query': 'what heats water', 'texts': ['a kettle', 'a map']}
    >>> api.read([{"index": 1, "score": -3.5}, {"index": 0, "score": 2.0}], 2)
    [2.0, -3.5]
    """

    scale: str = "probability"
    max_passages: int = 100
    together: bool = False
    query_field: str = "query"
    passages_field: str = "documents"
    results_field: str | None = "results"
    score_field: str = "relevance_score"
    query_template: str = "{query}"
    passage_template: str = "{passage}"
    instruction: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale not in ("logit", "probability"):
            raise ValueError(f'scale={self.scale!r}; expected "logit" or "probability"')
        if self.max_passages < 1:
            raise ValueError(f"max_passages must be 1 or more, found {self.max_passages}")
        for name, place, allowed in (
            ("query_template", "query", {"query", "instruction"}),
            ("passage_template", "passage", {"passage"}),
        ):
            places = _PLACES.findall(getattr(self, name))
            if places.count(place) != 1 or not allowed.issuperset(places):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected {{{place}}} once, and no other place than "
                    f"{' and '.join(f'{{{one}}}' for one in sorted(allowed))}"
                )
        if self.instruction is not None and "{instruction}" not in self.query_template:
            raise ValueError(
                f"instruction={self.instruction!r}, but query_template={self.query_template!r} has no place "
                "{instruction}"
            )
        if taken := {self.query_field, self.passages_field, "model"} & set(self.options):
            raise ValueError(f"options has {sorted(taken)}, which the request says already; leave it out")

    @classmethod
    def named(cls, name: str, **changes: Any) -> RerankApi:
        """A known service; ``docs/endpoints.md`` lists them with their sources.

        Args:
            name: "cohere", "jina", "vllm" (its ``/rerank``), "vllm-score" (its ``/score``), or "tei".
            **changes: Fields of :class:`RerankApi` that are otherwise; ``options`` are added to those of the service.

        Raises:
            ValueError: If the name is not known.
        """
        if name not in APIS:
            raise ValueError(f"api={name!r} is not known; expected one of {sorted(APIS)}, or a RerankApi")
        api = APIS[name]
        return replace(api, **{**changes, "options": {**api.options, **changes.get("options", {})}})

    def body(self, query: str, passages: Sequence[str], instruction: str | None) -> dict[str, Any]:
        """The request as JSON, without the model's name.

        Raises:
            ValueError: If there is an instruction and no place for it, or a place and no instruction.
        """
        takes_instructions = "{instruction}" in self.query_template
        check_instruction(instruction, takes_instructions, remedy="write {instruction} into query_template")
        instruction = instruction or self.instruction
        if takes_instructions and instruction is None:
            raise ValueError(
                f"query_template={self.query_template!r} has a place {{instruction}} and the row with the query "
                f"{query!r} has none: give RerankApi(instruction=...), which fills it there"
            )
        texts = {"query": query, "instruction": instruction or ""}
        return {
            **self.options,
            self.query_field: _filled(self.query_template, texts),
            self.passages_field: [_filled(self.passage_template, {"passage": passage}) for passage in passages],
        }

    def read(self, answer: Any, num_passages: int) -> list[float]:
        """One score a passage, in their order: results are matched by their ``index``, in whatever order they stand.

        Raises:
            ValueError: If a passage has no score or two, an index belongs to none, or a score is no finite number or
                not on the declared scale.
        """
        results = answer if self.results_field is None else _member(answer, self.results_field)
        if not isinstance(results, list):
            where = "the answer" if self.results_field is None else f"its {self.results_field!r}"
            raise ValueError(f"expected {where} to be a list of results, found {shortened(answer)}")
        scores: dict[int, float] = {}
        for result in results:
            index = _member(result, "index")
            if type(index) is not int or not 0 <= index < num_passages:
                raise ValueError(
                    f"expected results with an index from 0 to {num_passages - 1}, found {shortened(result)}"
                )
            if index in scores:
                raise ValueError(f"two results have the index {index}: which one counts? Found {shortened(results)}")
            scores[index] = self._checked(_member(result, self.score_field), result)
        if missing := [index for index in range(num_passages) if index not in scores]:
            raise ValueError(
                f"{len(missing)} of {num_passages} passages have no score, the first is number {missing[0]}. The "
                "service must return all: no top_n among the options"
            )
        return [scores[index] for index in range(num_passages)]

    def _checked(self, score: Any, result: Any) -> float:
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= LARGEST_SCORE:
            raise ValueError(f"expected {self.score_field!r} to be a finite number, found {shortened(result)}")
        if self.scale == "probability" and not 0 <= score <= 1:
            raise ValueError(
                f"the score {score} is no probability, from 0 to 1, as the scores are declared to be. Declare "
                'RerankApi.named(..., scale="logit") if this service gives scores without bounds'
            )
        return float(score)


# Requests and answers: docs.cohere.com/reference/rerank, api.jina.ai/redoc, docs.vllm.ai (pooling models),
# huggingface.github.io/text-embeddings-inference
APIS = {
    "cohere": RerankApi(),
    "jina": RerankApi(options={"return_documents": False}),
    "vllm": RerankApi(),
    "vllm-score": RerankApi(query_field="text_1", passages_field="text_2", results_field="data", score_field="score"),
    # a server takes 32 texts unless it is told otherwise, and refuses pairs that do not fit unless it may cut them
    "tei": RerankApi(
        scale="logit",
        max_passages=32,
        passages_field="texts",
        results_field=None,
        score_field="score",
        options={"raw_scores": True, "truncate": True},
    ),
}


def check_instruction(instruction: str | None, takes_instructions: bool, *, remedy: str) -> None:
    """Refuse to drop an instruction in silence.

    Raises:
        ValueError: If there is an instruction and no place for it.
    """
    if instruction and not takes_instructions:
        raise ValueError(
            f"a row has the instruction {instruction!r}, and the service has no place for it: {remedy}, or drop the "
            'column: dataset.remove_columns("instruction")'
        )


def shortened(value: Any, length: int = 300) -> str:
    """A value as text on one line, cut in the end."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[:length]}..."


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _filled(template: str, texts: Mapping[str, str]) -> str:
    return _PLACES.sub(lambda place: texts[place[1]], template)
