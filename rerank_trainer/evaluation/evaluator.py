"""The evaluator: candidate lists of one or several first stages, reranked by any scoring function, and judged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from sentence_transformers.base.evaluation import BaseEvaluator

from rerank_trainer.evaluation.lists import CandidateLists, ScoredLists, candidate_lists, checked_depths
from rerank_trainer.evaluation.metrics import DEFAULT_METRICS, parse_metric
from rerank_trainer.evaluation.results import DepthJudge, Evaluation
from rerank_trainer.evaluation.scorers import Ask, scores_of, takes_instructions
from rerank_trainer.models.pairs import distinct

logger = logging.getLogger(__name__)


class RerankEvaluator(BaseEvaluator):
    """Judges rerankers on candidate lists: beside the first stage, and beside the best that its candidates allow.

    It is also an evaluator of sentence-transformers: ``evaluator(model)`` returns figures by name, and a trainer takes
    it as ``evaluator=``.

    Args:
        groups: Labelled groups with their passages in the order of the first stage, as :func:`rerank_trainer.load_beir`
            and others make them; missed gains count. For several first stages side by side, a dict of them by name.
        metrics: Names of ir_measures such as "nDCG@10", or "ndcg@10"; see :func:`rerank_trainer.ranking_metrics`.
        depths: How many candidates of a query are reranked; several give a curve. None takes whole lists. Each pair is
            scored once, at the greatest depth. What stands behind a depth counts as missed.
        name: Of the evaluation set, in tables and before the figures that sentence-transformers logs.

    Raises:
        ValueError: If a metric is not known, a depth is below 1, groups have no labels or nothing relevant, a query id
            stands in two groups, or the first stages were judged on other queries.

    >>> rows = {"query": ["1 + 1"], "passages": [["3", "2"]], "labels": [[0.0, 1.0]], "missed_gains": [[1.0]]}
    >>> evaluator = RerankEvaluator(datasets.Dataset.from_dict(rows), metrics=["RR@10", "R@10"])
    >>> evaluation = evaluator.evaluate(lambda pairs: [float(passage == "2") for _, passage in pairs])
    >>> print(evaluation)
    first_stage  depth  found_share  ranking      RR@10   R@10
    candidates   2      0.5000       reranked     1.0000  0.5000
    candidates   2      0.5000       first_stage  0.5000  0.5000
    candidates   2      0.5000       ceiling      1.0000  0.5000
    """

    def __init__(
        self,
        groups: datasets.Dataset | Mapping[str, datasets.Dataset],
        *,
        metrics: Sequence[str] = DEFAULT_METRICS,
        depths: int | Sequence[int] | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if isinstance(metrics, str) or not metrics:
            raise ValueError(f"metrics={metrics!r}: expected a list of one name or more, such as ['nDCG@10']")
        for metric in metrics:
            parse_metric(metric)
        self.metrics = tuple(metrics)
        self.lists = candidate_lists(groups)
        self.depths = checked_depths(depths, self.lists)
        self._judges = [[DepthJudge(own, depth, self.metrics) for depth in self.depths] for own in self.lists]
        self.name = name
        self.primary_metric = "_".join(part for part in (name, next(iter(self._flat({})), "")) if part)

    def evaluate(self, model: Any = None) -> Evaluation:
        """What a model makes of the lists; the same in every process of a group, of which each scores a share.

        Args:
            model: A :class:`Reranker`; a cross-encoder of sentence-transformers, which is asked for raw logits; or a
                function from a list of (query, passage) pairs to their scores. It gets each distinct pair once, over
                all first stages. None judges the first stage alone. Instructions of groups go to rerankers whose prompt
                has a place for them.

        Raises:
            ValueError: If the model does not return one finite number a pair.
        """
        return self._evaluation(self._scores(model, by_all_processes=True))

    def evaluate_scores(self, scores: Sequence[Any] | Mapping[str, Sequence[Any]]) -> Evaluation:
        """The same for scores that you have, such as a column ``teacher_scores`` of the groups.

        Args:
            scores: One list a group, one number a passage; of several first stages a dict by name.

        Raises:
            ValueError: If a list or a first stage is missing or too many, or a score is not a finite number.

        >>> rows = {"query": ["1 + 1"], "passages": [["3", "2"]], "labels": [[0.0, 1.0]]}
        >>> evaluator = RerankEvaluator(datasets.Dataset.from_dict(rows), metrics=["RR@10"])
        >>> evaluator.evaluate_scores([[0.1, 0.7]]).figures
        {'RR@10': 1.0}
        """
        names = [own.name for own in self.lists]
        named = scores if isinstance(scores, Mapping) else {names[0]: scores}
        if set(named) != set(names):
            raise ValueError(f"scores are there for {list(named)}, expected them for the first stages {names}")
        return self._evaluation([own.checked(named[own.name]) for own in self.lists])

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """As sentence-transformers calls it, in the main process alone: the means at the greatest depth, by name.

        Of several first stages each has its name before its figures. Nothing is written.
        """
        evaluation = self._evaluation(self._scores(model, by_all_processes=False))
        found = {own.name: evaluation.at(first_stage=own.name).figures() for own in self.lists}
        figures: dict[str, float] = self.prefix_name_to_metrics(self._flat(found), self.name)
        if hasattr(model, "model_card_data"):
            self.store_metrics_in_model_card_data(model, figures, epoch, steps)
        return figures

    def _flat(self, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        several = len(self.lists) > 1
        return {
            f"{own.name}_{metric}" if several else metric: found.get(own.name, {}).get(metric, float("nan"))
            for own in self.lists
            for metric in self.metrics
        }

    def _evaluation(self, all_scores: Sequence[Sequence[NDArray[np.float64]]]) -> Evaluation:
        """Of the scores of each list of each first stage, down to the greatest depth or deeper."""
        results, scored = [], {}
        for own, judges, scores in zip(self.lists, self._judges, all_scores, strict=True):
            results += [judge(scores) for judge in judges]
            scored[own.name] = ScoredLists(
                queries=own.groups["query"][:],
                query_ids=own.query_ids,
                passage_ids=[ids[: self.depths[-1]] for ids in own.passage_ids],
                labels=judges[-1].labels,
                missed_gains=judges[-1].missed_gains,
                scores=[row[: self.depths[-1]] for row in scores],
            )
        return Evaluation(self.name, tuple(results), scored)

    def _scores(self, model: Any, *, by_all_processes: bool) -> list[list[NDArray[np.float64]]]:
        """Of each first stage the scores of each list, down to the greatest depth."""
        sizes = [[min(len(row), self.depths[-1]) for row in own.labels] for own in self.lists]
        if model is None:
            return [[-np.arange(size, dtype=np.float64) for size in of_lists] for of_lists in sizes]
        with_instruction = takes_instructions(model)
        asked = [ask for own in self.lists for ask in self._asked(own, with_instruction)]
        once, places = distinct(asked)
        flat = scores_of(model, once, by_all_processes=by_all_processes)[places]
        ends = np.cumsum([size for of_lists in sizes for size in of_lists])
        rows = iter(np.split(flat, ends[:-1]))
        return [[next(rows) for _ in of_lists] for of_lists in sizes]

    def _asked(self, own: CandidateLists, with_instruction: bool) -> list[Ask]:
        if "instruction" in own.groups.column_names and not with_instruction:
            logger.warning("%s: the column instruction is not used: the model has no place for it", own.name)
        return [
            (group["query"], passage, (with_instruction and group.get("instruction")) or None)
            for group in own.groups
            for passage in group["passages"][: self.depths[-1]]
        ]


def evaluate_groups(
    groups: datasets.Dataset,
    predict: Callable[[list[tuple[str, str]]], Any] | Any = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, float]:
    """Ranking metrics of the groups, ordered by a scoring function or as the first stage has them.

    The figures of a :class:`RerankEvaluator`, which also knows depths, first stages and figures by query.

    Args:
        groups: Labelled groups, such as :func:`rerank_trainer.load_beir` makes; missed gains count.
        predict: Scores of (query, passage) pairs, ``(num_pairs,)``: ``reranker.predict``, a reranker, or a
            sentence-transformers cross-encoder. It gets each distinct pair once, in the order in which they first come;
            scores that you have already go to :func:`ranking_metrics`. None judges the candidates in the order in which
            they stand.
        metrics: Names such as "nDCG@10", "RR@10", "AP", "R@100", or "ndcg@10", "mrr@10", "map", "recall@100".

    Raises:
        ValueError: As :class:`RerankEvaluator`.

    >>> rows = {"query": ["1 + 1"], "passages": [["3", "2"]], "labels": [[0.0, 1.0]]}
    >>> evaluate_groups(datasets.Dataset.from_dict(rows), metrics=["mrr@10"])
    {'mrr@10': 0.5}
    """
    return RerankEvaluator(groups, metrics=metrics).evaluate(predict).figures
