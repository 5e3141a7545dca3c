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
                bar.update()
    return results


def summary(results: Mapping[str, Sequence[Mapping[str, float]]], figure: str, base: str) -> list[dict[str, Any]]:
    """For each side the median of a figure, and how many times the base's it is: median, least and greatest of the
    rounds, each compared with the base's run of the same round.
    """
    rows = []
    for name, runs in results.items():
        ratios = [mine[figure] / of_base[figure] for of_base, mine in zip(results[base], runs, strict=True)]
        ratio = {"ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
        middle = statistics.median(run[figure] for run in runs)
        rows.append({"side": name, figure: round(middle, 3), **{key: round(value, 3) for key, value in ratio.items()}})
    return rows


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


def write_report(folder: Path, name: str, label: str, settings: Any, results: Any, rows: Sequence[Any]) -> None:
    """Write ``<name>.json`` with everything and ``<name>.png`` with the ratios, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "environment": environment(), "summary": rows, "runs": results}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
    draw(folder / f"{name}.png", name, label, rows)
    print(as_table(rows), file=sys.stdout)


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
