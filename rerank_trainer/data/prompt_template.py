"""The template of a prompt: query and passage to the token ids of the whole text, in which the passage alone is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rerank_trainer.data.prompts import Laid, Prompt
from rerank_trainer.data.templates import Row, longest_first

# Beside the ids, a fast tokenizer makes a hundred bytes or so a token, and keeps them until the call ends.
_TEXTS_AT_ONCE = 256
_TEXTS_KEPT = 256  # what stands behind the passage is one text, unless the query is part of it


@dataclass(frozen=True)
class _Encoded:
    """The token ids of a filled prompt, and which of them are the query's and the passage's: first, one behind last.

    A token that stands on the edge of a text counts as the text's.
    """

    laid: Laid
    input_ids: list[int]
    query: tuple[int, int]
    passage: tuple[int, int]
    query_ends: list[int]  # the place in the text behind each of the query's tokens

    @property
    def num_query(self) -> int:
        return self.query[1] - self.query[0]

    @property
    def num_passage(self) -> int:
        return self.passage[1] - self.passage[0]


class PromptTemplate:
    """A prompt, tokenised as one text: ids are those of ``tokenizer(prompt.fill(query, passage))``.

    Tokens may merge across the edges of its parts (a query's last mark with the line break behind it), so the parts are
    not tokenised apart. Of a pair that does not fit into ``max_length`` the end of the passage is cut off, and what
    stands behind it is kept whole. A query that takes more than half of the room keeps half of it, or what the passage
    leaves; with a ``query_max_length`` it keeps that many tokens instead.

    Args:
        tokenizer: A fast tokenizer of Transformers.
        prompt: The text around a pair.
        max_length: Tokens a row may have, the prompt's own included.
        query_max_length: Tokens that a query keeps in a pair that does not fit.

    Raises:
        ValueError: If the tokenizer cannot say which tokens are a text's, or there is no room for a passage.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        *,
        max_length: int,
        query_max_length: int | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is written in Python and does not say which tokens are the passage's, so "
                "a prompt cannot be cut. Load the fast tokenizer of this model."
            )
        self.tokenizer = tokenizer
        self.frame = prompt
        self.max_length = max_length
        self.query_max_length = query_max_length
        self.takes_instructions = prompt.takes_instructions
        self._after: dict[str, list[int]] = {}
        self._room(next(self._encode([prompt.lay("0", "0")])))

    def encode(
        self, groups: Sequence[tuple[str, Sequence[str]]], instructions: Sequence[str | None] | None = None
    ) -> list[list[Row]]:
        """The rows of each group, given as (query, passages); instructions are one a group, None or "" for none.

        Raises:
            ValueError: If an instruction leaves no room for a passage.
        """
        instructions = [None] * len(groups) if instructions is None else instructions
        laid = [
            self.frame.lay(query, passage, instruction)
            for (query, passages), instruction in zip(groups, instructions, strict=True)
            for passage in passages
        ]
        rows = (self._row(encoded) for encoded in self._encode(laid))
        return [[next(rows) for _ in passages] for _, passages in groups]

    def _encode(self, laid: Sequence[Laid]) -> Iterator[_Encoded]:
        options: Any = {"add_special_tokens": False, "verbose": False, "return_offsets_mapping": True}
        options |= {"return_attention_mask": False, "return_token_type_ids": False}
        for start in range(0, len(laid), _TEXTS_AT_ONCE):
            some = laid[start : start + _TEXTS_AT_ONCE]
            encoded: Any = self.tokenizer([each.text for each in some], **options)
            for each, ids, offsets in zip(some, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                begins, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
                spans = {}
                for name in ("query", "passage"):
                    first, behind = getattr(each, name)
                    begin = int(np.searchsorted(ends, first, side="right"))
                    spans[name] = (begin, max(begin, int(np.searchsorted(begins, behind, side="left"))))
                query_ends = ends[slice(*spans["query"])].tolist()
                yield _Encoded(each, ids, **spans, query_ends=query_ends)

    def _row(self, encoded: _Encoded) -> Row:
        """The row of a pair, cut where it does not fit, with the counts of what it lost."""
        num_tokens, num_query = encoded.num_query + encoded.num_passage, encoded.num_query
        if len(encoded.input_ids) <= self.max_length:
            return Row(encoded.input_ids, None, encoded.passage[0], num_pair_tokens=num_tokens)
        num_query_kept = self._num_query_kept(encoded)
        if num_query_kept < num_query:
            encoded = self._with_shorter_query(encoded, num_query_kept)
        counts = {"num_pair_tokens": num_tokens, "num_query_lost": num_query - num_query_kept}
        if len(encoded.input_ids) <= self.max_length:
            return Row(encoded.input_ids, None, encoded.passage[0], **counts)
        begin, _ = encoded.passage
        after = self._ids_after(encoded.laid.text[encoded.laid.passage[1] :])
        num_kept = min(encoded.num_passage, self.max_length - begin - len(after))
        ids = [*encoded.input_ids[: begin + num_kept], *after]
        return Row(ids, None, begin, num_passage_lost=encoded.num_passage - num_kept, **counts)

    def _num_query_kept(self, encoded: _Encoded) -> int:
        room = self._room(encoded)
        if self.query_max_length is not None:
            return min(encoded.num_query, self.query_max_length)
        return longest_first(encoded.num_query, encoded.num_passage, room)[0]

    def _with_shorter_query(self, encoded: _Encoded, num_kept: int) -> _Encoded:
        """The pair with the query's text cut behind one of its tokens, tokenised again."""
        laid = encoded.laid
        (first, behind), cut = laid.query, encoded.query_ends[num_kept - 1]
        lost = behind - cut
        text = laid.text[:cut] + laid.text[behind:]
        begin, end = laid.passage
        passage = (begin, end) if begin < first else (begin - lost, end - lost)
        return next(self._encode([Laid(text, (first, cut), passage)]))

    def _room(self, encoded: _Encoded) -> int:
        """The tokens that query and passage may have together, beside what else stands in this row.

        Raises:
            ValueError: If the query's budget leaves none of them to the passage.
        """
        num_query = 1 if self.query_max_length is None else self.query_max_length
        num_around = len(encoded.input_ids) - encoded.num_query - encoded.num_passage
        room = self.max_length - num_around
        if not 1 <= num_query < room:
            raise ValueError(
                f"max_length={self.max_length} with query_max_length={self.query_max_length} leaves no room for a "
                f"passage: the prompt with its instruction takes {num_around} tokens. Raise max_length, lower "
                "query_max_length, or shorten the instruction."
            )
        return room

    def _ids_after(self, text: str) -> list[int]:
        """The token ids of what stands behind a passage, as behind one that merges with nothing."""
        if text not in self._after:
            encoded = next(self._encode([Laid(f"0{text}", (0, 0), (0, 1))]))
            if len(self._after) == _TEXTS_KEPT:
                self._after.clear()
            self._after[text] = encoded.input_ids[encoded.passage[1] :]
        return self._after[text]
