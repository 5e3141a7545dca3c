"""Ensembles: how scores are joined, what weights are fitted, who is asked, and what is refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata, zscore

from rerank_trainer.teachers.column import ColumnTeacher
from rerank_trainer.teachers.ema import EmaTeacher
from rerank_trainer.teachers.ensemble import EnsembleTeacher, centred_ranks, zscores
from rerank_trainer.teachers.store import add_teacher_scores, stored_scores
from rerank_trainer.teachers.teacher import Teacher, as_teacher
from rerank_trainer.teachers.weights import fit_weights

NOISE = {"one": 1.0, "other": 1.0, "noisy": 3.0}  # standard deviations, beside that of the relevance, which is 1


def taught_groups(num_groups, *, seed=0, group_size=8, label="best"):
    """Groups of normal relevance, each teacher's scores that plus noise of its own, and a teacher of noise alone.

    The positive is the most relevant passage, or drawn by the softmax of twice "one" and once "other", normalised.
    """
    chance = np.random.default_rng(seed)
    relevance = chance.normal(size=(num_groups, group_size))
    scores = {name: relevance + std * chance.normal(size=relevance.shape) for name, std in NOISE.items()}
    scores["bad"] = chance.normal(size=relevance.shape)
    positives = relevance.argmax(axis=1)
    if label == "drawn":
        logits = 2 * zscore(scores["one"], axis=1) + zscore(scores["other"], axis=1)
        positives = np.array([chance.choice(group_size, p=p) for p in softmax(logits, axis=1)])
    return datasets.Dataset.from_dict(
        {
            "query": [f"query {i}" for i in range(num_groups)],
            "passages": [[f"passage {i}-{k}" for k in range(group_size)] for i in range(num_groups)],
            "labels": np.eye(group_size)[positives].tolist(),
            **{name: values.tolist() for name, values in scores.items()},
        }
    )


def columns(*names):
    return [ColumnTeacher(name) for name in names]


def accuracy(groups, teacher, cache_dir):
    """The share of groups whose positive has the highest score."""
    scores = np.array(stored_scores(groups, teacher, cache_dir=cache_dir))
    return (scores.argmax(axis=1) == np.array(groups["labels"]).argmax(axis=1)).mean()


class CountingTeacher:
    """Scores by the length of a passage, to some power, and counts the groups that it is asked for."""

    scale = "logit"

    def __init__(self, power, *, num_scores=None):
        self.power, self.num_scores, self.asked, self.fingerprint = power, num_scores, 0, f"length ** {power}"

    def score(self, groups):
        self.asked += len(groups)
        return {"scores": [[float(len(p)) ** self.power for p in g["passages"]][: self.num_scores] for g in groups]}


ROWS = datasets.Dataset.from_dict({"query": ["a", "b"], "passages": [["x", "xx", "xxx"], ["xxxx", "x", "xx"]]})


# --- how scores are joined -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_normalised_scores_are_those_of_scipy(seed):
    scores = np.random.default_rng(seed).integers(0, 5, 9).astype(float)

    np.testing.assert_allclose(zscores(scores), zscore(scores))
    np.testing.assert_allclose(centred_ranks(scores), (2 * rankdata(scores) - 10) / 8)


@pytest.mark.parametrize("scores", [[0.1, 0.1, 0.1], [7.0], []], ids=["equal", "one passage", "none"])
@pytest.mark.parametrize("normalize_fn", [zscores, centred_ranks])
def test_where_nothing_is_above_anything_normalised_scores_are_0(normalize_fn, scores):
    assert normalize_fn(np.array(scores)).tolist() == [0.0] * len(scores)


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("zscore", [[0.5, -0.5]]),  # 3/4 of (1, -1) and 1/4 of (-1, 1)
        ("rank", [[0.5, -0.5]]),
        (None, [[0.75 * 10 + 0.25 * 2, 0.75 * 0 + 0.25 * 4]]),
        (["rank", None], [[0.75 + 0.25 * 2, -0.75 + 0.25 * 4]]),
        (lambda scores: scores / 10, [[0.8, 0.1]]),
    ],
    ids=["zscore", "rank", "none", "one each", "a function"],
)
def test_the_weighted_mean_is_that_of_normalised_scores(normalize, expected):
    ensemble = EnsembleTeacher(columns("a", "b"), weights=[0.75, 0.25], normalize=normalize)
    scores = ensemble.score([{"query": "q", "passages": ["x", "y"], "a": [10.0, 0.0], "b": [2.0, 4.0]}])["scores"]

    np.testing.assert_allclose(scores, expected)


def test_members_on_unlike_scales_have_the_same_say_once_normalised():
    groups = [{"query": "q", "passages": ["x", "y", "z"], "a": [1.0, 2.0, 3.0], "b": [300.0, 200.0, 100.0]}]

    assert EnsembleTeacher(columns("a", "b")).score(groups)["scores"] == [pytest.approx([0.0, 0.0, 0.0])]


@pytest.mark.parametrize(
    ("scales", "normalize", "expected"),
    [
        (["probability", "probability"], None, "probability"),
        (["rank", "probability"], "rank", "logit"),
        (["rank"], "zscore", "logit"),
    ],
)
def test_the_scale_is_the_members_own_until_they_are_normalised(scales, normalize, expected):
    members = [ColumnTeacher("a", scale=scale) for scale in scales]

    assert EnsembleTeacher(members, normalize=normalize).scale == expected


def test_an_ensemble_is_a_teacher_and_may_be_a_member():
    inner = EnsembleTeacher(columns("a", "b"))
    outer = EnsembleTeacher([inner, ColumnTeacher("c")])
    group = {"query": "q", "passages": ["x", "y"], "a": [0, 1], "b": [0, 3], "c": [0, 9]}

    assert isinstance(outer, Teacher) and as_teacher(outer) is outer
    assert outer.score([group])["scores"] == [[-1.0, 1.0]]


# --- what it is worth ------------------------------------------------------------------------------------------------


def test_two_teachers_with_noise_of_their_own_are_better_together(tmp_path):
    groups = taught_groups(1000)
    alone = [accuracy(groups, ColumnTeacher(name), tmp_path) for name in ("one", "other")]

    # the noise of the mean has 1/sqrt(2) of the deviation
    assert accuracy(groups, EnsembleTeacher(columns("one", "other")), tmp_path) > max(alone) + 0.05


def test_fitted_weights_leave_a_bad_teacher_out_where_equal_weights_suffer(tmp_path):
    dev, unseen = taught_groups(300, seed=1), taught_groups(1000, seed=2)
    members = columns("one", "other", "noisy", "bad")
    weights = fit_weights(members, dev, cache_dir=tmp_path)
    fitted = accuracy(unseen, EnsembleTeacher(members, weights=weights), tmp_path)

    assert min(weights[:2]) > 0.4 and 0.02 < weights[2] < 0.15 and weights[3] < 0.05
    assert fitted > accuracy(unseen, EnsembleTeacher(members), tmp_path) + 0.05
    assert fitted > accuracy(unseen, ColumnTeacher("one"), tmp_path) + 0.05


def test_fitted_weights_are_those_that_the_labels_were_drawn_by(tmp_path):
    groups = taught_groups(3000, label="drawn")

    assert fit_weights(columns("one", "other", "bad"), groups, cache_dir=tmp_path) == pytest.approx(
        (2 / 3, 1 / 3, 0.0), abs=0.03
    )


def test_fitted_weights_are_those_of_another_optimiser(tmp_path):
    names = ("one", "noisy", "other")
    groups = taught_groups(200)
    units = [np.mean([np.std(row) for row in groups[name]]) for name in names]
    features = np.stack([np.array(groups[name]) / unit for name, unit in zip(names, units, strict=True)], axis=-1)
    labels = np.array(groups["labels"])

    def objective(coefficients):
        return (
            -(labels * log_softmax(features @ coefficients, axis=1)).sum() / len(labels)
            + 5e-4 * (coefficients**2).sum()
        )

    best = minimize(objective, np.zeros(3), bounds=[(0, None)] * 3, options={"ftol": 1e-15, "gtol": 1e-10}).x / units
    fitted = fit_weights(columns(*names), groups, normalize=None, cache_dir=tmp_path)

    assert fitted == pytest.approx(best / best.sum(), abs=1e-6)


def test_teachers_that_say_the_same_share_their_weight(tmp_path):
    weights = fit_weights(columns("one", "one", "other"), taught_groups(300), cache_dir=tmp_path)

    assert weights[0] == pytest.approx(weights[1]) and sum(weights) == pytest.approx(1)


def test_a_teacher_that_orders_the_wrong_way_gets_the_weight_0_and_not_less(tmp_path):
    groups = taught_groups(200)
    groups = groups.add_column("reversed", [[-score for score in row] for row in groups["other"]])

    assert fit_weights(columns("one", "reversed"), groups, cache_dir=tmp_path) == (1.0, 0.0)


def test_a_teacher_without_mistakes_has_finite_weights(tmp_path):
    groups = taught_groups(50)
    groups = groups.add_column("truth", groups["labels"])

    assert fit_weights(columns("truth", "bad"), groups, cache_dir=tmp_path)[0] > 0.9


def test_groups_that_say_nothing_change_no_weight(tmp_path):
    groups = taught_groups(100)
    silent = [{**row, "labels": [label] * 8} for row, label in zip(taught_groups(2, seed=7), (0.0, 1.0), strict=True)]
    more = datasets.concatenate_datasets([groups, datasets.Dataset.from_list(silent, features=groups.features)])

    assert fit_weights(columns("one", "noisy"), more, cache_dir=tmp_path) == pytest.approx(
        fit_weights(columns("one", "noisy"), groups, cache_dir=tmp_path)
    )


# --- who is asked ----------------------------------------------------------------------------------------------------


def test_a_further_member_is_the_only_one_that_is_asked(tmp_path):
    first, second, third = CountingTeacher(1), CountingTeacher(2), CountingTeacher(3)
    add_teacher_scores(ROWS, EnsembleTeacher([first, second]), cache_dir=tmp_path)
    three = [CountingTeacher(1), CountingTeacher(2), third]
    scored = add_teacher_scores(ROWS, EnsembleTeacher(three, normalize=None), cache_dir=tmp_path)

    assert [teacher.asked for teacher in (first, second)] == [2, 2]
    assert [teacher.asked for teacher in three] == [0, 0, 2]
    np.testing.assert_allclose(scored["teacher_scores"][0], [1, (2 + 4 + 8) / 3, (3 + 9 + 27) / 3], rtol=1e-6)


def test_what_a_teacher_alone_was_paid_for_serves_the_ensemble(tmp_path):
    add_teacher_scores(ROWS, CountingTeacher(1), cache_dir=tmp_path)
    member = CountingTeacher(1)
    fit_weights([member], ROWS.add_column("labels", [[1, 0, 0], [1, 0, 0]]).select([1]), cache_dir=tmp_path / "other")
    before = member.asked
    add_teacher_scores(ROWS, EnsembleTeacher([member]), cache_dir=tmp_path)

    assert (before, member.asked) == (1, 1)


def test_a_column_is_read_anew_when_its_values_change(tmp_path):
    ensemble = EnsembleTeacher(columns("mine"), normalize=None)
    for scores in ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]]):
        rows = ROWS.add_column("mine", scores)
        assert add_teacher_scores(rows, ensemble, cache_dir=tmp_path)["teacher_scores"][:] == scores


def test_a_teacher_that_reads_the_rows_own_scores_may_replace_them(tmp_path):
    rows = ROWS.add_column("teacher_scores", [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    ensemble = EnsembleTeacher([ColumnTeacher(), CountingTeacher(1)], normalize="rank")
    scored = add_teacher_scores(rows, ensemble, cache_dir=tmp_path)

    assert scored["teacher_scores"][:] == [[-1.0, 0.0, 1.0], [0.0, -0.5, 0.5]]
    with pytest.raises(ValueError, match="which one counts"):
        add_teacher_scores(rows, EnsembleTeacher([CountingTeacher(1)]), cache_dir=tmp_path)


def test_the_fingerprint_follows_members_weights_and_normalisation():
    made = [
        EnsembleTeacher(columns("a", "b")),
        EnsembleTeacher(columns("a", "c")),
        EnsembleTeacher(columns("b", "a")),
        EnsembleTeacher(columns("a", "b"), weights=[0.25, 0.75]),
        EnsembleTeacher(columns("a", "b"), normalize="rank"),
    ]

    assert made[0].fingerprint == EnsembleTeacher(columns("a", "b"), weights=[0.5, 0.5]).fingerprint
    assert len({ensemble.fingerprint for ensemble in made}) == len(made)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "z-score"}, r"normalize='z-score': expected one of \['zscore', 'rank'\].*mean 'zscore'\?"),
        ({"normalize": ["rank"]}, r"normalize=\['rank'\]: expected one for all or 2"),
        ({"weights": [2, 1]}, r"their sum is 3, expected 1\. Divide them by it: \[0\.6667, 0\.3333\]"),
        ({"weights": [1.5, -0.5]}, r"weights=\[1\.5, -0\.5\]: expected numbers of 0 or more"),
        ({"weights": [float("nan"), 1.0]}, "expected numbers of 0 or more"),
        ({"weights": [1.0]}, r"weights=\[1\.0\]: expected 2"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_fits_no_ensemble_is_refused_with_its_value(options, message):
    with pytest.raises(ValueError, match=message):
        EnsembleTeacher(columns("a", "b"), **options)


@pytest.mark.parametrize("scales", [["logit", "probability"], ["rank", "rank"]])
def test_scores_of_unlike_scales_and_ranks_are_not_averaged_as_they_are(scales):
    with pytest.raises(ValueError, match=rf"{scales[0]}', '{scales[1]}.*expected one scale"):
        EnsembleTeacher([ColumnTeacher("a", scale=scale) for scale in scales], normalize=None)


@pytest.mark.parametrize("teachers", [[], "BAAI/bge-reranker-v2-m3"])
def test_an_ensemble_needs_a_list_with_a_teacher(teachers):
    with pytest.raises(ValueError, match="expected a list with one teacher or more"):
        EnsembleTeacher(teachers)


def test_a_live_teacher_is_no_member_and_the_error_says_where_it_belongs():
    with pytest.raises(ValueError, match=r"EmaTeacher scores in every step.*DistillRerankTrainer\(teacher="):
        EnsembleTeacher([*columns("one"), EmaTeacher()])


def test_members_that_give_unlike_numbers_of_scores_are_refused(tmp_path):
    ensemble = EnsembleTeacher([CountingTeacher(1), CountingTeacher(2, num_scores=2)])

    with pytest.raises(ValueError, match=r"group 0: the ensemble's members gave \[3, 2\] scores"):
        ensemble.score(ROWS.to_list())
    with pytest.raises(ValueError, match="group 0: the teacher gave 2 scores for 3 passages"):
        add_teacher_scores(ROWS, ensemble, cache_dir=tmp_path)


def test_a_normalisation_that_loses_scores_is_refused():
    ensemble = EnsembleTeacher([CountingTeacher(1)], normalize=lambda scores: scores[:1])

    with pytest.raises(ValueError, match=r"group 0: normalize made \[\(1,\)\] of 3 scores"):
        ensemble.score(ROWS.to_list())


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"reads the column 'mine'.*has only \['query', 'passages'\]"):
        ColumnTeacher("mine").score(ROWS.to_list())


@pytest.mark.parametrize(
    ("labels", "sign", "message"),
    [
        (None, 1, "has only the columns|have only the columns"),
        ([[0.0] * 8] * 20, 1, "none of 20 groups has a label above 0 beside a lower one"),
        ("right", -1, "none of the 1 teachers ranks the positives"),
    ],
    ids=["no labels", "no positive", "a reversed teacher"],
)
def test_weights_are_not_fitted_where_nothing_can_be_learned(tmp_path, labels, sign, message):
    groups = taught_groups(20)
    scores = [[sign * label for label in row] for row in groups["labels"]]
    groups = groups.add_column("mine", scores)
    if labels != "right":
        groups = groups.remove_columns("labels")
        groups = groups if labels is None else groups.add_column("labels", labels)

    with pytest.raises(ValueError, match=message):
        fit_weights(columns("mine"), groups, cache_dir=tmp_path)
