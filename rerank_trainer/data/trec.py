"""TREC: the groups that runs, qrels and tables of texts make, of files, of BEIR folders and of their sets on the Hub.

Grades become ``labels``, which are floats, and a passage that nobody judged has label 0.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.fingerprint import Hasher

from rerank_trainer.data.columns import group_features
from rerank_trainer.data.files import Source, cache_of
from rerank_trainer.data.first_stage import bm25_run
from rerank_trainer.data.runs import (
    BEIR_COLUMNS,
    Qrels,
    QrelsSource,
    Run,
    RunSource,
    add_grade,
    as_qrels,
    as_run,
    split_columns,
)
from rerank_trainer.data.texts import filled, numbered_lines, read_texts

logger = logging.getLogger(__name__)

_QRELS_CONFIGS = ("qrels", "default")
_COLUMNS = ("query", "query_id", "passages", "passage_ids", "labels", "missed_gains")


def load_trec(
    run: RunSource | None,
    qrels: QrelsSource,
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
        run: A TREC run, as a file or in memory, ``{query_id: [(passage_id, score), ...]}``; or None for BM25 over the
            whole corpus, see :func:`rerank_trainer.data.first_stage.bm25_run`.
        qrels: The judged queries and passages: a file of TREC or of BEIR, or ``{query_id: {passage_id: grade}}``.
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
    of_qrels = _in_words(qrels, "qrels")
    judged = _sampled(as_qrels(qrels), num_queries, seed, of_qrels)
    texts = read_texts(queries, "queries", judged)
    _check_known(judged, texts, "query", qrels, 0, _in_words(queries, "queries"))
    where = _in_words(corpus, "corpus")
    if run is None:
        passages = read_texts(corpus, "corpus", None)
        candidates = bm25_run(passages, {query_id: texts[query_id] for query_id in judged}, depth=depth)
    else:
        candidates = _candidates(run, judged, depth, of_qrels)
        passages = read_texts(corpus, "corpus", _passage_ids(candidates) | _passage_ids(judged))
        _check_known(_passage_ids(candidates), passages, "passage", run, 2, where)
    _check_known(_passage_ids(judged), passages, "passage", qrels, -2, where)

    rows = [_row(query_id, judged[query_id], candidates.get(query_id, []), add_positives) for query_id in judged]
    kept = [row for row in rows if row["passage_ids"] or row["missed_gains"]]
    first_stage = "BM25" if run is None else f"the run {'in memory' if isinstance(run, Mapping) else run}"
    groups = f"top {depth} of {first_stage} for {of_qrels}"
    _log(groups, kept, judged, candidates, add_positives=add_positives)
    if not kept:
        raise ValueError(f"{of_qrels}: expected a query with candidates or with a relevant passage, found none")
    _check_texts(kept, texts, passages, _in_words(queries, "queries"), where)
    return _with_texts(kept, texts, passages, (queries, corpus))


def load_beir(
    folder: str | os.PathLike[str],
    split: str,
    *,
    run: RunSource | None = None,
    depth: int = 100,
    add_positives: bool | None = None,
    num_queries: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Groups of the judged queries of a BEIR folder or its set on the Hub: what :func:`load_trec` makes of its tables.

    Args:
        folder: Has ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``. Or the name of a data set on the Hub
            with the configurations ``corpus`` and ``queries``, such as "BeIR/scifact"; its qrels are the configuration
            ``qrels`` or ``default``, and where it has neither, the data set "BeIR/scifact-qrels". Qrels without a
            column ``score``, as those of NanoBEIR, have the grade 1. A folder in the format of such data sets does as
            well.
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
    options: dict[str, Any] = {"depth": depth, "num_queries": num_queries, "seed": seed}
    options["add_positives"] = split == "train" if add_positives is None else add_positives
    if _is_hub_set(folder):
        return load_trec(run, _hub_qrels(str(folder), split), queries=str(folder), corpus=str(folder), **options)
    folder = Path(folder)
    queries, corpus, qrels = folder / "queries.jsonl", folder / "corpus.jsonl", folder / "qrels" / f"{split}.tsv"
    files = (corpus, queries, qrels, run)
    missing = [str(path) for path in files if isinstance(path, str | os.PathLike) and not Path(path).is_file()]
    if missing:
        splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
        raise FileNotFoundError(f"these files are not there: {', '.join(missing)}. The folder has qrels for {splits}.")
    return load_trec(run, qrels, queries=queries, corpus=corpus, **options)


def _is_hub_set(folder: str | os.PathLike[str]) -> bool:
    """Whether this names a data set with configurations: no folder that is there, or one whose card lists them."""
    path = Path(folder)
    if path.is_dir():
        return (path / "README.md").is_file() and not (path / "qrels").is_dir()
    return isinstance(folder, str) and folder.count("/") == 1 and not path.is_absolute()


def _hub_qrels(name: str, split: str) -> Qrels:
    configs = datasets.get_dataset_config_names(name)
    config = next((config for config in _QRELS_CONFIGS if config in configs), None)
    source, config = (name, config) if config else (f"{name}-qrels", None)
    splits = datasets.get_dataset_split_names(source, config)
    if split not in splits:
        raise ValueError(f"{name}: expected a split of its qrels ({source}), one of {splits}, found {split!r}")
    rows = datasets.load_dataset(source, config, split=split, cache_dir=cache_of(source))
    of_query, of_passage, of_grade = BEIR_COLUMNS
    if not {of_query, of_passage} <= set(rows.column_names):
        raise ValueError(f"{source}: expected qrels with the columns {BEIR_COLUMNS}, found {rows.column_names}")
    grades = rows[of_grade] if of_grade in rows.column_names else [1] * len(rows)
    qrels: Qrels = {}
    for number, judged in enumerate(zip(rows[of_query], rows[of_passage], grades, strict=True)):
        add_grade(qrels, str(judged[0]), str(judged[1]), judged[2], f"{source}, row {number}")
    return as_qrels(qrels)


def _sampled(qrels: Qrels, num_queries: int | None, seed: int, path: str) -> Qrels:
    if not qrels:
        raise ValueError(f"{path}: expected judged queries, found none")
    if num_queries is None or num_queries >= len(qrels):
        return qrels
    chosen = set(random.Random(seed).sample(list(qrels), num_queries))
    return {query_id: grades for query_id, grades in qrels.items() if query_id in chosen}


def _candidates(source: RunSource, qrels: Qrels, depth: int, of_qrels: str) -> Run:
    run = as_run(source)
    candidates = {query_id: passages[:depth] for query_id, passages in run.items() if query_id in qrels}
    if not candidates:
        raise ValueError(
            f"{_in_words(source, 'run')} and {of_qrels} share no query: the run has {next(iter(run), None)!r} and "
            f"{len(run)} in all, the qrels have {next(iter(qrels))!r} and {len(qrels)} in all. Give the run of the "
            "same split."
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


def _in_words(source: Source | RunSource | QrelsSource, kind: str) -> str:
    """A file by its path, and what is in memory by the name of its argument."""
    if isinstance(source, datasets.Dataset):
        return f"the data set {kind}="
    return f"{kind}=" if isinstance(source, Mapping) else str(source)


def _passage_ids(of_queries: Mapping[str, Any]) -> set[str]:
    """The passages that qrels or a run name."""
    entries = (entry for of_query in of_queries.values() for entry in of_query)
    return {entry if isinstance(entry, str) else entry[0] for entry in entries}


def _check_known(
    ids: Iterable[str], known: Container[str], what: str, named_in: RunSource | QrelsSource, column: int, source: str
) -> None:
    """Raise for ids that are absent; where a file names them, with the first line that has one in that column."""
    absent = {name for name in ids if name not in known}
    if not absent:
        return
    if isinstance(named_in, Mapping):
        where, name = _in_words(named_in, "run" if column == 2 else "qrels"), min(absent)
    else:
        named = ((number, split_columns(line)[column]) for number, line in numbered_lines(named_in))
        number, name = next((number, name) for number, name in named if name in absent)
        where = f"{named_in}:{number}"
    raise ValueError(
        f"{where}: {what} {name!r} is not in {source} ({len(absent)} such in all). Add it there, or remove the lines "
        "that name it."
    )
