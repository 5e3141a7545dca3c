"""Made-up results: comparisons whose figures by query, and so their truth, are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rerank_trainer.comparison.plan import CEILING, FIRST_STAGE, IN_DOMAIN, OUT_OF_DOMAIN, TEACHER, UNTRAINED, Cell
from rerank_trainer.comparison.results import Outcome, Results
from rerank_trainer.evaluation.results import DepthResult

KINDS = {"cl": "contrast", "kd": "distil", "cl+kd": "mix"}


def noise(num: int, std: float, seed: int) -> np.ndarray:
    """Numbers of mean exactly 0 and standard deviation exactly ``std``."""
    drawn = np.random.default_rng(seed).normal(size=num)
    return (drawn - drawn.mean()) / drawn.std(ddof=1) * std


def made_up(
    models: Mapping[tuple[str, str], Mapping[str, Any]],
    *,
    bounds: Mapping[str, Mapping[str, Any]],
    out_of_domain: Sequence[str] = (),
    depths: Sequence[int] = (10,),
    failed: Sequence[Cell] = (),
    facts: Mapping[str, Any] | None = None,
    metric: str = "nDCG@10",
) -> Results:
    """Results of models by (recipe, student).

    Args:
        models: For each the values of the queries by set; of several depths a dict of them by depth; of several seeds a
            list of such.
        bounds: "first stage" and "ceiling", likewise by set.
        out_of_domain: Of the sets.
        depths: All judged.
        failed: Cells that failed.
        facts: Of each cell.
        metric: The only one.
    """
    sets = list(bounds[FIRST_STAGE])
    settings = {
        "budget": {"steps": 10},
        "seeds": [0],
        "students": {student: {} for _, student in models if student},
        "recipes": {name: {"kind": KINDS[name]} for name, _ in models if name in KINDS},
        "eval_sets": {
            name: {
                "metrics": [metric],
                "depths": list(depths),
                "domain": OUT_OF_DOMAIN if name in out_of_domain else IN_DOMAIN,
            }
            for name in sets
        },
    }

    def at(value: Any, depth: int) -> np.ndarray:
        return np.asarray(value[depth] if isinstance(value, Mapping) else value, dtype=float)

    def of_set(name: str, value: Any) -> tuple[DepthResult, ...]:
        found = []
        for depth in depths:
            reranked = at(value, depth)
            rankings = {"reranked": reranked}
            rankings |= {k: at(bounds[b][name], depth) for k, b in (("first_stage", FIRST_STAGE), ("ceiling", CEILING))}
            values = {ranking: {metric: own} for ranking, own in rankings.items()}
            found.append(DepthResult("bm25", depth, [f"q{i}" for i in range(len(reranked))], 1.0, values))
        return tuple(found)

    outcomes = []
    for (recipe, student), by_set in models.items():
        of_seeds = by_set if isinstance(by_set, list) else [by_set]
        for seed, own in enumerate(of_seeds):
            cell = Cell(recipe, student, None if recipe in (TEACHER, UNTRAINED) else seed)
            outcomes.append(Outcome(cell, {name: of_set(name, value) for name, value in own.items()}, facts or {}))
    outcomes += [Outcome(cell, error="RuntimeError: it broke") for cell in failed]
    return Results(settings, tuple(outcomes))
