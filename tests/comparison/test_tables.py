"""Tables: what is best and significant, in every format, against figures by hand."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from rerank_trainer.comparison.contrasts import contrasts
from rerank_trainer.comparison.plan import Cell
from rerank_trainer.comparison.tables import as_csv, as_json, as_latex, as_markdown, figures, table_rows
from tests.comparison.made_up import made_up, noise

BASE = 0.5 + noise(60, 0.05, seed=0)
FAILED = Cell("cl+kd", "small_1", 0)


@pytest.fixture(scope="module")
def results():
    models = {
        ("teacher", ""): {"in": BASE + 0.2, "far": BASE},
        ("cl", "small_1"): [{"in": BASE - 0.01, "far": BASE}, {"in": BASE + 0.01, "far": BASE}],
        ("kd", "small_1"): {"in": BASE + 0.1 + noise(60, 0.01, 1), "far": BASE - 0.1 + noise(60, 0.01, 2)},
        ("cl+kd", "small_1"): [],
    }
    bounds = {"first stage": {"in": BASE - 0.2, "far": BASE - 0.3}, "ceiling": {"in": BASE + 0.4, "far": BASE + 0.4}}
    return made_up(models, bounds=bounds, out_of_domain=["far"], failed=[FAILED], facts={"seconds": 3.0})


@pytest.fixture(scope="module")
def found(results):
    return contrasts(results, num_resamples=999)


def test_seeds_count_their_mean_by_query(results):
    assert results.mean("cl", "in", student="small_1") == pytest.approx(0.5)
    assert results.mean("cl", "in", student="small_1", seed=0) == pytest.approx(0.49)


def test_p_values_are_those_of_scipy_times_holms_factor(results, found):
    own = {c.eval_set: c for c in found if c.family == "first stage" and c.recipe == "kd"}
    differences = np.array(list(results.by_query("kd", "in", student="small_1").values())) - (BASE - 0.2)
    p = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=999, rng=np.random.default_rng(0)
    ).pvalue

    assert own["in"].test.p_value == pytest.approx(p)
    # the family: cl and kd on both sets, all with the least p that so many exchanges can give
    assert own["in"].p_value == pytest.approx(4 * p)


def test_the_table_marks_the_best_and_what_is_shown(results, found):
    text = as_markdown(results, table_rows(results, found))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]

    assert lines[0] == ["student", "recipe", "seeds", "in", "far (out of domain)"]
    assert lines[2:] == [
        ["", "first stage", "", "0.300", "0.200"],
        ["", "teacher", "", "0.700", "0.500"],
        ["small_1", "cl", "2", "0.500", "**0.500**"],
        ["small_1", "kd", "1", "**0.600↑**", "0.400↓"],
        ["small_1", "cl+kd", "0 (1 failed)", "failed", "failed"],
    ]


def test_latex_escapes_what_latex_would_read(results, found):
    text = as_latex(results, table_rows(results, found))

    assert r"small\_1 & cl & 2 & 0.500 & \textbf{0.500} \\" in text
    assert r"\textbf{0.600$^{\uparrow}$} & 0.400$^{\downarrow}$ \\" in text
    assert text.count("{") == text.count("}")


def test_csv_and_json_hold_the_same_lines_and_the_errors(results, found):
    lines = figures(results, found)
    of_csv = list(csv.DictReader(io.StringIO(as_csv(lines))))
    of_json = json.loads(as_json(lines))

    assert len(of_csv) == len(of_json) == 10  # first stage, teacher, cl, kd and the failed one, on two sets
    kd = next(line for line in of_json if line["recipe"] == "kd" and line["eval_set"] == "in")
    assert kd["minus_cl"] == pytest.approx(0.1) and kd["train_seconds"] == 3.0
    failed = [line for line in of_csv if line["recipe"] == "cl+kd"]
    assert [line["error"] for line in failed] == ["RuntimeError: it broke"] * 2 and failed[0]["mean"] == ""
    assert of_json[-1]["mean"] is None
