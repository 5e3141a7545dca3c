"""Teachers that know an order alone: what their rankings become, what losses make of them, and what is refused."""

from __future__ import annotations

import itertools

import datasets
import pytest
import torch

from rerank_trainer.data.rankings import hold_minus_ranks
from rerank_trainer.data.runs import write_run
from rerank_trainer.losses import LOSSES
from rerank_trainer.objectives.consistency import IsotonicMap, ZScore
from rerank_trainer.objectives.gated import GatedObjective
from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.naming import ORDER_LOSSES, TEACHER_LOSSES
from rerank_trainer.objectives.objective import LabelObjective, TeacherObjective, WeightedObjective
from rerank_trainer.objectives.order import parts_that_read_distances, refuse_distances_of_ranks
from rerank_trainer.teachers.check import check_teacher
from rerank_trainer.teachers.ranking import RankingTeacher
from rerank_trainer.teachers.store import add_teacher_scores
from tests.objectives.planted import accuracy, fit, planted_task

GROUP = {"query_id": "q1", "query": "1 + 1", "passages": ["four", "three", "two", "one"]}
GROUP |= {"passage_ids": ["p4", "p3", "p2", "p1"]}


# --- what rankings become --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranking", "by", "expected"),
    [
        (["p2", "p3", "p1", "p4"], "id", [-4.0, -2.0, -1.0, -3.0]),
        (["p2", "p3"], "id", [-3.0, -2.0, -1.0, -3.0]),
        (["p9", "p2", "p8", "p3"], "id", [-3.0, -2.0, -1.0, -3.0]),
        (["two", "three", "one", "four"], "text", [-4.0, -2.0, -1.0, -3.0]),
        ("[3] > [2] > [4] > [1]", "id", [-4.0, -2.0, -1.0, -3.0]),
        ("3 > 2", "text", [-3.0, -2.0, -1.0, -3.0]),
    ],
    ids=["all", "the best few", "others among them", "by text", "a permutation", "part of a permutation"],
)
def test_scores_are_minus_the_ranks_and_the_rest_shares_the_last(ranking, by, expected):
    teacher = RankingTeacher({"q1": ranking, "1 + 1": ranking}, by=by)

    assert teacher.score([GROUP])["scores"] == [expected]


def test_a_passage_that_stands_twice_in_its_group_has_one_rank():
    group = {"query": "1 + 1", "passages": ["two", "one", "two"]}

    assert RankingTeacher({"1 + 1": ["two", "one"]}, by="text").score([group])["scores"] == [[-1.0, -2.0, -1.0]]


def test_a_run_ranks_by_its_scores_and_gives_none_of_them(tmp_path):
    write_run(tmp_path / "run.trec", {"q1": [("p3", 0.25), ("p2", 17.5), ("p9", 3.0)]}, tag="x")

    assert RankingTeacher.from_run(tmp_path / "run.trec").score([GROUP])["scores"] == [[-3.0, -2.0, -1.0, -3.0]]


def test_rankings_are_stored_under_what_they_say_and_pass_the_check(tmp_path):
    groups = datasets.Dataset.from_list([GROUP])
    for ranking, expected in (("[1] > [2]", [-1.0, -2.0, -3.0, -3.0]), ("[2] > [1]", [-2.0, -1.0, -3.0, -3.0])):
        scored = add_teacher_scores(groups, RankingTeacher({"q1": ranking}), cache_dir=tmp_path)
        assert scored["teacher_scores"][0] == expected
        check_teacher(scored, scale=RankingTeacher.scale)


# --- what losses make of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDER_LOSSES)
def test_every_loss_of_an_order_learns_the_order(name):
    task, unseen = planted_task(300, seed=0), planted_task(500, seed=1)
    places = task.relevance.argsort(dim=1, descending=True) + 1
    rankings = {str(i): " > ".join(f"[{place}]" for place in row) for i, row in enumerate(places.tolist())}
    groups = [{"query_id": str(i), "query": "q", "passages": ["x"] * 8} for i in range(300)]
    scores = torch.tensor(RankingTeacher(rankings).score(groups)["scores"])
    objective = TeacherObjective(LOSSES[name])
    refuse_distances_of_ranks(objective, "rank")
    learned = fit(objective, task.features, task.targets(scores), learning_rate=0.3)

    assert accuracy(torch.zeros(16) + 1.0, unseen) < 0.4  # what a student that knows nothing reaches
    assert accuracy(learned, unseen) > 0.95


@pytest.mark.parametrize("name", sorted({*ORDER_LOSSES} - {"adr_mse"}))
def test_passages_that_a_list_of_the_best_few_leaves_out_are_not_ordered_by_losses(name):
    teacher = torch.tensor([[-1.0, -2.0, -3.0, -3.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    values = [
        LOSSES[name](torch.tensor([[0.5, 0.2, *last]]), teacher, mask=mask) for last in ([0.1, -0.4], [-0.4, 0.1])
    ]

    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-6)


def test_adr_mse_asks_the_same_rank_of_passages_that_are_left_out():
    teacher, mask = torch.tensor([[-1.0, -2.0, -3.0, -3.0]]), torch.ones(1, 4, dtype=torch.bool)
    far_apart = 1e4 * torch.tensor([[4.0, 3.0, 0.0, 0.0]])  # ranks 1, 2, 3.5 and 3.5

    assert LOSSES["adr_mse"](far_apart, teacher, mask=mask).item() == pytest.approx(0.0, abs=1e-6)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEACHER_LOSSES)
def test_a_loss_reads_distances_unless_it_is_one_of_an_order(name):
    assert parts_that_read_distances(TeacherObjective(LOSSES[name])) == ([] if name in ORDER_LOSSES else [name])


OF_TEACHER = TeacherObjective(LOSSES["kl"], teacher_temperature="auto")
READING_DISTANCES = [
    (
        "kl",
        WeightedObjective([(0.5, LabelObjective(LOSSES["infonce"])), (0.5, WeightedObjective([(1.0, OF_TEACHER)]))]),
    ),
    ("mixed", MixedObjective(label_weight=0.3)),
    ("kl", GatedObjective()),
]


@pytest.mark.parametrize(("part", "objective"), READING_DISTANCES, ids=["weighted", "mixed", "gated"])
def test_distances_between_ranks_are_refused_wherever_they_are_read(part, objective):
    refuse_distances_of_ranks(objective, "logit")
    refuse_distances_of_ranks(objective, None)
    with pytest.raises(ValueError, match=rf"\['{part}'\] reads the distances .* ranks.*ranknet.*IsotonicMap"):
        refuse_distances_of_ranks(objective, "rank")


@pytest.mark.parametrize("consistency", [IsotonicMap(), ZScore()])
def test_a_map_makes_distances_of_ranks(consistency):
    refuse_distances_of_ranks(TeacherObjective(LOSSES["mse"], consistency=consistency), "rank")


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        (["p2", "p3", "p2"], "the ranking of 'q1' names 'p2' for the second time"),
        ("[2] > [1] > [2]", "the ranking of 'q1' names 2 for the second time"),
        ("The best is [2]", r"the ranking of 'q1': expected a permutation such as .*, found 'The best is \[2\]'"),
        ("[2], [1]", r"found '\[2\], \[1\]'"),
    ],
)
def test_a_ranking_that_cannot_be_one_is_refused_when_it_is_given(ranking, message):
    with pytest.raises(ValueError, match=message):
        RankingTeacher({"q1": ranking})


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ({"q1": "[5] > [1]"}, "query_id 'q1': its ranking names the place 5 of 4 passages, counted from 1"),
        ({"q1": "[0] > [1]"}, "the place 0 of 4 passages, counted from 1"),
        ({"q2": ["p1"]}, "query_id 'q1': none of the 1 rankings is of it"),
        (
            {"q1": ["two"]},
            "its ranking \\['two'\\] ... names none of the group's passage_ids, \\['p4', 'p3'\\]",
        ),
    ],
)
def test_a_ranking_that_does_not_fit_the_group_is_refused(rankings, message):
    with pytest.raises(ValueError, match=message):
        RankingTeacher(rankings).score([GROUP])


def test_groups_without_ids_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="reads the column 'query_id'"):
        RankingTeacher({"q1": ["p1"]}).score([{"query": "1 + 1", "passages": ["2"]}])
    with pytest.raises(ValueError, match="by='docid': expected one of"):
        RankingTeacher({}, by="docid")


def test_minus_ranks_are_known_by_their_values():
    for size in (1, 2, 3, 4):
        for order in itertools.permutations(range(1, size + 1)):
            assert hold_minus_ranks([[-float(rank) for rank in order]])
    assert hold_minus_ranks([[-2.0, -1.0, -2.0]]) and hold_minus_ranks([[-1.0, -1.0]])
    for scores in ([0.0, -1.0], [-1.0, -1.0, -2.0], [-1.0, -3.0], [-1.5, -1.0], [2.0, 1.0]):
        assert not hold_minus_ranks([[-1.0, -2.0], scores])
