"""Charts of a comparison: gain against the teacher's lead, quality against seconds, depth curves (extra ``report``)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rerank_trainer.comparison.contrasts import REFERENCE, Contrast
from rerank_trainer.comparison.plan import CEILING, FIRST_STAGE, TEACHER
from rerank_trainer.comparison.results import Results

# Colours that also readers who see no red or green tell apart (Okabe and Ito, https://jfly.uni-koeln.de/color/).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = "osD^vPX*"
# Stands for the colour of the page's text, which is another by night.
_INK = "#4d4d4e"
_STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rerank_trainer",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "legend.fontsize": 8,
    "legend.frameon": False,
    **{
        name: _INK
        for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    },
}
_LEGEND_WIDTH = 62  # letters that fit below a chart, 7 of them for each line or marker
_SIZE = (4.5, 3.4)  # inches: its text can be read at a phone's width


def draw_charts(results: Results, found: Sequence[Contrast]) -> dict[str, Any]:
    """Figures of matplotlib by name, "gain", "seconds" and "depth"; those that the cells do not allow are not there.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            f'charts need matplotlib ({error}). Install it with pip install "rerank_trainer[report]".'
        ) from error
    with matplotlib.rc_context(_STYLE):
        drawn = {"gain": _gain(results, found), "seconds": _seconds(results), "depth": _depth(results)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_chart(figure: Any, path: Path) -> None:
    """Write a figure in the format of the path's ending."""
    import matplotlib

    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=160, metadata=metadata, transparent=path.suffix == ".svg")


def inline_svg(text: str, name: str) -> str:
    """A chart's SVG file as an element of a page: text in the page's colour, ids that begin with the name, no size.

    >>> inline_svg('<?xml version="1.0"?><svg width="9pt" viewBox="0 0 9 9"><g id="a"/></svg>', "gain")
    '<svg viewBox="0 0 9 9"><g id="gain-a"/></svg>'
    """
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return re.sub(r"url\(#", f"url(#{name}-", text)


def _figure(width: float = _SIZE[0], height: float = _SIZE[1]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")  # no pyplot, so that nothing is set for others


def _colours(names: Sequence[str]) -> dict[str, str]:
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}


def _markers(names: Sequence[str]) -> dict[str, str]:
    return {name: _MARKERS[place % len(_MARKERS)] for place, name in enumerate(names)}


def _gain(results: Results, found: Sequence[Contrast]) -> Any:
    """What recipes with a teacher gain over the reference, against the teacher's lead over it; a point a set."""
    points = []
    for contrast in found if results.has_plain_reference else ():
        if contrast.family != REFERENCE or results.settings["recipes"][contrast.recipe]["kind"] == "contrast":
            continue
        reference = results.mean(contrast.against, contrast.eval_set, student=contrast.student)
        lead = results.mean(TEACHER, contrast.eval_set) - reference
        if not math.isnan(lead):
            points.append((lead, contrast))
    if not points:
        return None
    recipes = list(dict.fromkeys(contrast.recipe for _, contrast in points))
    colours, markers, figure = _colours(results.recipes), _markers(results.students), _figure()
    axes = figure.add_subplot()
    for lead, contrast in points:
        test, colour = contrast.test, colours[contrast.recipe]
        face = "none" if results.is_out_of_domain(contrast.eval_set) else colour
        error = [[test.difference - test.low], [test.high - test.difference]]
        style = {"color": colour, "markerfacecolor": face, "elinewidth": 0.8, "capsize": 2, "markersize": 6}
        axes.errorbar([lead], [test.difference], yerr=np.abs(error), fmt=markers[contrast.student], **style)
    for line in (axes.axhline, axes.axvline):
        line(0, color=_INK, linewidth=0.8)
    axes.set(
        xlabel=f"teacher's lead over {results.reference} ({results.metric})", ylabel=f"gain over {results.reference}"
    )
    _legend(axes, [(colours[r], "o", r) for r in recipes] + [(_INK, markers[s], s) for s in results.students])
    axes.locator_params(axis="x", nbins=5)
    axes.set_title("filled: in domain, hollow: out of domain", fontsize=8, loc="left")
    return figure


def _legend(axes: Any, entries: Sequence[tuple[str, str, str]]) -> None:
    handles = [axes.plot([], [], marker, color=colour, label=label)[0] for colour, marker, label in entries]
    num_columns = max(1, min(4, _LEGEND_WIDTH // (7 + max(len(label) for *_, label in entries))))
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=num_columns, handletextpad=0.3)


def _seconds(results: Results) -> Any:
    """The mean over the sets of each domain against the seconds of training."""
    domains = results.domains()
    points = []
    for student in results.students:
        for recipe in results.recipes:
            outcomes = results.of(recipe, student)
            if outcomes:
                seconds = float(np.mean([outcome.facts.get("seconds", math.nan) for outcome in outcomes]))
                points.append((student, recipe, seconds))
    if not points:
        return None
    figure = _figure(height=_SIZE[1] * (0.35 + 0.65 * len(domains)))
    colours, markers = _colours(results.recipes), _markers(results.students)
    bounds: dict[str, tuple[str, str, str]] = {}
    all_axes = figure.subplots(len(domains), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (domain, sets) in zip(all_axes, domains.items(), strict=True):
        for student, recipe, seconds in points:
            value = np.mean([results.mean(recipe, name, student=student) for name in sets])
            axes.plot([seconds], [value], markers[student], color=colours[recipe], markersize=7)
        for recipe, line in ((TEACHER, "--"), (FIRST_STAGE, ":")):
            value = np.mean([results.mean(recipe, name) for name in sets])
            if not math.isnan(value):
                axes.axhline(value, color=_INK, linestyle=line, linewidth=0.9)
                bounds[recipe] = (_INK, line, recipe)  # in the legend: beside the line it would stand on points
        axes.set(ylabel=results.metric)
        axes.set_title(domain, fontsize=9, loc="left")
    all_axes[-1].set_xlabel("seconds of training")
    all_axes[-1].locator_params(axis="x", nbins=5)
    entries = [(colours[r], "o", r) for r in results.recipes] + [(_INK, markers[s], s) for s in results.students]
    _legend(all_axes[0], [*entries, *bounds.values()])
    return figure


def _depth(results: Results) -> Any:
    """By evaluation set the metric against the depth: each student by its best recipe, and what bounds it."""
    sets = [name for name in results.sets if len(results.depths(name)) > 1]
    if not sets:
        return None
    figure = _figure(height=0.7 + 2.4 * len(sets))
    colours = _colours(results.students)
    all_axes = figure.subplots(len(sets), 1, squeeze=False)[:, 0]
    entries: dict[str, tuple[str, str, str]] = {}
    for axes, name in zip(all_axes, sets, strict=True):
        depths = results.depths(name)
        curves = [(FIRST_STAGE, "", _INK, ":"), (CEILING, "", _INK, "-."), (TEACHER, "", _INK, "--")]
        for student in results.students:
            means = {recipe: results.mean(recipe, name, student=student) for recipe in results.recipes}
            known = {recipe: mean for recipe, mean in means.items() if not math.isnan(mean)}
            if known:
                curves.append((max(known, key=lambda recipe: known[recipe]), student, colours[student], "-o"))
        for recipe, student, colour, line in curves:
            values = [results.mean(recipe, name, student=student, depth=depth) for depth in depths]
            if not any(math.isnan(value) for value in values):
                axes.plot(depths, values, line, color=colour, linewidth=1.3, markersize=4)
                entries[student or recipe] = (colour, line, f"{student}, best recipe" if student else recipe)
        axes.set_xscale("log")
        axes.set_xticks(depths, labels=[str(depth) for depth in depths])
        axes.minorticks_off()
        axes.set(ylabel=results.metric)
        axes.set_title(name, fontsize=9, loc="left")
    all_axes[-1].set_xlabel("candidates of a query")
    _legend(all_axes[0], list(entries.values()))
    return figure
