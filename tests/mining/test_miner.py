from __future__ import annotations

import logging
import random

import datasets
import numpy as np
import pytest
import torch

from rerank_trainer.data.first_stage import BM25
from rerank_trainer.data.formats import to_groups
from rerank_trainer.data.runs import read_qrels
from rerank_trainer.data.texts import read_texts
from rerank_trainer.mining.filters import (
    AbsoluteMargin,
    MaxScore,
    PercentOfPositive,
    RelativeMargin,
    RerankerScores,
    RerankerVerdict,
)
from rerank_trainer.mining.first_stages import Embeddings
from rerank_trainer.mining.miner import mine_negatives
from rerank_trainer.models.reranker import Reranker
from tests.tiny_models import tiny_model

CORPUS = {f"p{number}": f"passage {number}" for number in range(10)}
# Of query q, p2 is the positive and p1 a positive that nobody labelled.
RUN = {"q": [("p1", 9.5), ("p2", 9.0), ("p3", 8.7), ("p4", 8.0), ("p5", 4.0), ("p6", 2.0)]}
PAIR = {"query_id": "q", "query": "a query", "passage": "passage 2", "label": 1}


def rows(*given) -> datasets.Dataset:
    return datasets.Dataset.from_list(list(given))


def mined_ids(groups) -> list[list[str]]:
    return [
        [passage_id for passage_id, label in zip(ids, labels, strict=True) if label == 0]
        for ids, labels in zip(groups["passage_ids"], groups["labels"], strict=True)
    ]


def mine(filters=(), **options):
    options = {"first_stage": RUN, "num_negatives": 4, "range_min": 0, "sampling_strategy": "top"} | options
    return mine_negatives(rows(PAIR), CORPUS, filters=filters, **options)


class TableReranker(Reranker):
    """A reranker whose logits are given by passage."""

    def __init__(self, logits):
        super().__init__(*tiny_model("bert"))
        self.logits, self.num_calls = logits, 0

    def predict(self, pairs, **options):
        self.num_calls += 1
        return torch.tensor([self.logits[passage] for _, passage in pairs])


def test_a_group_is_its_positives_then_the_best_negatives_in_the_order_of_the_first_stage():
    groups, report = mine()

    assert groups.to_list() == [
        {
            "query": "a query",
            "query_id": "q",
            "passages": ["passage 2", "passage 1", "passage 3", "passage 4", "passage 5"],
            "passage_ids": ["p2", "p1", "p3", "p4", "p5"],
            "labels": [1.0, 0.0, 0.0, 0.0, 0.0],
        }
    ]
    assert (report.num_candidates, report.num_negatives, report.num_complete) == (5, 4, 1)
    assert to_groups(groups).to_list() == groups.to_list()


def test_the_window_counts_ranks_without_the_positive():
    groups, report = mine(range_min=1, range_max=3, num_negatives=2)

    assert mined_ids(groups) == [["p3", "p4"]]
    assert report.num_candidates == 2


@pytest.mark.parametrize(
    ("one", "kept"),
    [
        (MaxScore(8.5), ["p4", "p5", "p6"]),
        (AbsoluteMargin(0.5), ["p4", "p5", "p6"]),  # at most 8.5
        (AbsoluteMargin(1.0), ["p4", "p5", "p6"]),  # at most 8, which p4 is
        (RelativeMargin(0.5), ["p5", "p6"]),  # at most 4.5
        (PercentOfPositive(0.25), ["p6"]),  # at most 2.25
    ],
)
def test_a_filter_drops_what_scores_too_near_to_the_positive(one, kept):
    groups, report = mine([one])

    assert mined_ids(groups) == [kept]
    assert report.filters[0].num_dropped == 5 - len(kept)


def test_filters_run_in_their_order_and_count_what_each_drops():
    groups, report = mine([AbsoluteMargin(0.0), RelativeMargin(0.5)])

    assert mined_ids(groups) == [["p5", "p6"]]
    assert [(of.name, of.num_dropped) for of in report.filters] == [
        ("AbsoluteMargin(0)", 1),
        ("RelativeMargin(0.5)", 2),
    ]


LOGITS = {"passage 2": 3.0, "passage 1": 4.0, "passage 3": -1.0, "passage 4": 0.5, "passage 5": 2.0, "passage 6": -9.0}


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda it: RerankerVerdict(it, threshold=0.5), ["p3", "p6"]),  # logit at most 0
        (lambda it: RerankerVerdict(it, margin=0.0), ["p3", "p4", "p5", "p6"]),
        (lambda it: RerankerVerdict(it, threshold=0.7, margin=1.0), ["p3", "p4", "p6"]),  # log(7 / 3) = 0.85; 3 - 1 = 2
        (lambda it: AbsoluteMargin(1.0, scored_by=it), ["p3", "p4", "p5", "p6"]),
        (lambda it: MaxScore(0.3, scored_by=RerankerScores(it, probabilities=True)), ["p3", "p6"]),  # sigmoid(-1) = .27
        (lambda it: PercentOfPositive(0.7, scored_by=RerankerScores(it, probabilities=True)), ["p3", "p4", "p6"]),
    ],
)
def test_a_reranker_catches_what_the_first_stage_ranks_like_the_others(make, kept):
    # sigmoid: 3 -> .953, 70 % of it .667; 0.5 -> .622, 2 -> .881
    groups, _ = mine([make(TableReranker(LOGITS))], num_negatives=5)

    assert mined_ids(groups) == [kept]


def test_filters_of_one_reranker_score_each_pair_once():
    reranker = TableReranker(LOGITS)
    verdicts = [RerankerVerdict(reranker, threshold=0.9), RerankerVerdict(reranker, margin=0.0)]

    mine([*verdicts, MaxScore(1.0, scored_by=reranker)])

    assert reranker.num_calls == 2  # the candidates, then the positive


def test_an_unlabelled_positive_of_a_run_without_the_labelled_one_is_caught_by_another_scorer_only():
    run = {"q": [entry for entry in RUN["q"] if entry[0] != "p2"]}

    with pytest.raises(ValueError, match="the run has no score for 1 positives of 1 queries, query 'q' for one"):
        mine([AbsoluteMargin(0.0)], first_stage=run)
    groups, _ = mine([RerankerVerdict(TableReranker(LOGITS), margin=0.0)], first_stage=run)
    assert mined_ids(groups) == [["p3", "p4", "p5", "p6"]]


def test_positives_of_another_group_with_the_same_query_text_are_no_negatives():
    other = {**PAIR, "query_id": "r", "passage": "passage 1"}
    run = RUN | {"r": RUN["q"]}

    groups, _ = mine_negatives(rows(PAIR, other), CORPUS, first_stage=run, num_negatives=2, range_min=0, range_max=2)

    assert mined_ids(groups) == [["p3", "p4"], ["p3", "p4"]]


def test_a_positive_is_known_by_its_text_under_any_id():
    corpus = {"copy": "passage 2"} | CORPUS
    run = {"q": [("copy", 10.0), *RUN["q"]]}

    groups, report = mine_negatives(
        rows(PAIR), corpus, first_stage=run, num_negatives=2, range_min=0, sampling_strategy="top"
    )

    assert mined_ids(groups) == [["p1", "p3"]]
    assert report.num_duplicate_passages == 1


def test_graded_labels_and_several_positives_stay_and_old_negatives_go_unless_they_are_kept():
    group = {
        "query_id": "q", "query": "a query", "passages": ["passage 9", "passage 3", "passage 2"],
        "labels": [0.0, 1.0, 3.0], "weight": 0.5, "source": "mine", "teacher_scores": [0.0, 1.0, 2.0],
    }  # fmt: skip
    options = {"first_stage": RUN, "num_negatives": 2, "range_min": 0, "sampling_strategy": "top"}

    replaced, _ = mine_negatives(rows(group), CORPUS, **options)
    extended, _ = mine_negatives(rows(group), CORPUS, keep_negatives=True, **options)

    assert replaced[0]["passage_ids"] == ["p3", "p2", "p1", "p4"]
    assert replaced[0]["labels"] == [1.0, 3.0, 0.0, 0.0]
    assert extended[0]["passage_ids"] == ["p3", "p2", "p9", "p1", "p4"]
    assert extended[0]["labels"] == [1.0, 3.0, 0.0, 0.0, 0.0]
    assert (replaced[0]["weight"], replaced[0]["source"]) == (0.5, "mine")
    assert "teacher_scores" not in replaced.column_names


def test_a_negative_that_is_kept_is_not_mined_again():
    group = {"query_id": "q", "query": "a query", "passages": ["passage 2", "passage 1"], "labels": [1.0, 0.0]}

    groups, _ = mine_negatives(
        rows(group), CORPUS, first_stage=RUN, num_negatives=5, range_min=0, range_max=10, keep_negatives=True
    )

    assert groups[0]["passage_ids"] == ["p2", "p1", "p3", "p4", "p5", "p6"]


def test_groups_without_negatives_are_counted_and_left_out_or_kept():
    missing = {**PAIR, "query_id": "unknown", "query": "another"}
    unlabelled = {**PAIR, "query_id": "z", "query": "no positive", "label": 0}
    options = {"first_stage": RUN, "num_negatives": 9, "range_min": 0}

    groups, report = mine_negatives(rows(missing, PAIR, unlabelled), CORPUS, **options)
    kept, _ = mine_negatives(rows(missing, PAIR, unlabelled), CORPUS, keep_empty=True, **options)

    assert groups["query_id"] == ["q"]
    assert (report.num_complete, report.num_short, report.num_empty, report.num_without_candidates) == (0, 1, 1, 1)
    assert (report.num_groups, report.num_without_positive) == (3, 1)
    assert kept["query_id"] == ["unknown", "q"]
    assert kept[0]["passages"] == ["passage 2"]


def test_mining_that_finds_nothing_at_all_is_an_error_with_the_report():
    with pytest.raises(ValueError, match=r"no query got a negative(.|\n)*dropped by MaxScore\(1\) +5"):
        mine([MaxScore(1.0)])
    with pytest.raises(ValueError, match="expected groups with a label above 0, found none in 1"):
        mine_negatives(rows({**PAIR, "label": 0}), CORPUS, first_stage=RUN)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"num_negatives": 0}, "num_negatives must be 1 or more, found 0"),
        ({"range_min": 3, "range_max": 3}, "found range_min=3 and range_max=3"),
        ({"range_min": -1}, "found range_min=-1"),
        ({"num_negatives": 5, "range_min": 2, "range_max": 6}, "num_negatives=5 cannot come from the 4 ranks"),
        ({"num_examples": -1}, "num_examples must be 0 or more, found -1"),
        ({"sampling_strategy": "best"}, "sampling_strategy must be 'random' or 'top', found 'best'"),
    ],
)
def test_a_number_out_of_range_is_refused(options, found):
    with pytest.raises(ValueError, match=found):
        mine(**options)


def test_passage_ids_are_there_only_where_every_passage_has_one(caplog):
    pair = {**PAIR, "passage": "in no corpus"}

    with caplog.at_level(logging.INFO, logger="rerank_trainer.mining.miner"):
        groups, _ = mine_negatives(rows(pair), CORPUS, first_stage=RUN, num_negatives=4, range_min=0)

    assert "passage_ids" not in groups.column_names
    assert "no column passage_ids: 1 passages of the groups have no id" in caplog.text


def test_texts_stand_in_the_report_only_as_the_examples_asked_for():
    _, silent = mine([AbsoluteMargin(0.0), MaxScore(8.5)])
    _, report = mine([AbsoluteMargin(0.0), MaxScore(8.5)], num_examples=2)

    assert "passage" not in str(silent).replace("passages", "")
    assert silent.to_dict()["examples"] == ()
    told = [(of["verdict"], of["passage"], of["rank"], of["score"]) for of in report.examples]
    assert told == [
        ("chosen", "passage 4", 3, 8.0),
        ("chosen", "passage 5", 4, 4.0),
        ("AbsoluteMargin(0)", "passage 1", 1, 9.5),
        ("MaxScore(8.5)", "passage 3", 2, 8.7),
    ]
    assert {(of["query"], of["positive"]) for of in report.examples} == {("a query", "passage 2")}


# ---- chance


def many() -> tuple[list[dict], dict[str, str]]:
    rng = random.Random(0)
    words = [f"word{number}" for number in range(40)]
    corpus = {f"p{number}": " ".join(rng.sample(words, 6)) for number in range(60)}
    pairs = [{"query": " ".join(rng.sample(words, 3)), "positive": corpus[f"p{number}"]} for number in range(25)]
    return pairs, corpus


def negatives_of(groups) -> dict[str, list[str]]:
    return dict(zip(groups["query"], groups["passages"], strict=True))


@pytest.mark.parametrize("with_corpus", [True, False])
def test_the_order_of_the_rows_changes_the_order_of_the_groups_and_nothing_else(with_corpus):
    pairs, corpus = many()
    options = {
        "num_negatives": 3,
        "range_min": 1,
        "range_max": 12,
        "filters": [RelativeMargin(0.1)],
        "keep_empty": True,
    }

    found, report = mine_negatives(rows(*pairs), corpus if with_corpus else None, **options)
    reversed_, again = mine_negatives(rows(*pairs[::-1]), corpus if with_corpus else None, **options)

    assert found["query"] == [pair["query"] for pair in pairs]
    assert reversed_["query"] == found["query"][::-1]
    assert negatives_of(found) == negatives_of(reversed_)
    assert report == again


class WaveringBM25(BM25):
    """BM25 whose scores depend a little on the place of a query among the others, as a batch's last digits do."""

    def score_rows(self, queries, passages):
        for number, scores in enumerate(super().score_rows(queries, passages)):
            yield scores + np.random.default_rng(number).normal(0, 0.1, len(scores)) * (scores > 0)


def test_scores_that_follow_the_order_of_queries_do_not_follow_the_order_of_the_rows():
    pairs, corpus = many()
    options = {"first_stage": WaveringBM25(), "num_negatives": 3, "range_min": 0, "sampling_strategy": "top"}

    found, _ = mine_negatives(rows(*pairs), corpus, **options)
    reversed_, _ = mine_negatives(rows(*pairs[::-1]), corpus, **options)

    assert negatives_of(found) == negatives_of(reversed_)


def test_another_seed_draws_others_and_a_query_draws_the_same_beside_other_queries():
    pairs, corpus = many()
    options = {"num_negatives": 3, "range_min": 0, "range_max": 12}

    found = negatives_of(mine_negatives(rows(*pairs), corpus, **options)[0])
    other = negatives_of(mine_negatives(rows(*pairs), corpus, seed=1, **options)[0])
    alone = negatives_of(mine_negatives(rows(pairs[7]), corpus, **options)[0])

    assert sum(found[query] != other[query] for query in found) > 15
    assert alone == {pairs[7]["query"]: found[pairs[7]["query"]]}


def test_each_query_draws_places_of_its_own():
    queries = [f"q{number}" for number in range(8)]
    run = {query: [(f"p{place}", -place) for place in range(10) if place != 2] for query in queries}
    pairs = rows(*({**PAIR, "query_id": query, "query": query} for query in queries))

    groups, _ = mine_negatives(pairs, CORPUS, first_stage=run, num_negatives=3, range_min=0)

    assert len({tuple(ids) for ids in mined_ids(groups)}) > 4


def test_random_draws_stand_in_the_order_of_the_first_stage_and_reach_all_of_the_window():
    pairs, corpus = many()
    scores = BM25().score_rows([pairs[0]["query"]], list(corpus.values()))
    of_text = dict(zip(corpus.values(), next(scores).tolist(), strict=True))
    drawn = set()
    for seed in range(12):
        groups, _ = mine_negatives(rows(pairs[0]), corpus, num_negatives=2, range_min=0, range_max=4, seed=seed)
        negatives = groups[0]["passages"][1:]
        assert [of_text[text] for text in negatives] == sorted((of_text[text] for text in negatives), reverse=True)
        drawn.update(negatives)

    assert len(drawn) == 4


def test_groups_of_other_texts_have_another_fingerprint():
    prints = {
        mine_negatives(rows(PAIR), {name: f"{text}{end}" for name, text in CORPUS.items()} | {"p2": "passage 2"},
                       first_stage=RUN, num_negatives=2, range_min=0)[0]._fingerprint
        for end in ("", "!", "?")
    }  # fmt: skip

    assert len(prints) == 3


# ---- real first stages

TOPICS = {
    "what do cats eat": ["Cats eat mice and fish.", "A cat's diet is meat: it eats mice."],
    "how do plants make food": [
        "Plants make food from light by photosynthesis.",
        "By photosynthesis plants make food.",
    ],
    "when was the telephone invented": ["The telephone was invented in 1876.", "Bell patented the phone in 1876."],
}
FILLERS = [
    "The river floods in spring.",
    "Dogs chase cats.",
    "Plants need water.",
    "A telephone rings.",
    "Snow is cold.",
]


def test_bm25_negatives_share_words_with_the_query():
    pairs = rows(*({"query": query, "positive": texts[0]} for query, texts in TOPICS.items()))

    groups, report = mine_negatives(pairs, FILLERS, num_negatives=1, range_min=0, sampling_strategy="top")

    assert [passages[1] for passages in groups["passages"]] == [
        "Dogs chase cats.",
        "Plants need water.",
        "A telephone rings.",
    ]
    assert report.num_passages == 8


@pytest.fixture(scope="module")
def minilm(minilm_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm_path)
    model.max_seq_length = 48
    return model


@pytest.mark.parametrize(
    ("asked", "filters"),
    [
        ({"range_min": 1, "range_max": 6}, []),
        ({"range_max": 8, "absolute_margin": 0.1}, [AbsoluteMargin(0.1)]),
        ({"range_max": 8, "relative_margin": 0.3}, [RelativeMargin(0.3)]),
        ({"range_max": 8, "max_score": 0.3}, [MaxScore(0.3)]),
    ],
)
def test_negatives_are_those_of_sentence_transformers_where_both_define_them(minilm, asked, filters):
    from sentence_transformers.util import mine_hard_negatives

    pairs = rows(*({"query": query, "positive": texts[0]} for query, texts in TOPICS.items()))
    corpus = FILLERS + [texts[1] for texts in TOPICS.values()]
    theirs = mine_hard_negatives(
        pairs, minilm, corpus=corpus, num_negatives=3, sampling_strategy="top", output_format="labeled-list",
        verbose=False, **asked,
    )  # fmt: skip

    ours, _ = mine_negatives(
        pairs, corpus, first_stage=Embeddings(minilm), num_negatives=3, sampling_strategy="top", filters=filters,
        range_min=asked.get("range_min", 0), range_max=asked["range_max"],
    )  # fmt: skip

    assert ours["query"] == theirs["query"]
    assert ours["passages"] == theirs["positive"]
    assert all(len(passages) > 1 for passages in ours["passages"])


def test_a_share_of_the_positives_similarity_drops_planted_positives(minilm):
    # the second answer of each topic is not labelled
    pairs = rows(*({"query": query, "positive": texts[0]} for query, texts in TOPICS.items()))
    planted = {query: texts[1] for query, texts in TOPICS.items()}
    corpus = FILLERS + list(planted.values())
    options = {"num_negatives": 4, "range_min": 0, "first_stage": Embeddings(minilm), "sampling_strategy": "top"}

    plain, _ = mine_negatives(pairs, corpus, **options)
    filtered, _ = mine_negatives(pairs, corpus, filters=[PercentOfPositive(0.7)], **options)

    def caught(groups):
        return [planted[query] not in passages for query, passages in negatives_of(groups).items()]

    assert caught(plain) == [False] * 3
    assert caught(filtered) == [True] * 3


@pytest.mark.slow
def test_the_filter_drops_a_third_or_more_of_the_withheld_positives_of_real_judgements(rerank_data, minilm):
    folder = rerank_data / "medquad"
    qrels = {query: list(of) for query, of in read_qrels(folder / "qrels" / "dev.tsv").items() if len(of) > 1}
    qrels = {query: qrels[query] for query in list(qrels)[:25]}
    queries = read_texts(folder / "queries.jsonl", "queries", qrels)
    corpus = read_texts(folder / "corpus.jsonl", "corpus", {passage for of in qrels.values() for passage in of})
    known = {query: of[0] for query, of in qrels.items()}
    pairs = rows(*({"query_id": q, "query": queries[q], "passage": corpus[p], "label": 1} for q, p in known.items()))
    withheld = {(queries[query], corpus[passage]) for query, of in qrels.items() for passage in of[1:]}

    _, report = mine_negatives(
        pairs, corpus, first_stage=Embeddings(minilm), num_negatives=10, range_min=0, range_max=10,
        sampling_strategy="top", filters=[PercentOfPositive(0.95)], num_examples=1000,
    )  # fmt: skip

    # Without the filter all ten would be negatives.
    judged = [(of["verdict"] == "chosen", (of["query"], of["passage"]) in withheld) for of in report.examples]
    num_false, num_caught = judged.count((True, True)), judged.count((False, True))
    print(
        f"of {len(withheld)} withheld positives {num_false + num_caught} are among the first ten, {num_caught} dropped;"
    )
    print(f"of the others {judged.count((True, False))} are kept, {judged.count((False, False))} dropped")
    assert len(judged) == 10 * len(pairs)
    assert num_false + num_caught > 0.5 * len(withheld)
    assert num_caught > (num_false + num_caught) / 3
