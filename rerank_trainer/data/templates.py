"""Templates: how a query and a passage become the token ids of one model input."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_python import PythonBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

logger = logging.getLogger(__name__)

# Two pairs that share no word: the first shows where a tokenizer puts its special tokens, the second checks it.
_PROBES = (("what heats water", "a kettle on fire"), ("who wrote", "seven long books about old ships"))
# Beside the ids, a fast tokenizer makes a hundred bytes or so a token, and keeps them until the call ends.
_TEXTS_AT_ONCE = 1024


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


class Template(Protocol):
    """Turns query and passage into the token ids of one model input.

    Attributes:
        tokenizer: Whose ids they are.
        max_length: Tokens a row may have.
        query_max_length: Tokens that a query keeps in a pair that does not fit; None has a rule of its own.
        takes_instructions: Whether an instruction has a place.
        frame: What stands around the two texts: with the tokenizer and the lengths, all that ids depend on.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    query_max_length: int | None
    takes_instructions: bool
    frame: Any

    def encode(
        self, groups: Sequence[tuple[str, Sequence[str]]], instructions: Sequence[str | None] | None = None
    ) -> list[list[Row]]:
        """The rows of each group, given as (query, passages), with an instruction a group where they have a place."""
        ...


class PairTemplate:
    """The tokenizer's own pair encoding, cut as the tokenizer cuts: ids are those of ``tokenizer(query, passage)``.

    A pair that does not fit into ``max_length`` is cut as ``truncation=True`` does it (``longest_first``: only the
    passage, unless the query takes more than half of the room). With a ``query_max_length`` the query of such a pair is
    cut to that many tokens and the passage to what is left, and other loaders score such pairs otherwise.

    A tokenizer that can be taken apart is asked for each text once and the rows are joined here; any other is asked
    for whole pairs, which costs time and nothing else.

    Args:
        tokenizer: A tokenizer of Transformers.
        max_length: Tokens a row may have, special tokens included.
        query_max_length: Tokens that a query keeps in a pair that does not fit; None cuts as the tokenizer does.

    Raises:
        ValueError: If ``max_length`` leaves no room for a passage, if the tokenizer's pair encoding leaves the passage
            out, or if a ``query_max_length`` is given with a tokenizer that cannot be taken apart.
    """

    takes_instructions = False

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, query_max_length: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.query_max_length = query_max_length
        self.frame = learn_frame(tokenizer)
        self.has_token_types = "token_type_ids" in tokenizer.model_input_names
        if self.frame is None:
            _check_joint_encoding(tokenizer, query_max_length)
        num_special = tokenizer.num_special_tokens_to_add(pair=True) if self.frame is None else len(self.frame)
        budget = 1 if query_max_length is None else query_max_length
        if not 1 <= budget < max_length - num_special:
            raise ValueError(
                f"max_length={max_length} with query_max_length={query_max_length} leaves no room for a passage: "
                f"{num_special} special tokens take part of it. Raise max_length or lower query_max_length."
            )

    def encode(
        self, groups: Sequence[tuple[str, Sequence[str]]], instructions: Sequence[str | None] | None = None
    ) -> list[list[Row]]:
        """The rows of each group, given as (query, passages); a text is tokenised once, if it can be."""
        assert instructions is None  # they have no place
        if self.frame is None:
            rows = iter(self._whole_rows([(query, passage) for query, passages in groups for passage in passages]))
            return [[next(rows) for _ in passages] for _, passages in groups]
        return [[self.row(query, passage) for passage in passages] for query, passages in self.token_ids(groups)]

    def token_ids(self, groups: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[list[int], list[list[int]]]]:
        """The groups as token ids, uncut and without special tokens. A text that stands twice has one list.

        Raises:
            ValueError: If the tokenizer's pairs cannot be taken apart.
        """
        if self.frame is None:
            raise ValueError(
                f"{type(self.tokenizer).__name__} encodes query and passage together, so a passage has no tokens of "
                "its own that windows could be cut from. Leave windows out: pairs that do not fit are cut."
            )
        ids = self._ids(text for query, passages in groups for text in (query, *passages))
        return [(ids[query], [ids[passage] for passage in passages]) for query, passages in groups]

    def row(self, query: list[int], passage: list[int]) -> Row:
        """The row of a pair of token ids, cut where it does not fit, with the counts of what it lost."""
        assert self.frame is not None
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
        assert self.frame is not None
        room = self.max_length - len(self.frame)
        if len(query) + len(passage) > room:
            if self.query_max_length is None:
                odd_to_query = not self.tokenizer.is_fast
                num_query, num_passage = longest_first(len(query), len(passage), room, odd_to_query=odd_to_query)
            else:
                num_query = min(len(query), self.query_max_length)
                num_passage = room - num_query
            query, passage = self._cut(query, num_query), self._cut(passage, num_passage)
        return self.frame.join(query, passage, self.has_token_types)

    def _cut(self, ids: list[int], length: int) -> list[int]:
        """The first (or, for a tokenizer that cuts at the left, the last) ``length`` ids."""
        return ids[max(0, len(ids) - length) :] if self.tokenizer.truncation_side == "left" else ids[:length]

    def _ids(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The token ids of each text."""
        # verbose=False: the tokenizer need not warn of long texts, they are cut here.
        options: Any = {"add_special_tokens": False, "verbose": False}
        options |= {"return_attention_mask": False, "return_token_type_ids": False}
        distinct = list(dict.fromkeys(texts))
        ids: dict[str, list[int]] = {}
        for start in range(0, len(distinct), _TEXTS_AT_ONCE):
            some = distinct[start : start + _TEXTS_AT_ONCE]
            ids |= zip(some, self.tokenizer(some, **options)["input_ids"], strict=True)
        return ids

    def _whole_rows(self, pairs: list[tuple[str, str]]) -> list[Row]:
        """Rows whose prefix is unknown (0 tokens): what comes before the passage may depend on it."""
        if not pairs:
            return []
        queries, passages = (list(texts) for texts in zip(*pairs, strict=True))
        whole: Any = self.tokenizer(queries, passages, verbose=False)["input_ids"]
        encoded: Any = self.tokenizer(queries, passages, truncation=True, max_length=self.max_length)
        types = encoded["token_type_ids"] if self.has_token_types else [None] * len(pairs)
        # which of the two texts lost them is not known here: they count as the passage's
        return [
            Row(ids, kinds, 0, num_pair_tokens=len(uncut), num_passage_lost=len(uncut) - len(ids))
            for ids, kinds, uncut in zip(encoded["input_ids"], types, whole, strict=True)
        ]


def longest_first(num_query: int, num_passage: int, room: int, *, odd_to_query: bool = False) -> tuple[int, int]:
    """How many tokens query and passage keep in a pair that does not fit: the tokenizers' own ``longest_first`` rule.

    The longer text is cut until both are equal, then both: each keeps half of the room. An odd token stays with the
    longer text (the passage, if they are equal); tokenizers written in Python leave it to the query. The rule of
    `tokenizers <https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/utils/truncation.rs>`_.

    Args:
        num_query: Tokens of the query.
        num_passage: Tokens of the passage; more than ``room`` together with the query.
        room: Tokens that both may have together.
        odd_to_query: Whether the tokenizer is one written in Python.

    >>> longest_first(10, 90, 60), longest_first(40, 90, 61), longest_first(90, 20, 60)
    ((10, 50), (30, 31), (40, 20))
    """
    shorter = min(num_query, num_passage)
    if 2 * shorter <= room:
        kept = room - shorter
        return (num_query, kept) if num_query <= num_passage else (kept, num_passage)
    query_is_longer = odd_to_query or num_query > num_passage
    return room // 2 + (room % 2 if query_is_longer else 0), room // 2 + (0 if query_is_longer else room % 2)


def learn_frame(tokenizer: PreTrainedTokenizerBase) -> Frame | None:
    """The special tokens that ``tokenizer(query, passage)`` puts before, between and after the two texts.

    None for a tokenizer whose pairs cannot be taken apart: one that has a ``__call__`` or ``_encode_plus`` of its own,
    so that a text's tokens may depend on its neighbour, or whose pairs do not hold the texts' tokens in their order.
    """
    if not _encodes_texts_apart(tokenizer):
        return None
    frames = [_frame_of(tokenizer, query, passage) for query, passage in _PROBES]
    return frames[0] if all(frame == frames[0] for frame in frames) else None


def _encodes_texts_apart(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer is one of Transformers' own kinds, which encode each text by itself, then join the two."""
    kind = type(tokenizer)
    encode_plus = getattr(kind, "_encode_plus", None)
    return kind.__call__ is PreTrainedTokenizerBase.__call__ and encode_plus in (
        TokenizersBackend._encode_plus,
        PythonBackend._encode_plus,
    )


def _check_joint_encoding(tokenizer: PreTrainedTokenizerBase, query_max_length: int | None) -> None:
    """Refuse what cannot be had of a tokenizer that is asked for whole pairs."""
    (query, passage), (_, other) = _PROBES
    encoded = [tokenizer([query], [text])["input_ids"][0] for text in (passage, other)]
    if encoded[0] == encoded[1]:
        raise ValueError(
            f"{type(tokenizer).__name__} encodes {(query, passage)} and {(query, other)} alike, as {encoded[0]}: it "
            "leaves the passage out. Use a tokenizer that encodes pairs."
        )
    if query_max_length is not None:
        raise ValueError(
            f"query_max_length={query_max_length} needs a tokenizer whose pairs can be taken apart into query and "
            f"passage; {type(tokenizer).__name__} encodes them together. Leave it out: the tokenizer cuts the pair."
        )
    logger.warning("%s encodes query and passage together: pairs are tokenised whole", type(tokenizer).__name__)


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
