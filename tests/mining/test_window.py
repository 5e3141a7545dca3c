from __future__ import annotations

import numpy as np
import pytest

from rerank_trainer.mining.filters import AbsoluteMargin, MaxScore, PercentOfPositive
from rerank_trainer.mining.first_stages import Candidates
from rerank_trainer.mining.passages import Judged
from rerank_trainer.mining.window import Window, apply_filters

PASSAGES = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]


class Lengths:
    """Scores a pair by the length of the passage, ten times that for the query "ten", and keeps what it was asked."""

    scale = "similarity"

    def __init__(self, wrong=None):
        self.asked, self.wrong = [], wrong

    def score_pairs(self, queries, passages, pairs):
        texts = [(queries[query], passages[passage]) for query, passage in pairs]
        self.asked += texts
        scores = np.array([len(passage) * (10.0 if query == "ten" else 1.0) for query, passage in texts])
        return scores if self.wrong is None else np.append(scores[:-1], self.wrong)

    def __repr__(self):
        return "Lengths()"


def window(range_min=0, positive_scores=(5.0, 30.0)) -> Window:
    judged = [Judged(0, "one", "q1", {}), Judged(1, "ten", None, {})]
    found = [
        Candidates(np.array([3, 0, 1]), np.array([9.0, 4.0, 1.0]), np.array([2]), np.array(positive_scores[:1])),
        Candidates(np.array([5, 0]), np.array([40.0, 25.0]), np.array([3, 4]), np.array([50.0, positive_scores[1]])),
    ]
    return Window.of(judged, found, range_min)


def left(it: Window) -> list[list[int]]:
    return [it.places[it.left(query)].tolist() for query in range(2)]


def test_the_window_skips_the_first_candidates_and_keeps_their_ranks():
    it = window(range_min=1)

    assert left(it) == [[0, 1], [0]]
    assert it.ranks.tolist() == [2, 3, 2]
    assert left(window(range_min=2)) == [[1], []]


def test_a_filter_compares_with_the_positives_of_the_same_query():
    it = window()

    (count,) = apply_filters(it, [AbsoluteMargin(1.0)], PASSAGES)

    # limits: 5 - 1 = 4 and min(50, 30) - 1 = 29
    assert left(it) == [[0, 1], [0]]
    assert (count.num_dropped, count.num_queries, count.num_without_measure) == (2, 2, 0)


def test_a_score_at_the_limit_stays():
    it = window()

    apply_filters(it, [MaxScore(9.0)], PASSAGES)

    assert left(it) == [[3, 0, 1], []]


def test_queries_whose_positive_scores_0_or_less_lose_all_and_are_counted():
    it = window(positive_scores=(-0.5, 30.0))

    (count,) = apply_filters(it, [PercentOfPositive(0.9)], PASSAGES)

    assert left(it) == [[], [0]]  # 0.9 * 30 = 27
    assert (count.num_dropped, count.num_queries, count.num_without_measure) == (4, 2, 1)


def test_a_scorer_of_its_own_scores_candidates_and_positives():
    it, lengths = window(), Lengths()

    apply_filters(it, [AbsoluteMargin(0.5, scored_by=lengths)], PASSAGES)

    # "one": 4, 1, 2 against 3 - 0.5; "ten": 60, 10 against min(40, 50) - 0.5
    assert left(it) == [[0, 1], [0]]
    assert sorted(lengths.asked) == [
        ("one", "a"), ("one", "bb"), ("one", "ccc"), ("one", "dddd"),
        ("ten", "a"), ("ten", "dddd"), ("ten", "eeeee"), ("ten", "ffffff"),
    ]  # fmt: skip


def test_a_later_filter_scores_only_what_is_left_and_nothing_twice():
    it, lengths = window(), Lengths()
    filters = [MaxScore(9.0), MaxScore(1.0, scored_by=lengths), AbsoluteMargin(0.0, scored_by=lengths)]

    counts = apply_filters(it, filters, PASSAGES)

    assert left(it) == [[0], []]
    assert [count.num_dropped for count in counts] == [2, 2, 0]
    assert sorted(lengths.asked) == [("one", "a"), ("one", "bb"), ("one", "ccc"), ("one", "dddd")]


def test_a_missing_score_of_a_positive_is_refused_unless_no_filter_needs_it():
    it = window(positive_scores=(5.0, np.nan))

    apply_filters(it, [MaxScore(25.0), AbsoluteMargin(0.0, scored_by=Lengths())], PASSAGES)
    with pytest.raises(ValueError, match="no score for 1 positives of 1 queries, query 'ten' for one"):
        apply_filters(it, [AbsoluteMargin(1.0)], PASSAGES)


def test_a_missing_score_of_a_positive_does_not_matter_where_nothing_is_left():
    it = window(positive_scores=(5.0, np.nan))

    apply_filters(it, [MaxScore(9.0), AbsoluteMargin(1.0)], PASSAGES)

    assert left(it) == [[0, 1], []]


@pytest.mark.parametrize("wrong", [np.nan, [1.0, 2.0]])
def test_scores_that_are_not_finite_or_not_one_a_pair_are_refused(wrong):
    with pytest.raises(ValueError, match=r"Lengths\(\): expected 5 finite scores, one a pair, found"):
        apply_filters(window(), [MaxScore(1.0, scored_by=Lengths(wrong))], PASSAGES)
