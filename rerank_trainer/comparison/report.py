"""The report: one HTML page with all that a comparison found, which opens from disk without a network.

Its words and looks stand in ``report.html``; here are the facts.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from rerank_trainer.comparison.advice import Advice
from rerank_trainer.comparison.contrasts import Contrast
from rerank_trainer.comparison.environment import environment
from rerank_trainer.comparison.plan import CEILING, FIRST_STAGE, TEACHER
from rerank_trainer.comparison.recipes import CONTRASTIVE, DISTILL
from rerank_trainer.comparison.results import Results
from rerank_trainer.comparison.tables import Row, legend

NUM_QUERIES = 10  # wins and losses that are shown, each
_TEMPLATE = Path(__file__).with_name("report.html")
_METHODS = {CONTRASTIVE: "learns from labels", DISTILL: "learns from the teacher"}
# Under each chart.
_CAPTIONS = {
    "gain": "What recipes with a teacher gain, against the teacher's lead over the same student without it. A point is "
    "one student on one evaluation set, with the interval over queries.",
    "seconds": "The metric, mean over the sets of a domain, against the seconds of training (mean over seeds; without "
    "scoring by the teacher). Lines: teacher and first stage.",
    "depth": "The metric against the number of candidates that are reranked.",
}


def as_html(
    results: Results,
    *,
    rows: Sequence[Row],
    contrasts: Sequence[Contrast],
    advice: Sequence[Advice],
    charts: Mapping[str, str],
    texts: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The page.

    Args:
        results: What was found.
        rows: Of the table.
        contrasts: All tests.
        advice: What follows.
        charts: SVG elements by name, to stand in the page.
        texts: For each evaluation set the texts of its queries by id; None shows ids alone.
    """
    engine = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = engine.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        results=results,
        legend=legend(results),
        headings=[(name, results.is_out_of_domain(name)) for name in results.sets],
        rows=rows,
        advice=_by_subject(advice),
        charts=[(name, svg, _CAPTIONS[name]) for name, svg in charts.items()],
        contrasts=contrasts,
        queries=wins_and_losses(results, texts or {}),
        cells=_cells(results),
        failures=[(str(outcome.cell), outcome.error) for outcome in results.failures],
        warnings=_warnings(results),
        settings=json.dumps(results.settings, indent=1),
        environment=_environments(results),
        recipes=_recipes(results),
        lists=_lists(results),
    )


def _environments(results: Results) -> dict[str, str]:
    """What the finished cells have noted, each value once, with the number of its cells where there are several.

    Where no cell has noted anything, because an older version has run them, it is the environment of this process.
    """
    noted = [o.facts["environment"] for o in results.outcomes if "environment" in o.facts] or [environment()]
    found = {}
    for name in dict.fromkeys(name for own in noted for name in own):
        counts = Counter(own[name] for own in noted if name in own)
        shown = [
            value if len(counts) == 1 else f"{value} ({num} of {len(noted)} cells)"
            for value, num in counts.most_common()
        ]
        found[name] = ", ".join(shown)
    return found


def wins_and_losses(results: Results, texts: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """For each student and set the best other recipe against the reference: the queries that differ most."""
    found = []
    for student in results.students:
        for name in results.sets:
            means = {
                recipe: results.mean(recipe, name, student=student)
                for recipe in results.recipes
                if recipe != results.reference
            }
            known = {recipe: mean for recipe, mean in means.items() if not math.isnan(mean)}
            theirs = results.by_query(results.reference, name, student=student)
            if not known or not theirs:
                continue
            recipe = max(known, key=lambda recipe: known[recipe])
            ours = results.by_query(recipe, name, student=student)
            lines = [(ours[i] - theirs[i], ours[i], theirs[i], i, texts.get(name, {}).get(i, "")) for i in ours]
            lines.sort(key=lambda line: (-abs(line[0]), line[3]))
            wins, losses = ([line for line in lines if sign * line[0] > 0] for sign in (1, -1))
            counts = {"num_wins": len(wins), "num_losses": len(losses), "num_queries": len(lines)}
            about = {"student": student, "set": name, "recipe": recipe, "against": results.reference}
            found.append({**about, **counts, "wins": wins[:NUM_QUERIES], "losses": losses[:NUM_QUERIES]})
    return found


def _by_subject(advice: Sequence[Advice]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in advice:
        found.setdefault(each.about, []).append(each.text)
    return found


def _cells(results: Results) -> list[dict[str, Any]]:
    names = ("num_steps", "num_groups", "num_tokens", "seconds", "num_parameters")
    return [
        {"name": str(outcome.cell), **{name: outcome.facts.get(name) for name in names}}
        for outcome in results.outcomes
        if outcome.error is None and "left_out" not in outcome.facts
    ]


def _recipes(results: Results) -> dict[str, str]:
    """What each recipe does, in words: its stages with their arguments, and their shares where there are several."""
    found = {}
    for name, recipe in results.settings["recipes"].items():
        stages = recipe.get("stages", ())
        total = sum(stage["share"] for stage in stages)
        said = []
        for stage in stages:
            own = [f"{argument}={value}" for argument, value in stage["arguments"].items()]
            own += ["an objective of its own"] if stage["objective"] else []
            share = f"{stage['share'] / total:.0%} of the budget " if len(stages) > 1 else ""
            said.append(f"{share}{_METHODS[stage['method']]}" + (f" ({', '.join(own)})" if own else ""))
        found[name] = ", then ".join(said)
    return {name: text for name, text in found.items() if text}


def _lists(results: Results) -> list[dict[str, Any]]:
    """What the first stage leaves to each set."""
    return [
        {
            "set": name,
            "num_queries": len(results.by_query(FIRST_STAGE, name)),
            **{key: results.mean(key, name) for key in (FIRST_STAGE, CEILING)},
            "depth": results.depths(name)[-1],
        }
        for name in results.sets
    ]


def _warnings(results: Results) -> list[str]:
    found = [warning for outcome in results.of(TEACHER) for warning in outcome.facts.get("warnings", ())]
    reasons: dict[str, list[str]] = {}
    for student, why in results.left_out.items():
        reasons.setdefault(why, []).append(student)
    return found + [f"Not judged untrained: {', '.join(students)}; {why}." for why, students in reasons.items()]
