"""``rerank-trainer annotate``: a teacher's scores for the groups of a data set."""

from __future__ import annotations

from rerank_trainer.cli.objects import counted, groups_of, previewed, rows_of, teacher_of
from rerank_trainer.cli.options import AnnotateOptions
from rerank_trainer.teachers.annotation.annotate import annotate


def run(options: AnnotateOptions) -> None:
    """Score the groups; what was done is logged."""
    annotate(
        rows_of(options.dataset, "dataset"),
        teacher_of(options.teacher, "teacher"),
        options.output_dir,
        column=options.column,
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        device=options.device,
    )


def plan(options: AnnotateOptions) -> dict[str, str]:
    """What would be scored; nobody is asked for a score."""
    groups = groups_of(options.dataset, "dataset")
    return {
        "dataset": counted(groups),
        "teacher": previewed(teacher_of(options.teacher, "teacher")),
        "output_dir": options.output_dir,
    }
