"""``rerank-trainer evaluate``: a reranker judged on candidate lists, beside the first stage and the ceiling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rerank_trainer.cli.objects import counted, groups_of, reranker_of, sets_of
from rerank_trainer.cli.options import EvaluateOptions
from rerank_trainer.evaluation.evaluator import RerankEvaluator
from rerank_trainer.models.preview import preview_checkpoint


def run(options: EvaluateOptions) -> None:
    """Judge, print the figures, and write what was asked for."""
    evaluators = _evaluators(options)
    model = None
    if options.model is not None:
        model = reranker_of(options.model, device=options.device, max_length=options.max_length)
    rows = []
    for name, evaluator in evaluators.items():
        evaluation = evaluator.evaluate(model)
        rows += [{"dataset": name, **row} for row in evaluation.rows()]
        if options.output_dir is not None:
            folder = Path(options.output_dir, name)
            evaluation.write_runs(folder)
            evaluation.to_parquet(folder / "by_query.parquet")
        if not options.json:
            print(evaluation)
    if options.json:
        print(json.dumps(rows))


def plan(options: EvaluateOptions) -> dict[str, str]:
    """Who would be judged, on what."""
    return {
        "model": "the first stage alone" if options.model is None else str(preview_checkpoint(options.model)),
        "dataset": "; ".join(
            f"{name}: {counted(own.groups)}".removeprefix(": ")
            for name, evaluator in _evaluators(options).items()
            for own in evaluator.lists
        ),
        "metrics": ", ".join(options.metrics),
        "output_dir": options.output_dir or "none",
    }


def _evaluators(options: EvaluateOptions) -> dict[str, RerankEvaluator]:
    """One for each data set; a single one has the name ""."""
    found: Any = sets_of(options.dataset, "dataset", one=groups_of)
    sets = found if isinstance(found, dict) else {"": found}
    how: Any = {"metrics": options.metrics, "depths": options.depths}
    return {name: RerankEvaluator(groups, name=name, **how) for name, groups in sets.items()}
