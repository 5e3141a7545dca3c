"""The comparison itself: cells are run one after the other, also by several jobs at once, and all of it is written."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_trainer.comparison import tables
from rerank_trainer.comparison.advice import Advice, advise
from rerank_trainer.comparison.budgets import Budget
from rerank_trainer.comparison.cells import FAILURE_FILE, RESULT_FILE, is_over, run_cell
from rerank_trainer.comparison.claims import STALE_AFTER, claim, holder
from rerank_trainer.comparison.contrasts import Contrast, contrasts
from rerank_trainer.comparison.plan import FIRST_STAGE, SETTINGS_FILE, TEACHER, Cell, Plan
from rerank_trainer.comparison.planning import make_plan, refuse_what_cannot_open
from rerank_trainer.comparison.progress import ComparisonProgress, without_other_bars
from rerank_trainer.comparison.recipes import RECIPES, Recipe
from rerank_trainer.comparison.report import as_html
from rerank_trainer.comparison.results import Results, read_results
from rerank_trainer.data.whole_files import write_whole
from rerank_trainer.trainers.arguments import RerankTrainingArguments

logger = logging.getLogger(__name__)

TABLE, REPORT = "table", "report.html"
_WAIT = 2.0  # seconds between looks at a cell that another job runs and ours needs


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found; prints as the table, what failed, and the advice.

    Attributes:
        folder: Where everything is kept.
        results: By query; see :class:`Results`.
        contrasts: All tests.
        advice: What follows from them by the rules of ``docs/compare.md``.
    """

    folder: Path
    results: Results
    contrasts: Sequence[Contrast]
    advice: Sequence[Advice]

    @classmethod
    def read(cls, folder: str | Path) -> Comparison:
        """What the finished cells of a folder say, also while jobs still run.

        Raises:
            ValueError: If it is not the folder of a comparison.
        """
        results = read_results(folder)
        return cls(Path(folder), results, contrasts(results), advise(results))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One line for each model, evaluation set and metric, as the CSV file has them."""
        return tables.figures(self.results, self.contrasts)

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.folder / REPORT

    def write(self, *, texts: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Write the tables, the charts (where matplotlib is installed) and the report into the folder.

        Args:
            texts: For each evaluation set the texts of its queries by id, to stand in the report; None shows ids alone.
        """
        rows, lines = tables.table_rows(self.results, self.contrasts), self.rows
        files = {
            f"{TABLE}.md": tables.as_markdown(self.results, rows),
            f"{TABLE}.tex": tables.as_latex(self.results, rows),
            f"{TABLE}.csv": tables.as_csv(lines),
            f"{TABLE}.json": tables.as_json(lines),
        }
        how: Any = {"rows": rows, "contrasts": self.contrasts, "advice": self.advice, "texts": texts}
        files[REPORT] = as_html(self.results, **how, charts=self._charts())
        for name, text in files.items():
            write_whole(self.folder / name, text.encode())

    def _charts(self) -> dict[str, str]:
        """Write the charts; as elements of a page, by name."""
        try:
            from rerank_trainer.comparison.charts import draw_charts, inline_svg, save_chart

            drawn = draw_charts(self.results, self.contrasts)
        except ImportError as error:
            logger.warning("the report has no charts: %s", error)
            return {}
        for name, figure in drawn.items():
            for ending in ("png", "svg"):
                save_chart(figure, self.folder / f"{name}.{ending}")
        return {name: inline_svg((self.folder / f"{name}.svg").read_text("utf-8"), name) for name in drawn}

    def __str__(self) -> str:
        table = tables.as_markdown(self.results, tables.table_rows(self.results, self.contrasts))
        failed = [f"failed: {outcome.cell}: {outcome.error}" for outcome in self.results.failures]
        return "\n".join([table, *failed, *map(str, self.advice)])


def compare(
    students: Any,
    teacher: Any,
    train: Any,
    eval_sets: Mapping[str, Any],
    *,
    recipes: Sequence[Recipe | str | Mapping[str, Any]] = tuple(RECIPES),
    seeds: int | Sequence[int] = 3,
    budget: Budget | Mapping[str, Any],
    output_dir: str | Path,
    out_of_domain: Sequence[str] = (),
    metrics: Sequence[str] = ("nDCG@10", "RR@10"),
    depths: int | Sequence[int] | None = None,
    args: RerankTrainingArguments | Mapping[str, Any] | None = None,
    show_texts: bool = False,
    save_models: bool = False,
    retry_failed: bool = False,
    stale_after: float = STALE_AFTER,
    show_progress_bar: bool | None = None,
) -> Comparison:
    """Every student trained by every recipe at equal budget from the same start, judged beside teacher and first stage.

    A cell is one student, recipe and seed. Under one seed all recipes begin with the same weights and see the same
    groups in the same order; two stages share the budget and the order. A cell that is finished is never repeated, so
    the call may be stopped and made again, with more seeds, recipes or students too. Several jobs that are given the
    same ``output_dir`` divide the cells among themselves. A cell that fails is kept with its error and loses no other.

    Args:
        students: Hub ids, folders, rerankers or :class:`Student` objects, in a list or a dict by name; or one of them.
        teacher: A Hub id or folder, a :class:`Reranker` or any :class:`Teacher`; it scores the training groups once.
            None where the rows have a column ``teacher_scores``, or no recipe needs one.
        train: Training rows in any layout that :func:`load_groups` recognises, or their path or Hub id.
        eval_sets: By name: labelled groups, a path, a dict of groups by first stage, or a :class:`RerankEvaluator`.
        recipes: Names ("cl", "kd", "cl+kd", "cl>kd", "kd>cl"), :class:`Recipe` objects, or mappings of their arguments.
        seeds: How many (0, 1, ...), or which.
        budget: Of each recipe: :class:`Steps`, :class:`Seconds` or :class:`Tokens`; or a mapping ``{"steps": 500}``.
        output_dir: The folder of all cells, tables, charts and the report.
        out_of_domain: Names of the evaluation sets that are out of the domain of ``train``.
        metrics: The first is what tests, tables and advice are about. An evaluator that is given has its own.
        depths: How many candidates are reranked; several give a curve.
        args: Of :class:`RerankTrainingArguments` for all cells, as an object or a mapping.
        show_texts: Whether the report shows the texts of queries that were won and lost.
        save_models: Whether each cell keeps its trained model.
        retry_failed: Whether cells that failed before are run again.
        stale_after: Seconds after which a cell of a job on another machine that gives no sign of life is taken over.
        show_progress_bar: One bar for all cells; None shows it in a terminal.

    Raises:
        ValueError: If a recipe is not known, needs a teacher and there is none, an evaluation set has nothing relevant,
            a model given by name cannot be opened, arguments are decided elsewhere, or the folder was made with other
            settings (the difference is shown).
        OSError: If the disk is full; what is finished stays readable.

    >>> compare("student", None, "train.jsonl", {}, budget={"steps": 5}, output_dir="out", recipes=["cl", "dk"])
    Traceback (most recent call last):
    ValueError: recipe 'dk' is not known; nearest: 'kd'.
    Expected a Recipe or one of ['cl', 'kd', 'cl+kd', 'cl>kd', 'kd>cl']
    """
    plan = make_plan(
        students,
        teacher,
        train,
        eval_sets,
        recipes=recipes,
        seeds=seeds,
        budget=budget,
        output_dir=output_dir,
        out_of_domain=out_of_domain,
        metrics=metrics,
        depths=depths,
        args=args,
        save_models=save_models,
    )
    refuse_what_cannot_open(plan)
    _write_settings(plan, stale_after)
    if retry_failed:
        for cell in plan.cells:
            (plan.cell_folder(cell) / FAILURE_FILE).unlink(missing_ok=True)
    _run(plan, stale_after=stale_after, show_progress_bar=show_progress_bar)
    comparison = Comparison.read(output_dir)
    _warn_of_teacher(comparison.results)
    comparison.write(texts=_texts(plan) if show_texts else None)
    return comparison


def _write_settings(plan: Plan, stale_after: float) -> None:
    """Write them, one job after the other: each reads what is there and adds its students, recipes and seeds."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    while (own := claim(plan.folder / f"{SETTINGS_FILE}.lock", stale_after=stale_after)) is None:
        time.sleep(_WAIT / 10)
    with own:
        plan.write_settings()


def _run(plan: Plan, *, stale_after: float, show_progress_bar: bool | None) -> None:
    """Run what no other job runs, until nothing is left that this one could do."""
    taken = {cell: _seconds(plan, cell) for cell in plan.cells if is_over(plan, cell)}
    with without_other_bars(), ComparisonProgress(plan.cells, taken, show=show_progress_bar) as progress:
        while todo := [cell for cell in plan.cells if not is_over(plan, cell)]:
            # a list, not a generator: all that can be run now is tried before the folder is looked at again
            if any([_run_if_free(plan, cell, stale_after, progress) for cell in todo if not _waits(plan, cell)]):
                continue
            if not any(_waits(plan, cell) for cell in todo):
                held = [f"{cell} ({holder(_lock(plan, cell))})" for cell in todo]
                logger.info("%d cells are run by other jobs: %s", len(todo), ", ".join(held))
                return
            time.sleep(_WAIT)  # another job asks the teacher, whose scores are needed


def _waits(plan: Plan, cell: Cell) -> bool:
    """Whether the cell needs scores that the teacher has not given yet."""
    recipe = plan.recipes.get(cell.recipe)
    return recipe is not None and recipe.reads_teacher and not is_over(plan, Cell(TEACHER))


def _lock(plan: Plan, cell: Cell) -> Path:
    folder = plan.cell_folder(cell)
    return folder.with_name(f"{folder.name}.lock")


def _run_if_free(plan: Plan, cell: Cell, stale_after: float, progress: ComparisonProgress) -> bool:
    """Whether this job has run the cell."""
    with _claimed(_lock(plan, cell), stale_after) as is_ours:
        if is_over(plan, cell):  # another job has finished it since we looked
            progress.over(cell)
            return False
        if not is_ours:
            return False
        progress.begin(cell)
        run_cell(plan, cell, progress.on_share)
        progress.over(cell)
    return True


@contextmanager
def _claimed(lock: Path, stale_after: float) -> Iterator[bool]:
    own = claim(lock, stale_after=stale_after)
    if own is None:
        yield False
        return
    with own:
        yield True


def _seconds(plan: Plan, cell: Cell) -> float:
    path = plan.cell_folder(cell) / RESULT_FILE
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds_in_all"]) if path.exists() else 0.0


def _warn_of_teacher(results: Results) -> None:
    for name in results.sets:
        ours, theirs = (results.mean(ranking, name) for ranking in (TEACHER, FIRST_STAGE))
        if ours < theirs:
            logger.warning(
                "%s: the teacher ranks worse than the first stage, %s %.3f against %.3f",
                name,
                results.metric,
                ours,
                theirs,
            )


def _texts(plan: Plan) -> dict[str, dict[str, str]]:
    return {
        name: dict(zip(evaluator.lists[0].query_ids, evaluator.lists[0].groups["query"][:], strict=True))
        for name, evaluator in plan.evaluators.items()
    }
