"""Results: what an evaluation found, as figures, by query, as TREC runs, as a table and as a chart."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rerank_trainer.data.runs import write_run
from rerank_trainer.evaluation.lists import CandidateLists, ScoredLists
from rerank_trainer.evaluation.metrics import mean_over_queries, metrics_by_query
from rerank_trainer.evaluation.spread import score_spread

# The orders that are judged: by the reranker's scores, as the first stage has them, and the best that is possible.
RERANKED, FIRST_STAGE, CEILING = "reranked", "first_stage", "ceiling"
RANKINGS = (RERANKED, FIRST_STAGE, CEILING)


@dataclass(frozen=True, eq=False)
class DepthResult:
    """What one first stage and one depth give.

    Attributes:
        first_stage: Its name.
        depth: How many candidates of a query were reranked at most.
        query_ids: All queries.
        found_share: Share of the relevant passages that are among the candidates, over all queries.
        values: For each of "reranked", "first_stage" and "ceiling" the metrics of each query, ``(num_queries,)``; NaN
            where nothing relevant is known. The ceiling is what the best order of these candidates would have.
    """

    first_stage: str
    depth: int
    query_ids: list[str]
    found_share: float
    values: Mapping[str, Mapping[str, NDArray[np.float64]]]

    def figures(self, ranking: str = RERANKED) -> dict[str, float]:
        """Means over queries of "reranked", "first_stage" or "ceiling"."""
        return {metric: mean_over_queries(values) for metric, values in self.values[ranking].items()}

    def of(self, metric: str, ranking: str = RERANKED) -> NDArray[np.float64]:
        """The metric of all queries, ``(num_queries,)``; NaN where nothing relevant is known.

        Raises:
            ValueError: If the metric was not asked for, or the order is none of the three.
        """
        if ranking not in RANKINGS:
            raise ValueError(f"ranking={ranking!r}: expected one of {RANKINGS}")
        if metric not in self.values[ranking]:
            raise ValueError(f"metric {metric!r} was not evaluated; expected one of {list(self.values[ranking])}")
        return self.values[ranking][metric]

    def by_query(self, metric: str, ranking: str = RERANKED) -> dict[str, float]:
        """The metric of each query about which something relevant is known; see :meth:`of`."""
        values = zip(self.query_ids, self.of(metric, ranking).tolist(), strict=True)
        return {query_id: value for query_id, value in values if not math.isnan(value)}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What :class:`RerankEvaluator` found; prints as a table.

    Attributes:
        name: Of the evaluation set.
        results: One for each first stage and depth, in the order of the first stages, shallow before deep.
        scored: For each first stage its lists with all scores, at the greatest depth.
    """

    name: str
    results: tuple[DepthResult, ...]
    scored: Mapping[str, ScoredLists]

    def at(self, *, first_stage: str | None = None, depth: int | None = None) -> DepthResult:
        """The result of one first stage (None: the first one) at one depth (None: the greatest).

        Raises:
            ValueError: If there is none.
        """
        name = next(iter(self.scored)) if first_stage is None else first_stage
        found = [r for r in self.results if r.first_stage == name and depth in (None, r.depth)]
        if not found:
            have = [(r.first_stage, r.depth) for r in self.results]
            raise ValueError(f"first_stage={first_stage!r}, depth={depth}: expected one of {have}")
        return found[-1]

    @property
    def figures(self) -> dict[str, float]:
        """The reranker's means over queries, of the first first stage at the greatest depth."""
        return self.at().figures()

    def by_query(
        self, metric: str, *, first_stage: str | None = None, depth: int | None = None, ranking: str = RERANKED
    ) -> dict[str, float]:
        """Query id to metric, of one order: "reranked", "first_stage" or "ceiling"; see :meth:`at`."""
        return self.at(first_stage=first_stage, depth=depth).by_query(metric, ranking)

    def curve(self, metric: str, *, first_stage: str | None = None, ranking: str = RERANKED) -> dict[int, float]:
        """Depth to the mean of a metric over queries; see :meth:`at`."""
        name = self.at(first_stage=first_stage).first_stage
        return {r.depth: mean_over_queries(r.of(metric, ranking)) for r in self.results if r.first_stage == name}

    def spread(self, *, first_stage: str | None = None) -> dict[str, float]:
        """``score_std`` and ``tie_share`` of the reranker's scores, as the trainer logs them."""
        scored = self.scored[self.at(first_stage=first_stage).first_stage]
        return score_spread(scored.scores, scored.labels)

    def rows(self) -> list[dict[str, Any]]:
        """The table: for each first stage, depth and order, the share of relevant passages found and the means."""
        return [
            {
                "first_stage": result.first_stage,
                "depth": result.depth,
                "found_share": result.found_share,
                "ranking": ranking,
                **result.figures(ranking),
            }
            for result in self.results
            for ranking in RANKINGS
        ]

    def write_runs(self, folder: str | os.PathLike[str], *, tag: str = "rerank_trainer") -> list[Path]:
        """Write the reranked lists as TREC runs, one file ``<first stage>.trec`` each, and say which.

        Ids that the groups lack are numbers: of the row, and of row and place.

        Raises:
            ValueError: As :func:`rerank_trainer.data.runs.write_run`, for an id with white space for instance.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for name, lists in self.scored.items():
            rows = zip(lists.query_ids, lists.passage_ids, lists.scores, strict=True)
            run = {query_id: list(zip(ids, scores.tolist(), strict=True)) for query_id, ids, scores in rows}
            paths.append(Path(folder) / f"{name}.trec")
            write_run(paths[-1], run, tag=tag)
        return paths

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the figures of each query: ``first_stage``, ``depth``, ``query_id``, then each metric of each order.

        Metrics of the reranker have their own names, others begin with ``first_stage_`` or ``ceiling_``. It holds no
        texts.
        """
        tables = []
        for result in self.results:
            columns: dict[str, Any] = {
                "first_stage": [result.first_stage] * len(result.query_ids),
                "depth": [result.depth] * len(result.query_ids),
                "query_id": result.query_ids,
            }
            for ranking in RANKINGS:
                prefix = "" if ranking == RERANKED else f"{ranking}_"
                columns |= {f"{prefix}{metric}": values for metric, values in result.values[ranking].items()}
            tables.append(pa.table(columns))
        pq.write_table(pa.concat_tables(tables), path)

    def plot(self, path: str | os.PathLike[str], metric: str | None = None) -> None:
        """Draw a metric (None: the first) against the depth, with first stage and ceiling; needs the extra ``report``.

        Args:
            path: The file; its ending decides the format, ``.png`` or ``.svg`` for instance.
            metric: One of those evaluated.

        Raises:
            ImportError: If matplotlib is missing.
        """
        from rerank_trainer.evaluation.chart import draw_depths

        metric = next(iter(self.figures)) if metric is None else metric
        draw_depths(self, path, metric)

    def __str__(self) -> str:
        rows = self.rows()
        heads = list(rows[0])
        cells = [[_in_words(row[head]) for head in heads] for row in rows]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in (heads, *cells)]
        return "\n".join([*([self.name] if self.name else []), *(line.rstrip() for line in lines)])


class DepthJudge:
    """Judges scores of the lists of one first stage, cut at one depth; first stage and ceiling are judged once.

    Args:
        lists: The candidate lists.
        depth: Where they are cut.
        metrics: Their names.

    Raises:
        ValueError: If a label or missed gain is no integer of 0 or more.
    """

    def __init__(self, lists: CandidateLists, depth: int, metrics: Sequence[str]) -> None:
        self.lists, self.depth, self.metrics = lists, depth, metrics
        self.labels, self.missed_gains = lists.cut(depth)
        in_their_order: Any = [-np.arange(len(row), dtype=np.float64) for row in self.labels]
        self._bounds = {FIRST_STAGE: self._values(in_their_order), CEILING: self._values(self.labels)}

    def __call__(self, scores: Sequence[NDArray[np.float64]]) -> DepthResult:
        """The result of scores of each list, which may be longer than the cut."""
        labels, missed = self.labels, self.missed_gains
        num_found, num_missed = (sum(grade >= 1 for row in grades for grade in row) for grades in (labels, missed))
        return DepthResult(
            first_stage=self.lists.name,
            depth=self.depth,
            query_ids=self.lists.query_ids,
            found_share=num_found / (num_found + num_missed),
            values={RERANKED: self._values([row[: self.depth] for row in scores]), **self._bounds},
        )

    def _values(self, scores: Any) -> dict[str, NDArray[np.float64]]:
        return metrics_by_query(scores, self.labels, self.missed_gains, metrics=self.metrics)


def _in_words(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
