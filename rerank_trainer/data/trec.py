"""TREC: runs and qrels in and out, and the groups that they make.

A run is a first-stage result: for each query its passages with their scores, best first. Qrels are judged relevance:
for each query its judged passages with an integer grade, where 1 or more is relevant. In a group grades become
``labels``, which are floats, and a passage that nobody judged has label 0.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.fingerprint import Hasher

from rerank_trainer.data.columns import group_features
from rerank_trainer.data.files import Source
from rerank_trainer.data.first_stage import bm25_run
from rerank_trainer.data.texts import filled, numbered_lines, read_texts

logger = logging.getLogger(__name__)

Run = dict[str, list[tuple[str, float]]]
Qrels = dict[str, dict[str, int]]

_COLUMNS = ("query", "query_id", "passages", "passage_ids", "labels", "missed_gains")
_BEIR_HEADER = ["query-id", "corpus-id", "score"]


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
        of_query[passage_id] = (_score(score, path, number), _integer(rank, "rank", path, number))
    return {query_id: _best_first(of_query) for query_id, of_query in found.items()}


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
        known = qrels.setdefault(query_id, {}).setdefault(passage_id, grade)
        if known != grade:
            raise ValueError(
                f"{path}:{number}: query {query_id!r} has passage {passage_id!r} for the second time, with grade "
                f"{grade} instead of {known}. Keep one of the two lines."
            )
    return qrels


def load_trec(
    run: str | os.PathLike[str] | None,
    qrels: str | os.PathLike[str],
    *,
    queries: Source,
    corpus: Source,
    depth: int = 100,
    add_positives: bool = False,
    num_queries: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Groups of the judged queries, each with its candidates from a run, texts from tables of queries and passages.

    The labels of a group are its grades. Memory holds the run, the qrels and the texts they name.

    Args:
        run: A TREC run, or None for BM25 over the whole corpus, see :func:`rerank_trainer.data.first_stage.bm25_run`.
        qrels: The judged queries and passages, in the form of TREC or of BEIR.
        queries: Ids and texts of queries: a path, a ``datasets.Dataset``, or the id of a data set on the Hub.
        corpus: The same of passages; a column ``title`` stands before a column ``text``, with a space between.
        depth: How many passages of the run a group gets at most.
        add_positives: Whether relevant passages that are not among those join the group, at its end (training); or stay
            out, their grades in ``missed_gains``, so that metrics count what the first stage missed (evaluation).
        num_queries: Take a random sample of so many queries, or all where there are not more.
        seed: Decides the sample.

    Returns:
        Groups with the columns ``query``, ``query_id``, ``passages``, ``passage_ids``, ``labels`` and ``missed_gains``,
        in the order of the qrels. A query without candidates is a group without passages; if nothing relevant is known
        about it either, it is left out, and a log line says how many are.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A line of a file cannot be read; the qrels or the run name a passage, or the qrels a query, that is
            absent; a text that is needed is empty; or run and qrels share no query.

    >>> import tempfile
    >>> corpus = datasets.Dataset.from_list([{"docid": "p1", "title": "Sum", "text": "1 + 1 = 2"}])
    >>> queries = datasets.Dataset.from_list([{"query_id": "q1", "query": "What is the sum?"}])
    >>> with tempfile.TemporaryDirectory() as name:
    ...     run, qrels = Path(name) / "bm25.trec", Path(name) / "qrels.txt"
    ...     _ = run.write_text("q1 Q0 p1 1 2.5 bm25"), qrels.write_text("q1 0 p1 2")
    ...     load_trec(run, qrels, queries=queries, corpus=corpus)[0]
    {'query': 'What is the sum?', 'query_id': 'q1', 'passages': ['Sum 1 + 1 = 2'], 'passage_ids': ['p1'],
     'labels': [2.0], 'missed_gains': []}
    """
    for name, count in (("depth", depth), ("num_queries", num_queries)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be 1 or more, found {count}")
    judged = _sampled(read_qrels(qrels), num_queries, seed, qrels)
    texts = read_texts(queries, "queries", judged)
    _check_known(judged, texts, "query", qrels, 0, _in_words(queries, "queries"))
    where = _in_words(corpus, "corpus")
    if run is None:
        passages = read_texts(corpus, "corpus", None)
        candidates = bm25_run(passages, {query_id: texts[query_id] for query_id in judged}, depth=depth)
    else:
        candidates = _read_candidates(run, judged, depth, qrels)
        passages = read_texts(corpus, "corpus", _passage_ids(candidates) | _passage_ids(judged))
        _check_known(_passage_ids(candidates), passages, "passage", run, 2, where)
    _check_known(_passage_ids(judged), passages, "passage", qrels, -2, where)

    rows = [_row(query_id, judged[query_id], candidates.get(query_id, []), add_positives) for query_id in judged]
    kept = [row for row in rows if row["passage_ids"] or row["missed_gains"]]
    groups = f"top {depth} of {'BM25' if run is None else f'the run {run}'} for {qrels}"
    _log(groups, kept, judged, candidates, add_positives=add_positives)
    if not kept:
        raise ValueError(f"{qrels}: expected a query with candidates or with a relevant passage, found none")
    _check_texts(kept, texts, passages, _in_words(queries, "queries"), where)
    return _with_texts(kept, texts, passages, (queries, corpus))


def load_beir(
    folder: str | os.PathLike[str],
    split: str,
    *,
    run: str | os.PathLike[str] | None = None,
    depth: int = 100,
    add_positives: bool | None = None,
    num_queries: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Groups of the judged queries of a BEIR folder: what :func:`load_trec` makes of its files.

    Args:
        folder: Has ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.
        split: Which qrels.
        run, depth, num_queries, seed: See :func:`load_trec`.
        add_positives: The same. Default: True for the split ``"train"``, False for any other.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: As in :func:`load_trec`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     (folder / "qrels").mkdir()
    ...     _ = (folder / "corpus.jsonl").write_text('{"_id": "p1", "title": "Sum", "text": "1 + 1 = 2"}')
    ...     _ = (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "What is the sum?"}')
    ...     _ = (folder / "qrels" / "test.tsv").write_text("q1 0 p1 2")
    ...     load_beir(folder, "test")["passages"][0]
    ['Sum 1 + 1 = 2']
    """
    folder = Path(folder)
    queries, corpus, qrels = folder / "queries.jsonl", folder / "corpus.jsonl", folder / "qrels" / f"{split}.tsv"
    missing = [str(path) for path in (corpus, queries, qrels, run) if path is not None and not Path(path).is_file()]
    if missing:
        splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
        raise FileNotFoundError(f"these files are not there: {', '.join(missing)}. The folder has qrels for {splits}.")
    return load_trec(
        run,
        qrels,
        queries=queries,
        corpus=corpus,
        depth=depth,
        add_positives=split == "train" if add_positives is None else add_positives,
        num_queries=num_queries,
        seed=seed,
    )


def _sampled(qrels: Qrels, num_queries: int | None, seed: int, path: str | os.PathLike[str]) -> Qrels:
    if not qrels:
        raise ValueError(f"{path}: expected judged queries, found none")
    if num_queries is None or num_queries >= len(qrels):
        return qrels
    chosen = set(random.Random(seed).sample(list(qrels), num_queries))
    return {query_id: grades for query_id, grades in qrels.items() if query_id in chosen}


def _read_candidates(path: str | os.PathLike[str], qrels: Qrels, depth: int, qrels_path: str | os.PathLike[str]) -> Run:
    run = read_run(path)
    candidates = {query_id: passages[:depth] for query_id, passages in run.items() if query_id in qrels}
    if not candidates:
        raise ValueError(
            f"{path} and {qrels_path} share no query: the run has {next(iter(run), None)!r} and {len(run)} in all, the "
            f"qrels have {next(iter(qrels))!r} and {len(qrels)} in all. Give the run of the same split."
        )
    return candidates


def _row(
    query_id: str, grades: Mapping[str, int], candidates: Sequence[tuple[str, float]], add_positives: bool
) -> dict[str, Any]:
    passage_ids = [passage_id for passage_id, _ in candidates]
    known = set(passage_ids)
    missed = [passage_id for passage_id, grade in grades.items() if grade > 0 and passage_id not in known]
    if add_positives:
        passage_ids, missed = passage_ids + missed, []
    return {
        "query_id": query_id,
        "passage_ids": passage_ids,
        "labels": [float(max(grades.get(passage_id, 0), 0)) for passage_id in passage_ids],
        "missed_gains": [float(grades[passage_id]) for passage_id in missed],
    }


def _check_texts(
    rows: list[dict[str, Any]], queries: Mapping[str, str], passages: Mapping[str, str], of_queries: str, of_corpus: str
) -> None:
    for row in rows:
        if not queries[row["query_id"]]:
            raise ValueError(
                f"{of_queries}: query {row['query_id']!r} has no text. Fill it in or remove it from the qrels."
            )
        for passage_id in row["passage_ids"]:
            if not passages[passage_id]:
                raise ValueError(
                    f"{of_corpus}: passage {passage_id!r}, a candidate of query {row['query_id']!r}, has neither "
                    "title nor text. Fill it in, or remove it from the corpus, the run and the qrels."
                )


def _with_texts(
    rows: list[dict[str, Any]], queries: Mapping[str, str], passages: Mapping[str, str], sources: Iterable[Source]
) -> datasets.Dataset:
    features = group_features(_COLUMNS)
    of_ids = datasets.Features({name: features[name] for name in rows[0]})
    groups = datasets.Dataset.from_list(rows, features=of_ids)
    texts_of = {
        "queries": lambda ids: [queries[query_id] for query_id in ids],
        "corpus": lambda ids: [passages[passage_id] for passage_id in ids],
    }
    return filled(groups, texts_of, Hasher.hash([groups._fingerprint, *(_state(source) for source in sources)]))


def _state(source: Source) -> Any:
    """What changes when the source does, for sources whose texts are too large to hash."""
    if isinstance(source, datasets.Dataset):
        return source._fingerprint
    path = Path(source)
    return [str(path), *((path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else ())]


def _log(groups: str, rows: list[dict[str, Any]], qrels: Qrels, candidates: Run, *, add_positives: bool) -> None:
    found = {(query_id, passage_id) for query_id in qrels for passage_id, _ in candidates.get(query_id, [])}
    grades = {(query_id, passage_id): grade for query_id in qrels for passage_id, grade in qrels[query_id].items()}
    relevant = {pair for pair, grade in grades.items() if grade > 0}
    logger.info(
        "%d groups of the %s; of %d relevant passages %d are not among the candidates and %s (add_positives=%s); "
        "%d groups without passages; left out: %d queries with neither candidates nor a relevant passage; label 0 for "
        "%d negative grades",
        len(rows),
        groups,
        len(relevant),
        len(relevant - found),
        "joined them" if add_positives else "stay out, as missed gains",
        add_positives,
        sum(not row["passage_ids"] for row in rows),
        len(qrels) - len(rows),
        sum(grade < 0 for grade in grades.values()),
    )


def _in_words(source: Source, kind: str) -> str:
    return f"the data set {kind}=" if isinstance(source, datasets.Dataset) else str(source)


def _passage_ids(of_queries: Mapping[str, Any]) -> set[str]:
    """The passages that qrels or a run name."""
    entries = (entry for of_query in of_queries.values() for entry in of_query)
    return {entry if isinstance(entry, str) else entry[0] for entry in entries}


def _check_known(
    ids: Iterable[str], known: Container[str], what: str, path: str | os.PathLike[str], column: int, source: str
) -> None:
    """Raise for ids that are absent, with the first line of ``path`` that names one in that column."""
    absent = {name for name in ids if name not in known}
    if absent:
        named = ((number, _split(line)[column]) for number, line in numbered_lines(path))
        number, name = next((number, name) for number, name in named if name in absent)
        raise ValueError(
            f"{path}:{number}: {what} {name!r} is not in {source} ({len(absent)} such in all). "
            f"Add it there, or remove the lines that name it."
        )


def _qrels_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, str, int]]:
    is_beir = False
    for index, (number, line) in enumerate(numbered_lines(path)):
        columns = _split(line)
        if index == 0 and columns == _BEIR_HEADER:
            is_beir = True
            continue
        if len(columns) != (3 if is_beir else 4):
            wanted = "three columns query-id corpus-id score" if is_beir else "four columns query-id 0 passage-id grade"
            raise ValueError(
                f"{path}:{number}: expected the {wanted}, found {len(columns)} in {line!r}. "
                "Files with three columns start with the header query-id, corpus-id, score, split by tabs."
            )
        yield number, columns[0], columns[-2], _integer(columns[-1], "grade", path, number)


def _split(line: str) -> list[str]:
    """BEIR splits by tabs, so that an id may have spaces in it; TREC by any white space."""
    tabbed = line.split("\t")
    return tabbed if len(tabbed) == len(_BEIR_HEADER) else line.split()


def _best_first(of_query: Mapping[str, tuple[float, int]]) -> list[tuple[str, float]]:
    ranked = sorted(of_query.items(), key=lambda entry: (-entry[1][0], entry[1][1]))
    return [(passage_id, score) for passage_id, (score, _) in ranked]


def _score(text: str, path: str | os.PathLike[str], number: int) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{path}:{number}: expected a finite number as score, found {text!r}. Correct the line.")
    return score


def _integer(text: str, what: str, path: str | os.PathLike[str], number: int) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"{path}:{number}: expected an integer as {what}, found {text!r}. Correct the line."
        ) from error
