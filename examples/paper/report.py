"""Report: the table of all models on all sets, and whether distillation differs from contrastive training by model.

python report.py recipe.yaml     # report.md and report.json in the work folder
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import asdict
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
from plan import CONTRASTIVE, DISTILLED, Recipe, Run, write_json

from rerank_trainer import PairedTest, holm, paired_test

FIRST_STAGE = "first stage"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    recipe = Recipe.read(parser.parse_args(arguments).recipe)
    figures, tests = all_figures(recipe), all_tests(recipe)
    corrected = holm({name: test.p_value for name, test in tests.items()})
    text = as_markdown(recipe, figures, tests, corrected)
    path = recipe.work_dir / "report.md"
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    compared = [
        {"model": model, "set": name, **asdict(test), "corrected_p_value": corrected[model, name]}
        for (model, name), test in tests.items()
    ]
    content = {"metric": metric_of(recipe), "figures": figures, "distilled_minus_contrastive": compared}
    write_json(recipe.work_dir / "report.json", _without_infinity(content))
    print(text)


def metric_of(recipe: Recipe) -> str:
    """The metric that is shown and tested: the recipe's first."""
    return recipe.evaluate["metrics"][0]


def all_figures(recipe: Recipe) -> dict[str, dict[str, float]]:
    """The means over queries at the greatest depth: of each model, and of the first stage, on each set."""
    found: dict[str, dict[str, float]] = {FIRST_STAGE: {}, **{str(run): {} for run in recipe.runs}}
    for name in recipe.evaluate["sets"]:
        for run in recipe.runs:
            rows = json.loads(recipe.result_files(run, name)[0].read_text(encoding="utf-8"))["rows"]
            deepest = [row for row in rows if row["depth"] == max(row["depth"] for row in rows)]
            by_ranking = {row["ranking"]: row[metric_of(recipe)] for row in deepest}
            found[str(run)][name] = by_ranking["reranked"]
            found[FIRST_STAGE][name] = by_ranking["first_stage"]
    return found


def all_tests(recipe: Recipe) -> dict[tuple[str, str], PairedTest]:
    """For each student and set, by query: the distilled model minus the contrastive one."""
    return {
        (model, name): paired_test(
            by_query(recipe, Run(model, DISTILLED), name), by_query(recipe, Run(model, CONTRASTIVE), name)
        )
        for model in recipe.students
        for name in recipe.evaluate["sets"]
    }


def by_query(recipe: Recipe, run: Run, name: str) -> dict[str, float]:
    """The metric of each query about which something relevant is known, at the greatest depth."""
    rows = pq.read_table(recipe.result_files(run, name)[1]).to_pylist()
    depth, metric = max(row["depth"] for row in rows), metric_of(recipe)
    values = {row["query_id"]: row[metric] for row in rows if row["depth"] == depth}
    return {query_id: value for query_id, value in values.items() if not math.isnan(value)}


def as_markdown(
    recipe: Recipe,
    figures: dict[str, dict[str, float]],
    tests: dict[tuple[str, str], PairedTest],
    corrected: dict[Any, float],
) -> str:
    """Both tables; a mean over sets counts each set once."""
    sets = recipe.evaluate["sets"]
    of_domain = {
        domain: [name for name, options in sets.items() if bool(options.get("in_domain")) == is_inside]
        for domain, is_inside in (("in domain", True), ("out of domain", False))
    }
    means = {domain: names for domain, names in of_domain.items() if names}
    lines = [f"# {metric_of(recipe)} of the first {recipe.evaluate['depth']} candidates", ""]
    lines += _table_head(["model", *sets, *(f"mean {domain}" for domain in means)])
    for model, values in figures.items():
        own = [values[name] for name in sets] + [mean(values[name] for name in names) for names in means.values()]
        lines.append(f"| {model} | {' | '.join(f'{value:.4f}' for value in own)} |")
    lines += ["", "Distilled minus contrastive, paired by query; p by randomisation, Holm over all rows.", ""]
    lines += _table_head(["model", "set", "difference", "95% interval", "p", "corrected p", "detectable", "queries"])
    for (model, name), test in tests.items():
        interval = f"{test.low:+.4f} to {test.high:+.4f}"
        cells = [f"{test.difference:+.4f}", interval, f"{test.p_value:.4f}", f"{corrected[model, name]:.4f}"]
        lines.append(f"| {model} | {name} | {' | '.join(cells)} | {test.detectable:.4f} | {test.num_queries} |")
    return "\n".join(lines) + "\n"


def _table_head(heads: list[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]


def _without_infinity(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for (an effect where all queries differ alike)."""
    if isinstance(value, dict):
        return {name: _without_infinity(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_infinity(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
