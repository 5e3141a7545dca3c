"""``rerank-trainer annotate``: a teacher's scores for the groups of a data set."""

from __future__ import annotations

from rerank_trainer.cli.objects import counted, previewed, raw_rows_of, teacher_of
from rerank_trainer.cli.options import AnnotateOptions
from rerank_trainer.teachers.annotation.annotate import annotate, groups_to_score


def run(options: AnnotateOptions) -> None:
    """Score the groups; what was done is logged."""
    annotate(
        raw_rows_of(options.dataset, "dataset"),
        teacher_of(options.teacher, "teacher"),
        options.output_dir,
        column=options.column,
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        device=options.device,
    )


def plan(options: AnnotateOptions) -> dict[str, str]:
    """What would be scored; nobody is asked for a score."""
    return {
        "dataset": counted(groups_to_score(raw_rows_of(options.dataset, "dataset"))),
        "teacher": previewed(teacher_of(options.teacher, "teacher")),
        "output_dir": options.output_dir,
    }
