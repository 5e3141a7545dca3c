"""The check of teacher scores: what is refused, what is only warned of, and what must pass."""

from __future__ import annotations

import math
import random

import datasets
import ir_measures
import numpy as np
import pytest
from ir_measures import nDCG
from scipy.stats import mannwhitneyu, somersd

from rerank_trainer.teachers.check import agreement, check_teacher

STRONG, WEAK, RANDOM = 3.0, 0.5, 0.0  # standard deviations by which a positive's score is higher


def taught_groups(gain, num_groups=64, *, seed=0, group_size=8, positives="anywhere", labelled=True):
    """Groups of one or two positives whose teacher scores are normal noise, higher by ``gain`` for positives."""
    chance = random.Random(seed)
    rows = []
    for index in range(num_groups):
        labels = [1.0, float(chance.random() < 0.5)] + [0.0] * (group_size - 2)
        if positives == "anywhere":
            chance.shuffle(labels)
        scores = [chance.gauss(0, 1) + gain * label for label in labels]
        rows.append(
            {
                "query": f"word{index}",
                "passages": [f"passage {i} of {index}" for i in range(group_size)],
                **({"labels": labels} if labelled else {}),
                "teacher_scores": scores,
            }
        )
    return datasets.Dataset.from_list(rows)


def with_scores(groups, scores):
    return groups.remove_columns("teacher_scores").add_column("teacher_scores", scores)


def rolled(groups, by):
    scores = list(groups["teacher_scores"])
    return with_scores(groups, scores[-by:] + scores[:-by])


def sigmoid(groups):
    return with_scores(groups, [[1 / (1 + math.exp(-s)) for s in scores] for scores in groups["teacher_scores"]])


def ranks(groups, sign=1):
    """The place from the bottom (1 for the lowest score), or with the opposite sign from the top."""
    return with_scores(groups, (sign * np.argsort(np.argsort(groups["teacher_scores"])) + 1.0).tolist())


# --- agreement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_somers_d_of_the_scores_given_the_labels(seed):
    chance = np.random.default_rng(seed)
    labels, scores = chance.integers(0, 3, 12).astype(float), chance.integers(0, 6, 12).astype(float)

    assert agreement(scores, labels)[0] == pytest.approx(somersd(labels, scores).statistic)


def test_the_variance_of_agreement_is_that_of_mann_and_whitney():
    scores, labels = [0.3, 2.0, 1.0, 4.0, 3.0, 0.1, 0.2], [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    value, variance = agreement(scores, labels)
    positives = [s for s, label in zip(scores, labels, strict=True) if label]
    others = [s for s, label in zip(scores, labels, strict=True) if not label]
    test = mannwhitneyu(positives, others, method="asymptotic", use_continuity=False, alternative="greater")

    assert 0.5 * math.erfc(value / math.sqrt(2 * variance)) == pytest.approx(test.pvalue)


def test_agreement_with_equal_labels_is_none():
    assert agreement([1.0, 2.0], [1.0, 1.0]) is None


# --- what must pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_groups", [1, 2, 8, 64])
@pytest.mark.parametrize("positives", ["anywhere", "first"])
@pytest.mark.parametrize("gain", [STRONG, WEAK, RANDOM])
def test_a_whole_teacher_is_not_refused_however_weak(gain, positives, num_groups):
    for seed in range(2):
        check_teacher(taught_groups(gain, num_groups, seed=seed, positives=positives), scale="logit", temperature=1.0)


@pytest.mark.parametrize("group_size", [2, 3])
def test_eight_small_groups_of_a_random_teacher_are_not_refused(group_size):
    for seed in range(20):
        check_teacher(taught_groups(RANDOM, 8, seed=seed, group_size=group_size))


def test_a_teacher_that_is_somewhat_worse_than_chance_is_warned_of_and_not_refused():
    report = check_teacher(taught_groups(-0.5, 256))

    assert -0.4 < report.agreement < -0.2
    assert any("worse than passages in random order" in warning for warning in report.warnings)


@pytest.mark.parametrize("width", [0.0, 1e-6], ids=["constant", "nearly constant"])
def test_a_constant_teacher_is_warned_of_and_not_refused(width):
    groups = taught_groups(RANDOM)
    groups = with_scores(groups, [[0.5 + width * math.tanh(s) for s in scores] for scores in groups["teacher_scores"]])
    report = check_teacher(groups, scale="logit", temperature=1.0)

    (warning,) = [warning for warning in report.warnings if "almost uniform (as wide as 100%" in warning]
    assert "No temperature" in warning
    assert report.target_width == pytest.approx(1.0)


def test_cosines_may_pass_for_logits():
    groups = taught_groups(STRONG)
    scaled = [[0.6 + 0.05 * s for s in scores] for scores in groups["teacher_scores"]]
    assert 0.1 < min(map(min, scaled)) and max(map(max, scaled)) < 1  # inside [0, 1], but not at both ends

    report = check_teacher(with_scores(groups, scaled), scale="logit", temperature=1.0)
    assert any("Try teacher_temperature=0.05" in warning for warning in report.warnings)


@pytest.mark.parametrize("scale", ["rank", None])
def test_ranks_with_the_highest_for_the_best_pass(scale):
    assert check_teacher(ranks(taught_groups(STRONG)), scale=scale).agreement > 0.8


def test_ranks_with_ties_pass():
    groups = taught_groups(STRONG, 3, group_size=4)
    check_teacher(with_scores(groups, [[4.0, 3.0, 1.0, 1.0], [-1.0, -2.0, -3.0, -4.0], [0.0] * 4]), scale="rank")


def test_unlabelled_groups_have_no_figures():
    report = check_teacher(taught_groups(STRONG, labelled=False), temperature=1.0)

    assert (report.num_groups, report.agreement, report.teacher_ndcg) == (0, None, None)
    assert "no labelled groups" in str(report)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_groups", [12, 300])
def test_scores_with_the_wrong_sign_are_refused(num_groups):
    groups = taught_groups(STRONG, num_groups)
    opposite = with_scores(groups, [[-s for s in scores] for scores in groups["teacher_scores"]])

    with pytest.raises(ValueError, match=r"reversed in sign.*9\d% of the pairs.*give -score.*check_teacher=False"):
        check_teacher(opposite)


def test_ranks_with_1_for_the_best_are_refused():
    with pytest.raises(ValueError, match="reversed in sign"):
        check_teacher(ranks(taught_groups(STRONG), sign=-1), scale="rank")


@pytest.mark.parametrize(("by", "place"), [(1, "before"), (-1, "after")])
@pytest.mark.parametrize("num_groups", [16, 300])
def test_scores_of_the_next_row_are_refused(by, place, num_groups):
    with pytest.raises(ValueError, match=rf"shifted by a row.*fit the labels of the row {place} it.*Join .* by an id"):
        check_teacher(rolled(taught_groups(STRONG, num_groups), by))


def overlapping_groups(num_groups=64, *, labelled):
    """The positive stands first in every group, and the teacher counts the words that query and passage share."""
    chance, rows = random.Random(0), []
    for index in range(num_groups):
        words = [f"{letter}{index}" for letter in "abcde"]
        counts = [5, *(chance.randrange(5) for _ in range(7))]
        passages = [" ".join([*words[:count], "x", str(place)]) for place, count in enumerate(counts)]
        scores = [count + chance.gauss(0, 0.5) for count in counts]
        rows.append({"query": " ".join(words), "passages": passages, "teacher_scores": scores})
        if labelled:
            rows[-1]["labels"] = [1.0] + [0.0] * 7
    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_shift_shows_in_the_words_where_labels_cannot_tell(labelled):
    groups = overlapping_groups(labelled=labelled)
    check_teacher(groups)

    with pytest.raises(ValueError, match="fit the shared words of query and passage of the row before it"):
        check_teacher(rolled(groups, 1))


@pytest.mark.parametrize(
    ("scale", "make", "found"),
    [
        ("probability", lambda groups: groups, r"row \d+ has the teacher score -?\d.*'probability', from 0 to 1"),
        ("logit", sigmoid, "all 512 teacher scores lie from 0.0.* as probabilities do"),
        ("rank", lambda groups: groups, r"row 0 has the teacher scores \[.*, \.\.\.\].*whole numbers"),
        ("rank", lambda groups: with_scores(groups, [[8.0 * i for i in range(8)]] * 64), r"row 0 .*\[0.0, 8.0"),
        ("cosine", lambda groups: groups, "the teacher's scale is 'cosine'"),
    ],
    ids=["logits", "probabilities", "no whole numbers", "gaps", "unknown"],
)
def test_scores_on_another_scale_than_declared_are_refused(scale, make, found):
    with pytest.raises(ValueError, match=found):
        check_teacher(make(taught_groups(STRONG)), scale=scale)


def test_one_probability_above_1_in_any_row_is_found():
    groups = sigmoid(taught_groups(STRONG, 400))
    scores = list(groups["teacher_scores"])
    scores[399] = [*scores[399][:7], 1.5]

    check_teacher(groups, scale="probability")
    with pytest.raises(ValueError, match=r"row 399 has the teacher score 1\.5"):
        check_teacher(with_scores(groups, scores), scale="probability")


# --- figures ---------------------------------------------------------------------------------------------------------


def ndcg_of(scores, labels):
    qrels = [ir_measures.Qrel(str(q), str(i), int(x)) for q, row in enumerate(labels) for i, x in enumerate(row)]
    run = [ir_measures.ScoredDoc(str(q), str(i), x) for q, row in enumerate(scores) for i, x in enumerate(row)]
    return ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10]


def test_figures_are_those_of_another_library():
    groups = taught_groups(WEAK, 40)
    order = [[-float(i) for i in range(8)]] * 40

    def predict(pairs):
        return [float(passage.split()[1]) for _, passage in pairs]

    report = check_teacher(groups, predict=predict)
    assert report.teacher_ndcg == pytest.approx(ndcg_of(groups["teacher_scores"], groups["labels"]))
    assert report.first_stage_ndcg == pytest.approx(ndcg_of(order, groups["labels"]))
    assert report.student_ndcg == pytest.approx(ndcg_of([row[::-1] for row in order], groups["labels"]))
    assert report.teacher_ndcg_beside_student == pytest.approx(report.teacher_ndcg)
    assert (report.num_groups, report.num_student_groups) == (40, 40)


def test_the_student_is_asked_for_few_pairs_only():
    asked = []
    report = check_teacher(
        taught_groups(WEAK, 200, group_size=20), predict=lambda pairs: asked.extend(pairs) or range(len(pairs))
    )

    assert report.num_student_groups == 51 and len(asked) == 1020  # 1,024 pairs at most
    assert report.teacher_ndcg_beside_student != report.teacher_ndcg


@pytest.mark.parametrize(("first", "rows"), [(1.0, 0), (0.95, 2), (0.5, 20)])
def test_the_order_of_the_passages_is_no_first_stage_where_positives_stand_first(first, rows):
    groups = taught_groups(WEAK, 40, positives="first").to_list()
    for group in groups[:rows]:
        group.update({name: group[name][::-1] for name in ("labels", "teacher_scores", "passages")})
    report = check_teacher(datasets.Dataset.from_list(groups))

    assert (report.first_stage_ndcg is None) is (first >= 0.9)
    assert ("the passages as they stand not available" in str(report)) is (first >= 0.9)


def test_positives_that_stand_last_give_no_first_stage_either():
    groups = taught_groups(WEAK, 20, positives="first").to_list()
    for group in groups:
        group.update({name: group[name][::-1] for name in ("labels", "teacher_scores", "passages")})

    assert check_teacher(datasets.Dataset.from_list(groups)).first_stage_ndcg is None


def test_a_teacher_below_first_stage_and_student_is_warned_of_with_the_figures():
    chance = random.Random(3)
    groups = taught_groups(WEAK, 64).to_list()
    for group in groups:  # mostly in the order of the labels
        order = sorted(range(8), key=lambda i: (chance.random() < 0.2) - group["labels"][i])
        group.update({name: [group[name][i] for i in order] for name in ("labels", "teacher_scores", "passages")})
    labels = {p: x for group in groups for p, x in zip(group["passages"], group["labels"], strict=True)}
    report = check_teacher(
        datasets.Dataset.from_list(groups), predict=lambda pairs: [labels[passage] for _, passage in pairs]
    )

    first, second = report.warnings
    assert f"{report.teacher_ndcg:.3f} against {report.first_stage_ndcg:.3f} on 64" in first
    assert "the student before training" in second and "against 1.000 on 64" in second
