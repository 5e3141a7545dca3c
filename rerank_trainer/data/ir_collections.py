"""Collections of ir_datasets: the groups of one that is named by its id (needs the extra ``ir-datasets``)."""

from __future__ import annotations

from typing import Any

import datasets

from rerank_trainer.data.runs import Qrels, Run, RunSource, add_grade, as_run
from rerank_trainer.data.trec import load_trec

SCOREDDOCS = "scoreddocs"


def load_ir_dataset(
    name: str,
    *,
    run: RunSource | None = None,
    depth: int = 100,
    add_positives: bool = False,
    num_queries: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Groups of the judged queries of a collection of ir_datasets: what :func:`load_trec` makes of it.

    ir_datasets (MacAvaney et al., 2021, https://arxiv.org/abs/2103.02280) fetches the collection when it is first asked
    for, and says in its documentation which ones need an agreement.

    Args:
        name: Such as "beir/scifact/test" or "msmarco-passage/trec-dl-2019/judged", with queries, passages and qrels;
            see https://ir-datasets.com.
        run: A TREC run, as a file or in memory; "scoreddocs" for the first stage that the collection brings; or None
            for BM25 over all of its passages, which are held in memory then.
        depth, add_positives, num_queries, seed: See :func:`load_trec`.

    Raises:
        ImportError: If ir_datasets is missing.
        ValueError: If it knows no such collection, this one lacks something that is needed, or as in
            :func:`load_trec`.

    >>> load_ir_dataset("beir/scifact/test", run="scoreddocs")  # doctest: +SKIP
    """
    collection = _opened(name, needs=("queries", "docs", "qrels", *([SCOREDDOCS] if run == SCOREDDOCS else [])))
    qrels = _qrels(collection, name)
    queries = {query.query_id: query.default_text() for query in collection.queries_iter() if query.query_id in qrels}
    if run is None:
        passages = collection.docs_iter()
    else:
        found = _scored(collection) if run == SCOREDDOCS else as_run(run)
        run = {query_id: entries[:depth] for query_id, entries in found.items() if query_id in qrels} or found
        wanted = {passage_id for entries in run.values() for passage_id, _ in entries}
        wanted |= {passage_id for grades in qrels.values() for passage_id in grades}
        passages = collection.docs_store().get_many_iter(wanted)
    texts = {passage.doc_id: passage.default_text() for passage in passages}
    return load_trec(
        run,
        qrels,
        queries=datasets.Dataset.from_dict({"query_id": list(queries), "query": list(queries.values())}),
        corpus=datasets.Dataset.from_dict({"passage_id": list(texts), "passage": list(texts.values())}),
        depth=depth,
        add_positives=add_positives,
        num_queries=num_queries,
        seed=seed,
    )


def _opened(name: str, *, needs: tuple[str, ...]) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise ImportError(
            f'{name!r} needs ir_datasets ({error}). Install it with pip install "rerank_trainer[ir-datasets]".'
        ) from error
    try:
        collection = ir_datasets.load(name)
    except KeyError as error:
        raise ValueError(
            f"ir_datasets knows no collection {name!r}. Those that it knows are listed at https://ir-datasets.com; a "
            "BEIR folder is opened with load_beir."
        ) from error
    missing = [kind for kind in needs if not collection.has(kind)]
    if missing:
        raise ValueError(
            f"{name}: expected a collection with {', '.join(needs)}, but it has no {', '.join(missing)}. Often a part "
            "of it has them, such as .../test or .../judged."
        )
    return collection


def _qrels(collection: Any, name: str) -> Qrels:
    qrels: Qrels = {}
    for judged in collection.qrels_iter():
        add_grade(qrels, judged.query_id, judged.doc_id, judged.relevance, name)
    return qrels


def _scored(collection: Any) -> Run:
    """The run that comes with the collection, best first."""
    found: dict[str, list[tuple[str, float]]] = {}
    for scored in collection.scoreddocs_iter():
        found.setdefault(scored.query_id, []).append((scored.doc_id, scored.score))
    return as_run(found)
