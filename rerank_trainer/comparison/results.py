"""Results: what the finished cells of a comparison gave, by query, read back from its folder; and the failed ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rerank_trainer.comparison.cells import FAILURE_FILE, RESULT_FILE
from rerank_trainer.comparison.plan import (
    CEILING,
    FIRST_STAGE,
    OUT_OF_DOMAIN,
    SETTINGS_FILE,
    TEACHER,
    UNTRAINED,
    Cell,
)
from rerank_trainer.evaluation.results import RANKINGS, RERANKED, DepthResult

_RANKING_OF = {FIRST_STAGE: "first_stage", CEILING: "ceiling"}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one cell gave.

    Attributes:
        cell: Which one.
        sets: For each evaluation set what each first stage and depth gave; empty of a cell that failed.
        facts: ``seconds``, ``num_steps``, ``num_tokens``, ``num_groups``, ``num_parameters`` and others, as far as the
            cell has them; ``left_out`` says why an untrained student was not judged.
        error: Of a cell that failed.
    """

    cell: Cell
    sets: Mapping[str, tuple[DepthResult, ...]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Results:
    """All that is known of a comparison.

    Attributes:
        settings: As the folder has them.
        outcomes: Of the cells that are over.
    """

    settings: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def metric(self) -> str:
        """The one that tests, tables and advice are about."""
        return str(next(iter(self.settings["eval_sets"].values()))["metrics"][0])

    @property
    def students(self) -> list[str]:
        return list(self.settings["students"])

    @property
    def recipes(self) -> list[str]:
        return list(self.settings["recipes"])

    @property
    def reference(self) -> str:
        """The recipe that others are compared with: the first that learns from labels alone, or else the first."""
        kinds = {name: recipe["kind"] for name, recipe in self.settings["recipes"].items()}
        return next((name for name, kind in kinds.items() if kind == "contrast"), self.recipes[0])

    @property
    def has_plain_reference(self) -> bool:
        """Whether the reference learns from labels alone, so that it says what a teacher adds."""
        return bool(self.settings["recipes"][self.reference]["kind"] == "contrast")

    @property
    def sets(self) -> list[str]:
        """Evaluation sets, those in the domain first."""
        return sorted(self.settings["eval_sets"], key=self.is_out_of_domain)

    def is_out_of_domain(self, name: str) -> bool:
        return bool(self.settings["eval_sets"][name]["domain"] == OUT_OF_DOMAIN)

    def domains(self) -> dict[str, list[str]]:
        """The sets in and out of the domain, as far as there are any."""
        found: dict[str, list[str]] = {}
        for name in self.sets:
            found.setdefault(self.settings["eval_sets"][name]["domain"], []).append(name)
        return found

    def of(self, recipe: str, student: str = "") -> list[Outcome]:
        """The finished cells of a recipe (or "teacher", "untrained") and student, one a seed."""
        return [o for o in self.outcomes if o.error is None and (o.cell.recipe, o.cell.student) == (recipe, student)]

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    @property
    def left_out(self) -> dict[str, str]:
        """Students that were not judged untrained, and why."""
        return {o.cell.student: o.facts["left_out"] for o in self.outcomes if "left_out" in o.facts}

    def depths(self, eval_set: str) -> list[int]:
        return list(self.settings["eval_sets"][eval_set]["depths"])

    def by_query(
        self,
        recipe: str,
        eval_set: str,
        *,
        student: str = "",
        metric: str | None = None,
        depth: int | None = None,
        seed: int | None = None,
    ) -> dict[str, float]:
        """Query id to the metric, the mean over seeds; empty where no cell has it.

        Args:
            recipe: Also "first stage", "ceiling", "teacher" or "untrained".
            eval_set: Its name.
            student: Its name, where it is one.
            metric: None takes the first.
            depth: None takes the greatest.
            seed: One of them; None takes the mean.
        """
        ranking = _RANKING_OF.get(recipe, RERANKED)
        outcomes = [o for o in self.outcomes if o.error is None] if recipe in _RANKING_OF else self.of(recipe, student)
        outcomes = [o for o in outcomes if eval_set in o.sets and seed in (None, o.cell.seed)]
        if recipe in _RANKING_OF:
            outcomes = outcomes[:1]  # the same in all
        found = [_at(o.sets[eval_set], depth).by_query(metric or self.metric, ranking) for o in outcomes]
        return {query_id: float(np.mean([own[query_id] for own in found])) for query_id in found[0]} if found else {}

    def mean(self, recipe: str, eval_set: str, **which: Any) -> float:
        """The mean over queries and seeds, NaN where no cell has it; arguments as of :meth:`by_query`."""
        values = list(self.by_query(recipe, eval_set, **which).values())
        return float(np.mean(values)) if values else math.nan

    def pooled(self, recipe: str, eval_sets: list[str], **which: Any) -> dict[tuple[str, str], float]:
        """(set, query id) to the metric over several sets; empty where one of them is missing."""
        found = {name: self.by_query(recipe, name, **which) for name in eval_sets}
        if not all(found.values()):
            return {}
        return {(name, query_id): value for name, own in found.items() for query_id, value in own.items()}


def _at(results: tuple[DepthResult, ...], depth: int | None) -> DepthResult:
    own = [r for r in results if r.first_stage == results[0].first_stage]
    return own[-1] if depth is None else next(r for r in own if r.depth == depth)


def read_results(folder: str | Path) -> Results:
    """What a comparison has written so far; cells that are not finished are not there.

    Raises:
        ValueError: If it is not the folder of a comparison.
    """
    path = Path(folder, SETTINGS_FILE)
    if not path.is_file():
        raise ValueError(f"{folder}: expected the folder of a comparison, found no {SETTINGS_FILE} in it")
    settings = json.loads(path.read_text(encoding="utf-8"))
    found = [_outcome(own, settings) for own in sorted(Path(folder, "cells").iterdir()) if own.is_dir()]
    order = {name: place for place, name in enumerate([TEACHER, UNTRAINED, *settings["recipes"]])}
    students = {name: place for place, name in enumerate(["", *settings["students"]])}
    known = [o for o in found if o is not None and o.cell.recipe in order and o.cell.student in students]
    known.sort(key=lambda o: (students[o.cell.student], order[o.cell.recipe], o.cell.seed or 0))
    return Results(settings, tuple(known))


def _outcome(folder: Path, settings: Mapping[str, Any]) -> Outcome | None:
    if (folder / RESULT_FILE).exists():
        facts = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        shares = facts.pop("found_share")
        sets = {name: _read(folder / f"{name}.parquet", own) for name, own in shares.items()}
        return Outcome(Cell(**facts.pop("cell")), sets, facts)
    if (folder / FAILURE_FILE).exists():
        failure = json.loads((folder / FAILURE_FILE).read_text(encoding="utf-8"))
        return Outcome(Cell(**failure["cell"]), error=failure["error"])
    return None


def _read(path: Path, shares: list[dict[str, Any]]) -> tuple[DepthResult, ...]:
    """The file that ``Evaluation.to_parquet`` has written."""
    columns = pq.read_table(path).to_pydict()
    stages, depths, query_ids = (np.array(columns.pop(name)) for name in ("first_stage", "depth", "query_id"))
    values = {name: np.array(column, dtype=np.float64) for name, column in columns.items()}
    prefixes = {ranking: "" if ranking == RERANKED else f"{ranking}_" for ranking in RANKINGS}
    others = tuple(prefix for prefix in prefixes.values() if prefix)
    metrics = [name for name in values if not name.startswith(others)]
    found = []
    for own in shares:
        rows = (stages == own["first_stage"]) & (depths == own["depth"])
        of_rankings = {r: {m: values[f"{prefix}{m}"][rows] for m in metrics} for r, prefix in prefixes.items()}
        where = {"first_stage": own["first_stage"], "depth": own["depth"], "found_share": own["share"]}
        found.append(DepthResult(**where, query_ids=query_ids[rows].tolist(), values=of_rankings))
    return tuple(found)
