from __future__ import annotations

import json

from rerank_trainer.mining.report import FilterCount, MiningReport, count_ranks


def report(**changes) -> MiningReport:
    values = {
        "first_stage": "BM25()",
        "num_passages": 1200,
        "num_empty_passages": 1,
        "num_duplicate_passages": 2,
        "num_groups": 12,
        "num_without_positive": 2,
        "num_negatives_asked": 3,
        "num_candidates": 80,
        "filters": (FilterCount("MaxScore(0.5)", 20, 4, 0), FilterCount("RelativeMargin(0.05)", 8, 2, 1)),
        "num_negatives": 22,
        "num_complete": 6,
        "num_short": 2,
        "num_empty": 2,
        "empty_kept": False,
        "num_without_candidates": 1,
        "ranks": {"11-20": 22},
    }
    return MiningReport(**(values | changes))


def test_ranges_of_ranks_include_their_ends():
    assert count_ranks([1, 10, 11, 20, 21, 1000, 1001, 9999]) == {
        "1-10": 2,
        "11-20": 2,
        "21-50": 1,
        "501-1000": 1,
        "1001-": 2,
    }
    assert count_ranks([]) == {}


def test_a_report_prints_one_line_a_count():
    assert str(report()).splitlines() == [
        "passages searched                      1,200  by BM25()",
        "  left out: empty                          1",
        "  left out: same text                      2",
        "groups                                    12",
        "  left out: no positive                    2",
        "candidates in the window                  80",
        "  dropped by MaxScore(0.5)                20  25.0%, in 4 groups",
        "  dropped by RelativeMargin(0.05)          8  10.0%, in 2 groups, 1 with a positive of 0 or less",
        "negatives chosen                          22",
        "  of ranks 11-20                          22",
        "groups with 3 negatives                    6",
        "groups with fewer                          2",
        "groups with none                           2  left out; 1 had no candidates",
    ]
    assert "groups with none                           2  kept, with positives only" in str(report(empty_kept=True))


def test_a_report_is_json():
    told = json.loads(json.dumps(report(examples=({"verdict": "chosen", "query": "q"},)).to_dict()))

    assert told["filters"][1] == {
        "name": "RelativeMargin(0.05)",
        "num_dropped": 8,
        "num_queries": 2,
        "num_without_measure": 1,
    }
    assert told["examples"] == [{"verdict": "chosen", "query": "q"}]
