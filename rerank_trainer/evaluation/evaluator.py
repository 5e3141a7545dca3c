"""The evaluator: groups reranked by any scoring function, and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import datasets

from rerank_trainer.evaluation.metrics import DEFAULT_METRICS, ranking_metrics
from rerank_trainer.models.pairs import distinct


def evaluate_groups(
    groups: datasets.Dataset,
    predict: Callable[[list[tuple[str, str]]], Any] | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, float]:
    """Ranking metrics of the groups, ordered by a scoring function or as the first stage has them.

    Args:
        groups: Labelled groups, such as :func:`rerank_trainer.load_beir` makes; missed gains count.
        predict: Scores of (query, passage) pairs, ``(num_pairs,)``: ``reranker.predict``, or a sentence-transformers
            cross-encoder's. It gets each distinct pair once, in the order in which they first come; scores that you
            have already go to :func:`ranking_metrics`. None judges the candidates in the order in which they stand.
        metrics: Names such as "ndcg@10", "mrr@10", "map", "recall@100".

    Raises:
        ValueError: If ``predict`` returns another number of scores than there are pairs.

    >>> rows = {"query": ["1 + 1"], "passages": [["3", "2"]], "labels": [[0.0, 1.0]]}
    >>> evaluate_groups(datasets.Dataset.from_dict(rows), metrics=["mrr@10"])
    {'mrr@10': 0.5}
    """
    sizes = [len(passages) for passages in groups["passages"]]
    if predict is None:
        flat: Iterable[float] = (-float(place) for size in sizes for place in range(size))
    else:
        pairs = [(group["query"], passage) for group in groups for passage in group["passages"]]
        once, places = distinct(pairs)
        of_once = [float(score) for score in predict(once)]
        if len(of_once) != len(once):
            raise ValueError(f"predict returned {len(of_once)} scores for {len(once)} pairs; it must return one a pair")
        flat = [of_once[place] for place in places]
    scores = iter(flat)
    missed_gains = groups["missed_gains"] if "missed_gains" in groups.column_names else None
    return ranking_metrics(
        [[next(scores) for _ in range(size)] for size in sizes], groups["labels"], missed_gains, metrics=metrics
    )
