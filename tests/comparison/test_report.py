"""The report: whole in one file, and as a browser shows it, at a desk's and a phone's width, by day and by night."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from rerank_trainer.comparison.advice import advise
from rerank_trainer.comparison.charts import draw_charts, inline_svg, save_chart
from rerank_trainer.comparison.contrasts import contrasts
from rerank_trainer.comparison.plan import Cell
from rerank_trainer.comparison.recipes import RECIPES
from rerank_trainer.comparison.report import NUM_QUERIES, as_html, wins_and_losses
from rerank_trainer.comparison.results import Outcome
from rerank_trainer.comparison.tables import table_rows
from tests.comparison.made_up import made_up, noise

BASE = 0.5 + noise(60, 0.1, seed=0)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=2000"


@pytest.fixture(scope="module")
def results():
    def curve(gain, seed):
        return {20: BASE + gain - 0.02, 50: BASE + gain + noise(60, 0.05, seed)}

    models = {("teacher", ""): {"scifact": curve(0.2, 1), "cosqa": curve(0.1, 2)}}
    for place, student in enumerate(["MiniLM, 2 layers", "MiniLM & <b>3</b> layers"]):
        for number, (recipe, gain) in enumerate((("cl", 0.0), ("kd", 0.1), ("cl+kd", 0.07))):
            models[recipe, student] = {
                "scifact": curve(gain + place / 50, 10 * number + 3 + place),
                "cosqa": curve(gain / 2 + place / 50, 10 * number + 5 + place),
            }
    flat = {name: dict.fromkeys((20, 50), BASE - 0.2 + noise(60, 0.1, 9)) for name in ("scifact", "cosqa")}
    ceiling = {name: {20: BASE + 0.3, 50: BASE + 0.4} for name in ("scifact", "cosqa")}
    facts = {"seconds": 61.5, "num_steps": 10, "num_groups": 80, "num_tokens": 123456, "num_parameters": 17_000_000}
    bounds = {"first stage": flat, "ceiling": ceiling}
    failed = [Cell("cl+kd", "MiniLM & <b>3</b> layers", 1)]
    return made_up(models, bounds=bounds, out_of_domain=["cosqa"], depths=(20, 50), failed=failed, facts=facts)


def page(results, folder, **options):
    found = contrasts(results, num_resamples=199)
    charts = {}
    for name, figure in draw_charts(results, found).items():
        save_chart(figure, folder / f"{name}.svg")
        charts[name] = inline_svg((folder / f"{name}.svg").read_text("utf-8"), name)
    how = {"rows": table_rows(results, found), "contrasts": found, "advice": advise(results, num_resamples=199)}
    return as_html(results, **how, charts=charts, **options)


@pytest.fixture(scope="module")
def html(results, tmp_path_factory):
    return page(results, tmp_path_factory.mktemp("charts"))


class Asked(HTMLParser):
    """What a page would ask others for, its scripts, and its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.urls, self.scripts, self.ids = [], 0, []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "action") and not value.startswith("#"):
                self.urls.append(value)
            if name == "id":
                self.ids.append(value)


def test_the_page_asks_nobody_for_anything(html):
    asked = Asked()
    asked.feed(html)

    assert asked.urls == [] and asked.scripts == 0
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(asked.ids) == len(set(asked.ids))


def test_charts_stand_in_the_page_in_its_own_colour(html):
    assert html.count("<svg") == 3
    assert "#4d4d4e" not in html and "currentColor" in html
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    assert used and used <= set(re.findall(r' id="([^"]+)"', html))


def test_texts_stand_there_only_if_asked_and_are_escaped(results, html, tmp_path):
    texts = {"scifact": {f"q{i}": "<script>alert(1)</script>" for i in range(60)}}
    asked = page(results, tmp_path, texts=texts)

    assert "<script" not in html and "alert" not in html
    assert "<b>3" not in html and "&lt;b&gt;3" in html  # a student's name, in the table and in charts
    assert "&lt;script&gt;alert(1)" in asked and "<script" not in asked


def test_wins_and_losses_are_those_that_differ_most(results):
    found = wins_and_losses(results, {})[0]
    ours, theirs = (results.by_query(r, "scifact", student="MiniLM, 2 layers") for r in ("kd", "cl"))
    differences = sorted(ours[i] - theirs[i] for i in ours)

    assert (found["recipe"], found["against"]) == ("kd", "cl")
    assert [line[0] for line in found["wins"]] == pytest.approx(differences[::-1][:NUM_QUERIES])
    assert found["num_wins"] == sum(value > 0 for value in differences)


def test_the_environment_is_that_of_the_cells_and_not_of_whoever_writes_the_page(results, tmp_path):
    devices = ["GPU of the house", "GPU of the house", "another GPU"]
    noted = [
        replace(outcome, facts={**outcome.facts, "environment": {"device": devices[place % 3]}})
        for place, outcome in enumerate(results.outcomes[:6])
    ]
    shown = page(replace(results, outcomes=(*noted, *results.outcomes[6:])), tmp_path)

    assert "<li>device: GPU of the house (4 of 6 cells), another GPU (2 of 6 cells)</li>" in shown
    assert "CPU (" not in shown


def test_students_that_were_not_judged_untrained_are_named_together(results, tmp_path):
    without = [Outcome(Cell("untrained", student), facts={"left_out": "its head is new"}) for student in "ab"]
    shown = page(replace(results, outcomes=(*results.outcomes, *without)), tmp_path)

    assert shown.count("its head is new") == 1
    assert "<li>Not judged untrained: a, b; its head is new.</li>" in shown


def test_the_page_says_what_its_recipes_do(results, tmp_path):
    plain = {name: RECIPES[name].settings for name in ("cl", "kd", "cl+kd", "cl>kd")}
    results = replace(results, settings={**results.settings, "recipes": plain})
    shown = page(results, tmp_path)

    assert "<li><b>kd</b>: learns from the teacher (objective=paper)</li>" in shown
    assert "<li><b>cl+kd</b>: learns from the teacher (objective=kl, label_weight=0.3)</li>" in shown
    assert (
        "50% of the budget learns from labels (objective=paper), then 50% of the budget learns from the teacher"
        in shown
    )


def browse(html, tmp_path, *options):
    (tmp_path / "report.html").write_text(html)
    command = [BROWSER, *QUIET.split(), f"--user-data-dir={tmp_path / 'profile'}", *options]
    return subprocess.run(
        [*command, (tmp_path / "report.html").as_uri()], capture_output=True, text=True, timeout=60, check=True
    ).stdout


# Measures the page and writes what it found where the test reads it; it stands in the copy of the test alone.
MEASURE = """<script>addEventListener("load", () => {
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("body > *, figure svg")].filter(
    e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName);
  const cut = [...document.querySelectorAll("figure svg text")].filter(e => {
    const own = e.getBoundingClientRect(), all = e.closest("svg").getBoundingClientRect();
    return own.left < all.left - 1 || own.right > all.right + 1; }).map(e => e.textContent);
  const texts = [...document.querySelectorAll("figure svg text")].map(e => e.getBoundingClientRect().height);
  root.dataset.measured = JSON.stringify({width: root.clientWidth, scroll: root.scrollWidth, wide: wide, cut: cut,
    rows: document.querySelectorAll("#results tbody tr").length, smallest: Math.min(...texts),
    back: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color});
});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_the_page_without_scrolling_sideways(html, tmp_path, width):
    # headless windows have a least width, so a frame of the phone's width holds the page
    framed = html.replace("</body>", f"{MEASURE}</body>")
    (tmp_path / "inner.html").write_text(framed)
    outer = f'<iframe id="f" src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>'
    if width == 1200:
        dumped = browse(framed, tmp_path, "--dump-dom", "--window-size=1200,900")
    else:
        read = (
            """<script>addEventListener("message", e => document.documentElement.dataset.measured = e.data)</script>"""
        )
        post = MEASURE.replace("root.dataset.measured = ", "parent.postMessage(").replace("color});", 'color}), "*");')
        (tmp_path / "inner.html").write_text(html.replace("</body>", f"{post}</body>"))
        dumped = browse(f"<!DOCTYPE html><html><body>{read}{outer}</body></html>", tmp_path, "--dump-dom")
    measured = json.loads(entities.unescape(re.search(r'data-measured="([^"]*)"', dumped)[1]))

    assert measured["width"] == width
    assert measured["scroll"] == width and measured["wide"] == []
    assert measured["cut"] == []  # legends and labels of charts
    assert measured["rows"] == 2 + 2 * (1 + 3)
    assert measured["smallest"] >= 8  # pixels: what a reader can read
