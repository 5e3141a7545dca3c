"""``rerank-trainer compare``: students by every recipe at equal budget, judged, with tables, charts and a report."""

from __future__ import annotations

from typing import Any

from rerank_trainer.cli import Incomplete
from rerank_trainer.cli.arguments import read_mapping
from rerank_trainer.cli.objects import groups_of, previewed, sets_of, teacher_of
from rerank_trainer.cli.options import CompareOptions
from rerank_trainer.comparison.compare import compare
from rerank_trainer.comparison.planning import make_plan
from rerank_trainer.models.preview import preview_checkpoint

_OF_RUNS = ("show_texts", "retry_failed")  # that change nothing of what is planned


def run(options: CompareOptions) -> None:
    """Compare, and print the table and the advice."""
    given = _given(options)
    try:
        comparison = compare(**given, show_progress_bar=True, **{name: getattr(options, name) for name in _OF_RUNS})
    except OSError as error:
        raise Incomplete(f"the comparison stopped: {error}. What is finished stays") from error
    print(comparison)
    print(f"the report: {comparison.report}")
    if failed := len(comparison.results.failures):
        cells = "1 cell" if failed == 1 else f"{failed} cells"
        raise Incomplete(f"{cells} failed, and the others are judged; --retry_failed runs what failed again")


def plan(options: CompareOptions) -> dict[str, str]:
    """What would be compared, checked without weights."""
    planned = make_plan(**_given(options))
    students = [f"{name}: {preview_checkpoint(str(own.model))}" for name, own in planned.students.items()]
    teacher = {} if planned.teacher is None else {"teacher": previewed(planned.teacher)}
    return {**planned.describe(), "students": "; ".join(students), **teacher}


def _given(options: CompareOptions) -> dict[str, Any]:
    """The arguments of :func:`compare`."""
    return {
        "students": [_named(each, "students") for each in options.students],
        "teacher": None if options.teacher is None else teacher_of(options.teacher, "teacher"),
        "train": groups_of(options.train, "train"),
        # a set is its groups, or those of several first stages by name
        "eval_sets": sets_of(
            options.eval_sets, "eval_sets", one=lambda part, where: sets_of(part, where, one=groups_of)
        ),
        "recipes": [_named(each, "recipes") for each in options.recipes],
        "seeds": options.seeds,
        "budget": read_mapping(options.budget, "budget"),
        "output_dir": options.output_dir,
        "out_of_domain": options.out_of_domain or (),
        "metrics": options.metrics,
        "depths": options.depths,
        "args": None if options.args is None else read_mapping(options.args, "args"),
        "save_models": options.save_models,
    }


def _named(given: str, where: str) -> Any:
    """A name as it is, or the mapping that a text holds."""
    return read_mapping(given, where) if given.startswith("{") else given
