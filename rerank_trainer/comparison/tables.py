"""Tables: students by recipes by evaluation sets, best and significant marked, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rerank_trainer.comparison.contrasts import ALPHA, REFERENCE, Contrast
from rerank_trainer.comparison.plan import FIRST_STAGE, TEACHER, UNTRAINED
from rerank_trainer.comparison.results import Results
from rerank_trainer.evaluation.significance import mean_interval

BETTER, WORSE, FAILED = "↑", "↓", "failed"


@dataclass(frozen=True)
class Field:
    """A figure of the table.

    Attributes:
        value: The mean over queries and seeds; NaN where there is none.
        best: Whether no recipe of the student is better on this set.
        mark: "↑" or "↓" where it is significantly better or worse than the reference recipe.
        failed: Whether all its cells failed.
    """

    value: float
    best: bool = False
    mark: str = ""
    failed: bool = False

    @property
    def text(self) -> str:
        return FAILED if self.failed else "" if math.isnan(self.value) else f"{self.value:.3f}{self.mark}"


@dataclass(frozen=True)
class Row:
    """A line of the table: the student ("" of what is none), the recipe, its seeds, and a field a set."""

    student: str
    recipe: str
    seeds: str
    fields: tuple[Field, ...]


def table_rows(results: Results, found: Sequence[Contrast]) -> list[Row]:
    """The lines: first stage, teacher, then each student, untrained and by each recipe."""
    marks = {
        (c.student, c.recipe, c.eval_set): {1: BETTER, -1: WORSE, 0: ""}[c.verdict]
        for c in found
        if c.family == REFERENCE
    }
    rows = [_plain_row(results, FIRST_STAGE, "")]
    if any(outcome.cell.recipe == TEACHER for outcome in results.outcomes):
        rows.append(_plain_row(results, TEACHER, ""))
    for student in results.students:
        if any(outcome.sets for outcome in results.of(UNTRAINED, student)):
            rows.append(_plain_row(results, UNTRAINED, student))
        values = {
            (recipe, name): results.mean(recipe, name, student=student)
            for recipe in results.recipes
            for name in results.sets
        }
        for recipe in results.recipes:
            done, failed = len(results.of(recipe, student)), _num_failed(results, recipe, student)
            fields = []
            for name in results.sets:
                own, others = values[recipe, name], [values[other, name] for other in results.recipes]
                best = not math.isnan(own) and round(own, 3) >= round(np.nanmax(others), 3)
                fields.append(Field(own, best, marks.get((student, recipe, name), ""), failed > 0 and not done))
            seeds = f"{done}" + (f" ({failed} failed)" if failed else "")
            rows.append(Row(student, recipe, seeds, tuple(fields)))
    return rows


def _plain_row(results: Results, recipe: str, student: str) -> Row:
    failed = _num_failed(results, recipe, student) > 0
    fields = (Field(results.mean(recipe, name, student=student), failed=failed) for name in results.sets)
    return Row(student, recipe, "", tuple(fields))


def _num_failed(results: Results, recipe: str, student: str) -> int:
    return sum((o.cell.recipe, o.cell.student) == (recipe, student) for o in results.failures)


def legend(results: Results) -> str:
    """What the marks mean."""
    return (
        f"{results.metric}, mean over queries and seeds. Bold: the best recipe of a student. {BETTER} {WORSE}: better "
        f"or worse than {results.reference} (paired randomisation test over queries, p < {ALPHA:g} after Holm's "
        "correction)."
    )


def _headings(results: Results) -> list[str]:
    return [f"{name} (out of domain)" if results.is_out_of_domain(name) else name for name in results.sets]


def as_markdown(results: Results, rows: Sequence[Row]) -> str:
    """The table in Markdown, its legend below."""
    lines = [["student", "recipe", "seeds", *_headings(results)]]
    for row in rows:
        fields = [f"**{field.text}**" if field.best else field.text for field in row.fields]
        lines.append([row.student, row.recipe, row.seeds, *fields])
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in escaped)) for i in range(len(escaped[0]))]
    drawn = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in escaped]
    rule = ["-" * w if place < 2 else "-" * (w - 1) + ":" for place, w in enumerate(widths)]
    drawn.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join([*drawn, "", legend(results)]) + "\n"


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    ">": r"$>$",
    "<": r"$<$",
    BETTER: r"$^{\uparrow}$",
    WORSE: r"$^{\downarrow}$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def as_latex(results: Results, rows: Sequence[Row]) -> str:
    """The table in LaTeX, for the package booktabs."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(legend(results))}}}",
        rf"\begin{{tabular}}{{ll{'r' * (len(results.sets) + 1)}}}",
        r"\toprule",
        " & ".join(map(_latex, ["student", "recipe", "seeds", *_headings(results)])) + r" \\",
    ]
    last = None
    for row in rows:
        if last != row.student or last is None:
            lines.append(r"\midrule")
        shown = row.student if row.student != last else ""
        fields = [rf"\textbf{{{_latex(field.text)}}}" if field.best else _latex(field.text) for field in row.fields]
        lines.append(" & ".join([_latex(shown), _latex(row.recipe), _latex(row.seeds), *fields]) + r" \\")
        last = row.student
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def figures(results: Results, found: Sequence[Contrast]) -> list[dict[str, Any]]:
    """One line for each model, evaluation set and metric, with all that is known of it; what CSV and JSON hold."""
    lines = []
    models = [(FIRST_STAGE, ""), (TEACHER, ""), *((UNTRAINED, student) for student in results.students)]
    models += [(recipe, student) for student in results.students for recipe in results.recipes]
    for recipe, student in models:
        for name in results.sets:
            for metric in results.settings["eval_sets"][name]["metrics"]:
                lines += _figures(results, found, recipe, student, name, metric)
    return lines


def _figures(
    results: Results, found: Sequence[Contrast], recipe: str, student: str, name: str, metric: str
) -> list[dict[str, Any]]:
    """None or one."""
    values = results.by_query(recipe, name, student=student, metric=metric)
    failed = [
        outcome.error
        for outcome in results.failures
        if (outcome.cell.recipe, outcome.cell.student) == (recipe, student)
    ]
    if not values and not failed:
        return []
    outcomes = results.of(recipe, student)
    seeds = [o.cell.seed for o in outcomes if o.cell.seed is not None]
    of_seeds = [results.mean(recipe, name, student=student, metric=metric, seed=seed) for seed in seeds]
    low, high = mean_interval(values) if len(values) > 1 else (math.nan, math.nan)
    line: dict[str, Any] = {
        "student": student,
        "recipe": recipe,
        "eval_set": name,
        "domain": results.settings["eval_sets"][name]["domain"],
        "metric": metric,
        "mean": float(np.mean(list(values.values()))) if values else math.nan,
        "low": low,
        "high": high,
        "num_queries": len(values),
        "num_seeds": len(seeds),
        "std_of_seeds": float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else math.nan,
        "train_seconds": _mean_fact(outcomes, "seconds"),
        "num_steps": _mean_fact(outcomes, "num_steps"),
        "num_tokens": _mean_fact(outcomes, "num_tokens"),
        "num_failed": len(failed),
        "error": failed[0] if failed else "",
    }
    if metric == results.metric:
        for contrast in found:
            if (contrast.recipe, contrast.student, contrast.eval_set) == (recipe, student, name):
                label, test = contrast.against.replace(" ", "_"), contrast.test
                line |= {f"minus_{label}": test.difference, f"p_{label}": contrast.p_value}
                line |= {f"low_{label}": test.low, f"high_{label}": test.high, f"detectable_{label}": test.detectable}
                line |= {f"wins_{label}": test.num_wins, f"losses_{label}": test.num_losses}
    return [line]


def _mean_fact(outcomes: Sequence[Any], name: str) -> float:
    values = [outcome.facts[name] for outcome in outcomes if name in outcome.facts]
    return float(np.mean(values)) if values else math.nan


def as_csv(lines: Sequence[dict[str, Any]]) -> str:
    """The lines of :func:`figures` as CSV; what a line has not is empty."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if _is_nan(value) else value for name, value in line.items()} for line in lines)
    return file.getvalue()


def as_json(lines: Sequence[dict[str, Any]]) -> str:
    """The lines of :func:`figures` as JSON; what is not a number is null."""
    plain = [{name: None if _is_nan(value) else value for name, value in line.items()} for line in lines]
    return json.dumps(plain, indent=1) + "\n"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
