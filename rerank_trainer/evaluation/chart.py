"""The chart of an evaluation: a metric against the depth of the candidate list (needs the extra ``report``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank_trainer.evaluation.results import Evaluation

# Colours that also readers who see no red or green tell apart (Okabe and Ito, https://jfly.uni-koeln.de/color/).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINES = {"reranked": "-", "first_stage": "--", "ceiling": ":"}


def draw_depths(evaluation: Evaluation, path: str | os.PathLike[str], metric: str) -> None:
    """Draw the reranker, the first stage and the ceiling; one colour a first stage.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f'a chart needs matplotlib ({error}). Install it with pip install "rerank_trainer[report]".'
        ) from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")  # no pyplot, so that nothing is set for others
    axes = figure.add_subplot()
    depths = sorted({result.depth for result in evaluation.results})
    for number, first_stage in enumerate(evaluation.scored):
        colour = _COLOURS[number % len(_COLOURS)]
        for ranking, line in _LINES.items():
            curve = evaluation.curve(metric, first_stage=first_stage, ranking=ranking)
            marker = "o" if ranking == "reranked" else "."
            label = f"{first_stage}, {ranking.replace('_', ' ')}"
            axes.plot(list(curve), list(curve.values()), line, color=colour, marker=marker, label=label)
    axes.set_xscale("log")
    axes.set_xticks(depths, labels=[str(depth) for depth in depths])
    axes.minorticks_off()
    axes.set(xlabel="candidates of a query", ylabel=metric, title=evaluation.name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
