"""The ranking metrics as a module of the ``evaluate`` library, around ``ranking_metrics``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from rerank_trainer.evaluation.metrics import DEFAULT_METRICS, ranking_metrics

_CITATION = """\
@inproceedings{macavaney2022irmeasures,
  title = {Streamlining Evaluation with ir-measures},
  author = {Sean MacAvaney and Craig Macdonald and Iadh Ounis},
  booktitle = {Advances in Information Retrieval (ECIR)},
  year = {2022},
  doi = {10.1007/978-3-030-99739-7_38}
}
"""


class RankingMetric(evaluate.Metric):
    """Means over queries of nDCG, MRR, MAP, recall and precision at any cut-off, from graded labels.

    ir_measures computes them; equal scores count their mean over all orders, and judged passages that the candidate
    lists miss count against them.

    Args:
        predictions: Scores of each query's passages, higher is more relevant; lists may differ in length.
        references: Their grades, integers of 0 or more; -100 where there is no passage.
        missed_gains: Grades of judged passages outside the lists, a list for each query; may be left out. To add them
            batch by batch, take the configuration "missed_gains".
        metrics: Names such as "ndcg@10", "mrr@10", "map", "recall@100", "precision@5".

    Returns:
        A mapping from metric name to mean.

    Raises:
        ValueError: As :func:`~rerank_trainer.evaluation.metrics.ranking_metrics`.

    >>> metric = RankingMetric()  # or evaluate.load with the folder of this file
    >>> metric.compute(predictions=[[0.1, 0.9], [2.0]], references=[[1, 0], [1]], metrics=["mrr@10"])
    {'mrr@10': 0.75}
    >>> metric.compute(predictions=[[2.0]], references=[[1]], missed_gains=[[1]], metrics=["recall@10"])
    {'recall@10': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        names = ["predictions", "references"]
        if self.config_name == "missed_gains":
            names.append("missed_gains")
        elif self.config_name != "default":
            raise ValueError(f"configuration {self.config_name!r}: expected 'default' or 'missed_gains'")
        description, inputs = (inspect.getdoc(type(self)) or "").split("\n\nArgs:")
        return evaluate.MetricInfo(
            description=description,
            citation=_CITATION,
            inputs_description=f"Args:{inputs}",
            features=datasets.Features({name: datasets.Sequence(datasets.Value("float64")) for name in names}),
            reference_urls=["https://ir-measur.es"],
        )

    def _compute(
        self,
        *,
        predictions: Any,
        references: Any,
        missed_gains: Any = None,
        metrics: Sequence[str] = DEFAULT_METRICS,
    ) -> dict[str, float]:
        return ranking_metrics(predictions, references, missed_gains, metrics=metrics)
