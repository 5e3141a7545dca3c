"""Pairs: chunks that hold all of them once and in order within both limits, and repetitions by exact text alone."""

from __future__ import annotations

import pytest

from rerank_trainer.models.pairs import InstructedPairs, chunks, distinct

PAIRS = [("q", "x" * size) for size in (1, 4, 2, 9, 1, 1, 1)]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({"num_pairs": 3}, [3, 3, 1]),
        ({"num_characters": 7}, [2, 2, 3]),  # 2 + 5, 3 + 10, and 2 + 2 + 2 do not reach it
        ({"num_pairs": 2, "num_characters": 7}, [2, 2, 2, 1]),
        ({"num_characters": 1}, [1] * 7),
        ({}, [7]),
    ],
)
def test_a_chunk_ends_at_the_first_limit_that_it_reaches(limits, sizes):
    parts = list(chunks(PAIRS, **limits))

    assert [len(part) for part in parts] == sizes
    assert [pair for part in parts for pair in part] == PAIRS


@pytest.mark.parametrize("num_pairs", [1, 1000, 1024, 3000])
def test_chunks_do_not_depend_on_the_slices_that_are_asked_for(num_pairs):
    pairs = [("q", str(number)) for number in range(2500)]

    parts = list(chunks(pairs, num_pairs=num_pairs))

    assert [len(part) for part in parts[:-1]] == [num_pairs] * (len(parts) - 1)
    assert [pair for part in parts for pair in part] == pairs


def test_pairs_are_one_only_if_both_texts_are_the_same_to_the_letter():
    pairs = [["a", "b"], ("a", "b "), ("A", "b"), ("b", "a"), ("a", "b"), ("ab", ""), ("", "ab"), ("b", "a")]

    once, places = distinct(pairs)

    assert once == [("a", "b"), ("a", "b "), ("A", "b"), ("b", "a"), ("ab", ""), ("", "ab")]
    assert places == [0, 1, 2, 3, 0, 4, 5, 3]


def test_each_pair_has_its_own_instruction_wherever_a_slice_begins():
    asked = InstructedPairs([("0", "1"), ("2", "3"), ("4", "5")], [None, "a", "b"])

    assert asked[1:] == [("2", "3", "a"), ("4", "5", "b")] and asked[0] == ("0", "1", None) and asked[-1] == asked[2]
    assert list(asked) == [("0", "1", None), ("2", "3", "a"), ("4", "5", "b")]
