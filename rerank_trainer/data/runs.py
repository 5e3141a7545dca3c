"""Runs and qrels: from TREC files or memory, every value checked, and back to files.

A run is a first-stage result: for each query its passages with their scores, best first. Qrels are judged relevance:
for each query its judged passages with an integer grade, where 1 or more is relevant.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rerank_trainer.data.texts import numbered_lines

Run = dict[str, list[tuple[str, float]]]
Qrels = dict[str, dict[str, int]]

# A path, or what stands in memory; each query's passages as pairs or, as ir_measures has them, a mapping to scores.
RunSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Sequence[tuple[str, float]] | Mapping[str, float]]
QrelsSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Mapping[str, int]]

BEIR_COLUMNS = ["query-id", "corpus-id", "score"]


def read_run(path: str | os.PathLike[str]) -> Run:
    """The run of a TREC file: for each query its (passage id, score) pairs, best first.

    A line has six columns: query id, ``Q0``, passage id, rank, score, tag. As in trec_eval the score decides; equal
    scores keep the order of their ranks, and equal ranks that of their lines.

    Args:
        path: The file. Empty lines are skipped.

    Raises:
        ValueError: A line has not six columns, its rank is no integer or its score no finite number, or it names a
            passage of its query for the second time. The message names file and line.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".trec") as file:
    ...     print("q1 Q0 p7 2 3.5 bm25", "q1 Q0 p2 1 4.25 bm25", sep="\\n", file=file, flush=True)
    ...     read_run(file.name)
    {'q1': [('p2', 4.25), ('p7', 3.5)]}
    """
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in numbered_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise ValueError(
                f"{path}:{number}: expected the six columns query-id Q0 passage-id rank score tag, "
                f"found {len(columns)} in {line!r}"
            )
        query_id, _, passage_id, rank, score, _ = columns
        of_query = found.setdefault(query_id, {})
        if passage_id in of_query:
            raise ValueError(
                f"{path}:{number}: query {query_id!r} has passage {passage_id!r} for the second time. "
                "Keep one of the two lines."
            )
        of_query[passage_id] = (_score(score, f"{path}:{number}"), _integer(rank, "rank", path, number))
    return {query_id: _best_first(of_query) for query_id, of_query in found.items()}


def as_run(source: RunSource) -> Run:
    """The run of a file, or the one in memory with each query's passages best first, equal scores in their order.

    Raises:
        ValueError: As :func:`read_run`, for what is in memory with query and passage.

    >>> as_run({"q1": {"p7": 3.5, "p2": 4.25}})
    {'q1': [('p2', 4.25), ('p7', 3.5)]}
    """
    if not isinstance(source, Mapping):
        return read_run(source)
    run: Run = {}
    for query_id, passages in source.items():
        pairs = list(passages.items()) if isinstance(passages, Mapping) else list(passages)
        seen: set[str] = set()
        for pair in pairs:
            if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
                raise ValueError(f"run=, query {query_id!r}: expected (passage id, score) pairs, found {pair!r}")
            if pair[0] in seen:
                raise ValueError(f"run=, query {query_id!r}: has passage {pair[0]!r} for the second time. Keep one.")
            seen.add(pair[0])
        scored = [
            (passage_id, _score(score, f"run=, query {query_id!r}, passage {passage_id!r}"))
            for passage_id, score in pairs
        ]
        run[query_id] = sorted(scored, key=lambda entry: -entry[1])
    return run


def write_run(path: str | os.PathLike[str], run: Mapping[str, Sequence[tuple[str, float]]], tag: str) -> None:
    """Write a run as a TREC file, each query's passages by falling score; ranks count from 1, ties keep their order.

    Args:
        path: The file, which is replaced.
        run: For each query its (passage id, score) pairs.
        tag: What the run is called, the last column.

    Raises:
        ValueError: A score is not finite, an id or the tag is empty or has white space in it, or a query has a passage
            twice; nothing is written then.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("r") as file:
    ...     write_run(file.name, {"q1": [("p7", 3.5), ("p2", 4.25)]}, tag="mine")
    ...     print(file.read(), end="")
    q1 Q0 p2 1 4.25 mine
    q1 Q0 p7 2 3.5 mine
    """
    lines = []
    for query_id, passages in run.items():
        ranked = sorted(passages, key=lambda passage: -passage[1])
        if len({passage_id for passage_id, _ in passages}) < len(passages):
            raise ValueError(f"query {query_id!r}: expected each passage once, found {[p for p, _ in passages]}")
        for rank, (passage_id, score) in enumerate(ranked, start=1):
            if not math.isfinite(score):
                raise ValueError(f"query {query_id!r}, passage {passage_id!r}: expected a finite score, found {score}")
            for word in (query_id, passage_id, tag):
                if len(word.split()) != 1:
                    raise ValueError(f"expected an id or tag without white space, found {word!r}")
            lines.append(f"{query_id} Q0 {passage_id} {rank} {float(score)!r} {tag}\n")
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_qrels(path: str | os.PathLike[str]) -> Qrels:
    """The qrels of a file: for each query its judged passages with their grades, integers.

    Either the four columns of TREC (query id, iteration, passage id, grade), split by white space, or the three of
    BEIR (query id, passage id, grade), split by tabs under the header ``query-id corpus-id score``.

    Args:
        path: The file. Empty lines are skipped.

    Raises:
        ValueError: A line has another number of columns, its grade is no integer, or it gives a passage a second,
            different grade for the same query. The message names file and line.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     print("q1 0 p2 2", "q1 0 p5 0", sep="\\n", file=file, flush=True)
    ...     read_qrels(file.name)
    {'q1': {'p2': 2, 'p5': 0}}
    """
    qrels: Qrels = {}
    for number, query_id, passage_id, grade in _qrels_lines(path):
        add_grade(qrels, query_id, passage_id, grade, f"{path}:{number}")
    return qrels


def add_grade(qrels: Qrels, query_id: str, passage_id: str, grade: int, where: str) -> None:
    """Add one judgement to the qrels; the same one may come again.

    Raises:
        ValueError: If the passage has another grade already.
    """
    known = qrels.setdefault(query_id, {}).setdefault(passage_id, grade)
    if known != grade:
        raise ValueError(
            f"{where}: query {query_id!r} has passage {passage_id!r} for the second time, with grade {grade} instead "
            f"of {known}. Keep one of the two."
        )


def as_qrels(source: QrelsSource) -> Qrels:
    """The qrels of a file, or those in memory, checked.

    Raises:
        ValueError: As :func:`read_qrels`, for what is in memory with query and passage.

    >>> as_qrels({"q1": {"p2": 2.0}})
    {'q1': {'p2': 2}}
    """
    if not isinstance(source, Mapping):
        return read_qrels(source)
    qrels: Qrels = {}
    for query_id, grades in source.items():
        if not isinstance(grades, Mapping):
            raise ValueError(f"qrels=, query {query_id!r}: expected {{passage_id: grade}}, found {str(grades)[:80]!r}")
        qrels[query_id] = {name: _grade(grade, query_id, name) for name, grade in grades.items()}
    return qrels


def _qrels_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, str, int]]:
    is_beir = False
    for index, (number, line) in enumerate(numbered_lines(path)):
        columns = split_columns(line)
        if index == 0 and columns == BEIR_COLUMNS:
            is_beir = True
            continue
        if len(columns) != (3 if is_beir else 4):
            wanted = "three columns query-id corpus-id score" if is_beir else "four columns query-id 0 passage-id grade"
            raise ValueError(
                f"{path}:{number}: expected the {wanted}, found {len(columns)} in {line!r}. "
                "Files with three columns start with the header query-id, corpus-id, score, split by tabs."
            )
        yield number, columns[0], columns[-2], _integer(columns[-1], "grade", path, number)


def split_columns(line: str) -> list[str]:
    """BEIR splits by tabs, so that an id may have spaces in it; TREC by any white space."""
    tabbed = line.split("\t")
    return tabbed if len(tabbed) == len(BEIR_COLUMNS) else line.split()


def _best_first(of_query: Mapping[str, tuple[float, int]]) -> list[tuple[str, float]]:
    ranked = sorted(of_query.items(), key=lambda entry: (-entry[1][0], entry[1][1]))
    return [(passage_id, score) for passage_id, (score, _) in ranked]


def _score(given: Any, where: str) -> float:
    try:
        score = float(given)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{where}: expected a finite number as score, found {given!r}. Correct it.")
    return score


def _integer(text: str, what: str, path: str | os.PathLike[str], number: int) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"{path}:{number}: expected an integer as {what}, found {text!r}. Correct the line."
        ) from error


def _grade(given: Any, query_id: str, passage_id: str) -> int:
    if not isinstance(given, int | float | np.number) or given != np.round(given):
        raise ValueError(
            f"qrels=, query {query_id!r}, passage {passage_id!r}: expected an integer as grade, found {given!r}. "
            "Correct it."
        )
    return int(given)
