"""Turns: the sides of a benchmark run A B A B, each in its own process; ratios with their spread, JSON and a chart."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate")

# Of each side, what its runs printed, round by round.
Results = Mapping[str, Sequence[Mapping[str, Any]]]


def run_in_turns(commands: Mapping[str, Sequence[str]], num_rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each side printed as its last line, a JSON object, round by round.

    Args:
        commands: Name of a side to its command.
        num_rounds: How often each side runs.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    with tqdm(total=num_rounds * len(commands), unit="run") as bar:
        for _ in range(num_rounds):
            for name, command in commands.items():
                bar.set_postfix_str(name)
                run = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TQDM_DISABLE": "1"}
                )
                if run.returncode:
                    raise SystemExit(f"{name} failed: {' '.join(command)}")
                results[name].append(json.loads(run.stdout.splitlines()[-1]))
                bar.write(f"{name}: {run.stdout.splitlines()[-1]}", file=sys.stderr)  # kept if a later side fails
                bar.update()
    return results


def with_best(results: Results, prefix: str, name: str, figure: str) -> Results:
    """The results and one side more: of each round, the run with the least figure among sides that begin so."""
    runs = [runs for side, runs in results.items() if side.startswith(prefix)]
    if not runs:
        return results
    return {**results, name: [min(of_round, key=lambda run: run[figure]) for of_round in zip(*runs, strict=True)]}


def summary(results: Results, figure: str, base: str, *, also: Sequence[str] = ()) -> list[dict[str, Any]]:
    """For each side the median of a figure, and how many times the base's it is: median, least and greatest of the
    rounds, each compared with the base's run of the same round.

    Args:
        results: What the sides printed, round by round.
        figure: The name of the figure.
        base: The side that the others are compared with.
        also: Names of further figures, of which the median is given.
    """
    rows = []
    for name, runs in results.items():
        ratios = [mine[figure] / of_base[figure] for of_base, mine in zip(results[base], runs, strict=True)]
        row = {"ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
        row = {figure: statistics.median(run[figure] for run in runs), **row}
        row |= {key: statistics.median(run[key] for run in runs) for key in also}
        rows.append({"side": name, **{key: rounded(value) for key, value in row.items()}})
    return rows


def rounded(value: float) -> float:
    """Three decimals, or two digits of what is smaller than they show well: 1e-6 must not read as 0."""
    return round(value, 3) if abs(value) >= 0.01 else float(f"{value:.2g}")


def differences(results: Results, figures: Sequence[str]) -> list[str]:
    """For each figure that should be one and the same in all runs and is not, a line with the values of the sides."""
    lines = []
    for figure in figures:
        values = {name: sorted({run[figure] for run in runs if figure in run}) for name, runs in results.items()}
        if len({tuple(of_side) for of_side in values.values() if of_side}) > 1:
            lines.append(f"{figure} differs: " + ", ".join(f"{name} {of_side}" for name, of_side in values.items()))
    return lines


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    return "\n".join(
        f"| {line} |" for line in [*lines, *(" | ".join(str(row[name]) for name in names) for row in rows)]
    )


def environment() -> dict[str, Any]:
    """Machine and versions, for the JSON file."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version(), **versions}


def write_report(
    folder: Path,
    name: str,
    label: str,
    settings: Any,
    results: Any,
    rows: Sequence[Any],
    *,
    notes: Sequence[str] = (),
    **more: Any,
) -> None:
    """Write ``<name>.json`` with everything and ``<name>.png`` with the ratios, and print the table and the notes."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "environment": environment(), "summary": rows, "notes": notes, **more}
    content["runs"] = results
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
    draw(folder / f"{name}.png", name, label, rows)
    print(as_table(rows), *notes, sep="\n")


def draw(path: Path, title: str, label: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A bar for each side: how many times the base's figure, with the spread over rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.45 * len(rows)), layout="constrained")
    ratios = [row["ratio"] for row in rows]
    spread = [
        [row["ratio"] - row["least"] for row in rows],
        [row["greatest"] - row["ratio"] for row in rows],
    ]
    axes.barh([row["side"] for row in rows], ratios, xerr=spread, color="#4477aa", ecolor="#222222", capsize=3)
    axes.axvline(1.0, color="#888888", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_title(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
