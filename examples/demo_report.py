"""The demo's report: one table as text and one chart as a picture, of first stage, teacher and students.

python examples/demo_report.py --results demo_output/results.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLORS = {"in domain": "#1b6ca8", "out of domain": "#d9822b"}


@dataclass(frozen=True)
class Result:
    """One line of the table: metrics by domain, then by name; None where there was no training."""

    name: str
    metrics: dict[str, dict[str, float]]
    training_seconds: float | None = None
    num_parameters: int | None = None
    pairs_per_second: float | None = None


def table(results: Sequence[Result], metrics: Sequence[str]) -> str:
    """The results in aligned columns."""
    domains = list(results[0].metrics)
    header = ["", *(f"{domain} {metric}" for domain in domains for metric in metrics)]
    rows = [[*header, "training s", "parameters", "pairs/s"]]
    for result in results:
        figures = [f"{result.metrics[domain][metric]:.3f}" for domain in domains for metric in metrics]
        costs = (result.training_seconds, result.num_parameters, result.pairs_per_second)
        seconds, parameters, speed = ("" if cost is None else cost for cost in costs)
        parameters = parameters and f"{parameters / 1e6:.1f}M"
        rows.append([result.name, *figures, seconds and f"{seconds:.0f}", parameters, speed and f"{speed:.0f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def draw(results: Sequence[Result], folder: Path, metric: str = "ndcg@10") -> Path:
    """Draw a metric of each result, by domain, with BM25 as a line; returns the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    domains = list(results[0].metrics)
    width = 0.8 / len(domains)
    for number, domain in enumerate(domains):
        values = [result.metrics[domain][metric] for result in results]
        places = [place + (number - (len(domains) - 1) / 2) * width for place in range(len(results))]
        bars = axes.bar(places, values, width * 0.92, color=COLORS[domain], label=domain)
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=9)
        axes.axhline(values[0], color=COLORS[domain], linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xticks(range(len(results)), [caption(result) for result in results])
    axes.set_ylabel("nDCG@10")
    axes.set_ylim(0, 1.18 * max(max(row[metric] for row in result.metrics.values()) for result in results))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right", ncols=len(domains))
    axes.set_title(
        "Docstring to code: held-out modules, BM25's candidates reranked (dashed: BM25)", loc="left", fontsize=10
    )
    path = folder / "results.png"
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def caption(result: Result) -> str:
    """What stands under a bar: the name, and what the model costs."""
    if result.num_parameters is None or result.pairs_per_second is None:
        return result.name
    return f"{result.name}\n{result.num_parameters / 1e6:.0f}M, {result.pairs_per_second:.0f} pairs/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("demo_output/results.json"))
    parser.add_argument("--smoke", action="store_true", help="made-up results, into the current folder")
    options = parser.parse_args()
    if options.smoke:
        metrics = {"in domain": {"ndcg@10": 0.25, "mrr@10": 0.2}, "out of domain": {"ndcg@10": 0.5, "mrr@10": 0.4}}
        results, folder = [Result("BM25", metrics), Result("teacher", metrics, 60.0, 22_000_000, 50.0)], Path()
    else:
        results, folder = [Result(**row) for row in json.loads(options.results.read_text())], options.results.parent
    print(table(results, list(results[0].metrics["in domain"])))
    print(draw(results, folder))


if __name__ == "__main__":
    main()
