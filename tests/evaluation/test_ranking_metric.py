"""The module of the evaluate library: it opens by path without a network and returns what ranking_metrics returns."""

from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest

import rerank_trainer.evaluation.ranking_metric
from rerank_trainer.evaluation.ranking_metric.ranking_metric import RankingMetric

FOLDER = str(Path(rerank_trainer.evaluation.ranking_metric.__file__).parent)
SCORES, LABELS, MISSED = [[3.0, 2.0, 1.0], [1.0, 2.0], []], [[0, 1, 0], [1, 0], []], [[], [1], [1]]
# ranks of the first positives: 2, 2 and none; found: 1 of 1, 1 of 2, 0 of 1
MRR, RECALL = (1 / 2 + 1 / 2 + 0) / 3, (1 + 1 / 2 + 0) / 3


@pytest.fixture(params=["loaded", "made"])
def make(request, tmp_path):
    """The metric in a configuration, as ``evaluate.load`` gives it and as an object."""
    if request.param == "made":
        return lambda name=None: RankingMetric(name, cache_dir=str(tmp_path))
    return lambda name=None: evaluate.load(FOLDER, name, cache_dir=str(tmp_path))


def test_it_computes_the_ranking_metrics(make):
    found = make().compute(predictions=SCORES, references=LABELS, missed_gains=MISSED, metrics=["mrr@10", "recall@10"])

    assert found == pytest.approx({"mrr@10": MRR, "recall@10": RECALL})


def test_batches_of_unlike_width_add_up(make):
    metric = make("missed_gains")
    metric.add_batch(predictions=SCORES[:2], references=LABELS[:2], missed_gains=MISSED[:2])
    metric.add_batch(predictions=SCORES[2:], references=LABELS[2:], missed_gains=MISSED[2:])

    assert metric.compute(metrics=["mrr", "recall@10"]) == pytest.approx({"mrr": MRR, "recall@10": RECALL})


def test_one_query_at_a_time_adds_up(make):
    metric = make()
    for scores, labels in zip(SCORES[:2], LABELS[:2], strict=True):
        metric.add(prediction=scores, reference=labels)

    assert metric.compute(metrics=["mrr"]) == {"mrr": 0.5}


def test_padded_arrays_are_taken(make):
    padded, labels = np.array([[1.0, 2.0, 9.0]]), np.array([[1.0, 0.0, -100.0]])

    assert make().compute(predictions=padded, references=labels, metrics=["mrr"]) == {"mrr": 0.5}


def test_it_combines_with_other_modules(make, tmp_path):
    class Count(evaluate.Metric):
        def _info(self):
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=make().features)

        def _compute(self, *, predictions, references):
            return {"queries": len(predictions)}

    both = evaluate.combine([make(), Count(cache_dir=str(tmp_path))])
    both.add_batch(predictions=SCORES[:2], references=LABELS[:2])
    found = both.compute()

    assert found["queries"] == 2 and found["mrr@10"] == 0.5


def test_it_says_what_it_takes(make):
    metric = make()

    assert metric.name == "ranking_metric" and list(metric.features) == ["predictions", "references"]
    assert "missed_gains" in metric.inputs_description and "ir-measures" in metric.citation


def test_an_unknown_configuration_is_refused(make):
    with pytest.raises(ValueError, match="configuration 'graded'"):
        make("graded")


def test_a_label_that_is_no_grade_is_refused(make):
    with pytest.raises(ValueError, match="group 0 has the label 0.5"):
        make().compute(predictions=[[1.0]], references=[[0.5]])
