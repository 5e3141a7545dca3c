"""Templates: how a query and a passage become the token ids of one model input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

# Two pairs that share no word: the first shows where a tokenizer puts its special tokens, the second checks it.
_PROBES = (("what heats water", "a kettle on fire"), ("who wrote", "seven long books about old ships"))


@dataclass(frozen=True)
class Row:
    """The token ids of one pair.

    Attributes:
        input_ids: Token ids with the special tokens, without padding.
        token_type_ids: Segment ids, as long as ``input_ids``; None for tokenizers without segments.
        prefix_length: How many leading tokens come before the passage: what the rows of a group share.
        num_pair_tokens: How many tokens query and passage had before anything was cut.
        num_query_lost: How many tokens of the query were cut off.
        num_passage_lost: How many tokens of the passage were cut off.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    prefix_length: int
    num_pair_tokens: int = 0
    num_query_lost: int = 0
    num_passage_lost: int = 0


@dataclass(frozen=True)
class Frame:
    """The special tokens around the two segments of a tokenizer's pair encoding, with their segment ids."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    before_types: tuple[int, ...]
    query_type: int
    between_types: tuple[int, ...]
    passage_type: int
    after_types: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, query: list[int], passage: list[int], with_types: bool) -> Row:
        """The row of a query and a passage, both given as token ids without special tokens."""
        head = [*self.before, *query, *self.between]
        types = None
        if with_types:
            types = [*self.before_types, *[self.query_type] * len(query), *self.between_types]
            types += [*[self.passage_type] * len(passage), *self.after_types]
        return Row([*head, *passage, *self.after], types, len(head))


class PairTemplate:
    """The tokenizer's own pair encoding, with the passage truncated and never the query's end or a special token.

    A pair that fits into ``max_length`` gets exactly the ids of ``tokenizer(query, passage)``. In a pair that does not
    fit, the query is cut to ``query_max_length`` tokens first and the passage to what is left.

    Args:
        tokenizer: A tokenizer of Transformers.
        max_length: Tokens a row may have, special tokens included.
        query_max_length: Tokens that a query keeps in a pair that does not fit; by default three quarters of the room.

    Raises:
        ValueError: If ``max_length`` leaves no room for a passage, or if the tokenizer's pair encoding is not
            "query, passage, each with special tokens around it".
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, query_max_length: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.frame = learn_frame(tokenizer)
        self.has_token_types = "token_type_ids" in tokenizer.model_input_names
        room = max_length - len(self.frame)
        if query_max_length is None:
            query_max_length = room * 3 // 4
        if not 1 <= query_max_length < room:
            raise ValueError(
                f"max_length={max_length} with query_max_length={query_max_length} leaves no room for a passage: "
                f"{len(self.frame)} special tokens take part of it. Raise max_length or lower query_max_length."
            )
        self.query_max_length = query_max_length

    def encode(self, groups: Sequence[tuple[str, Sequence[str]]]) -> list[list[Row]]:
        """The rows of each group, given as (query, passages); every query is tokenised once."""
        return [[self.row(query, passage) for passage in passages] for query, passages in self.token_ids(groups)]

    def token_ids(self, groups: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[list[int], list[list[int]]]]:
        """The groups as token ids, uncut and without special tokens."""
        queries = self._ids([query for query, _ in groups])
        passages = iter(self._ids([passage for _, passages in groups for passage in passages]))
        return [
            (query, [next(passages) for _ in group_passages])
            for query, (_, group_passages) in zip(queries, groups, strict=True)
        ]

    def row(self, query: list[int], passage: list[int]) -> Row:
        """The row of a pair of token ids, cut where it does not fit, with the counts of what it lost."""
        row = self._row(query, passage)
        num_query_kept = row.prefix_length - len(self.frame.before) - len(self.frame.between)
        num_passage_kept = len(row.input_ids) - len(self.frame) - num_query_kept
        return replace(
            row,
            num_pair_tokens=len(query) + len(passage),
            num_query_lost=len(query) - num_query_kept,
            num_passage_lost=len(passage) - num_passage_kept,
        )

    def _row(self, query: list[int], passage: list[int]) -> Row:
        room = self.max_length - len(self.frame)
        if len(query) + len(passage) > room:
            query = query[: self.query_max_length]
            passage = passage[: room - len(query)]
        return self.frame.join(query, passage, self.has_token_types)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # verbose=False: the tokenizer need not warn of long texts, they are cut here.
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def learn_frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The special tokens that ``tokenizer(query, passage)`` puts before, between and after the two texts.

    Raises:
        ValueError: If the pair encoding changes the texts' own tokens, so that it cannot be taken apart.
    """
    frames = [_frame_of(tokenizer, query, passage) for query, passage in _PROBES]
    if frames[0] is None or frames[0] != frames[1]:
        encoded = tokenizer(*_PROBES[0])["input_ids"]
        raise ValueError(
            f"expected a tokenizer that encodes a pair as both texts with special tokens around them, but "
            f"{type(tokenizer).__name__} encodes {_PROBES[0]} as {encoded}. Use a fast tokenizer of this model."
        )
    return frames[0]


def _frame_of(tokenizer: PreTrainedTokenizerBase, query: str, passage: str) -> Frame | None:
    query_ids, passage_ids = tokenizer([query, passage], add_special_tokens=False)["input_ids"]
    encoded: Any = tokenizer(query, passage, return_token_type_ids=True)
    ids = encoded["input_ids"]
    types = encoded.get("token_type_ids") or [0] * len(ids)
    query_start = _find(ids, query_ids, 0)
    passage_start = _find(ids, passage_ids, query_start + len(query_ids))
    if query_start < 0 or passage_start < 0:
        return None
    query_end, passage_end = query_start + len(query_ids), passage_start + len(passage_ids)
    return Frame(
        before=tuple(ids[:query_start]),
        between=tuple(ids[query_end:passage_start]),
        after=tuple(ids[passage_end:]),
        before_types=tuple(types[:query_start]),
        query_type=types[query_start],
        between_types=tuple(types[query_end:passage_start]),
        passage_type=types[passage_start],
        after_types=tuple(types[passage_end:]),
    )


def _find(ids: list[int], part: list[int], start: int) -> int:
    """Where ``part`` begins in ``ids`` at or after ``start``; -1 when it is nowhere."""
    return next((i for i in range(start, len(ids) - len(part) + 1) if ids[i : i + len(part)] == part), -1)
