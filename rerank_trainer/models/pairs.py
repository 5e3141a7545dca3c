"""Pairs of texts: checked, taken in chunks that fit into memory, and each one kept once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

# A chunk is tokenised and sorted by length as a whole. So many short pairs leave 2 % padding in the large micro-batches
# of a GPU (in the small ones of a CPU 0.1 %); so many characters bound the memory that long pairs take.
PAIRS_PER_CHUNK = 16384
CHARACTERS_PER_CHUNK = 4_000_000
_PAIRS_PER_SLICE = 1024

Pair = Sequence[Any]


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Refuse what is not a list of (query, passage) texts.

    Raises:
        ValueError: Naming the pair that is not two texts.
    """
    if isinstance(pairs, str) or (len(pairs) == 2 and all(isinstance(text, str) for text in pairs)):
        raise ValueError(f"expected a list of (query, passage) pairs, got {pairs!r}. One pair is [(query, passage)].")
    for number, pair in enumerate(_in_slices(pairs)):
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"pair {number} is {pair!r}; expected two texts, (query, passage)")


def chunks(
    pairs: Sequence[Pair], *, num_pairs: int = PAIRS_PER_CHUNK, num_characters: int = CHARACTERS_PER_CHUNK
) -> Iterator[list[Pair]]:
    """Consecutive parts of the pairs, each as large as both limits allow, and of one pair at least.

    Args:
        pairs: Queries with passages.
        num_pairs: Most pairs of a part.
        num_characters: Where a part's texts reach so many characters together, the part ends.

    >>> list(chunks([("a", "bc"), ("d", "e"), ("f", "g")], num_characters=4))
    [[('a', 'bc'), ('d', 'e')], [('f', 'g')]]
    """
    chunk: list[Pair] = []
    size = 0
    for pair in _in_slices(pairs):
        chunk.append(pair)
        size += len(pair[0]) + len(pair[1])
        if len(chunk) >= num_pairs or size >= num_characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def distinct(pairs: Sequence[Pair]) -> tuple[list[tuple[Any, ...]], list[int]]:
    """The pairs without repetitions, as they first come, and the place of each given pair among them.

    >>> distinct([("a", "b"), ("c", "d"), ("a", "b")])
    ([('a', 'b'), ('c', 'd')], [0, 1, 0])
    """
    numbers: dict[tuple[Any, ...], int] = {}
    places = [numbers.setdefault(tuple(pair), len(numbers)) for pair in pairs]
    return list(numbers), places


class InstructedPairs(Sequence[tuple[Any, ...]]):
    """Pairs with their instructions: triples (query, passage, instruction), made when a slice is asked for.

    Args:
        pairs: Queries with passages.
        instruction: One for all pairs, one each, or None.

    Raises:
        ValueError: If there are not as many instructions as pairs.

    >>> InstructedPairs([("sun", "a star"), ("sun", "a paper")], "Find it.")[1:]
    [('sun', 'a paper', 'Find it.')]
    """

    def __init__(self, pairs: Sequence[Pair], instruction: str | Sequence[str | None] | None) -> None:
        if not (instruction is None or isinstance(instruction, str) or len(instruction) == len(pairs)):
            raise ValueError(f"{len(instruction)} instructions for {len(pairs)} pairs: give one for all, or one each")
        self.pairs = pairs
        self.instruction = instruction

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice):
            place = range(len(self))[key]
            return self[place : place + 1][0]
        pairs = self.pairs[key]
        each = self.instruction
        of_pairs = [each] * len(pairs) if each is None or isinstance(each, str) else each[key]
        return [(*pair, instruction) for pair, instruction in zip(pairs, of_pairs, strict=True)]


def _in_slices(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs one by one, asked for in slices: a sequence that makes them on demand never has all in memory."""
    for start in range(0, len(pairs), _PAIRS_PER_SLICE):
        yield from pairs[start : start + _PAIRS_PER_SLICE]
