from __future__ import annotations

import datasets
import pytest

from rerank_trainer.mining.passages import gather, labelled_groups


def rows(*given) -> datasets.Dataset:
    return datasets.Dataset.from_list(list(given))


def group(query, passages, labels, **more) -> dict:
    return {"query": query, "passages": passages, "labels": labels, **more}


def test_the_rows_of_one_query_of_bare_pairs_become_one_group():
    pairs = rows(
        {"question": "1 + 1", "answer": "2", "query_id": 7},
        {"question": "capital of Peru", "answer": "Lima", "query_id": 8},
        {"question": "1 + 1", "answer": "10 in binary", "query_id": 7},
    )

    assert labelled_groups(pairs).to_list() == [
        {"query": "1 + 1", "query_id": "7", "passages": ["2", "10 in binary"], "labels": [1.0, 1.0]},
        {"query": "capital of Peru", "query_id": "8", "passages": ["Lima"], "labels": [1.0]},
    ]


def test_groups_that_miss_positives_are_refused():
    groups = rows(
        group("q", ["a"], [1.0], missed_gains=[]),
        group("r", ["b"], [1.0], missed_gains=[2.0]),
    )

    with pytest.raises(ValueError, match=r"group 1 has 1 relevant passages .*missed_gains \[2.0\].*add_positives=True"):
        labelled_groups(groups)
    assert len(labelled_groups(groups.select([0]))) == 1


def test_groups_without_labels_are_refused():
    with pytest.raises(ValueError, match=r"expected groups with labels, .* found the columns"):
        labelled_groups(rows({"query": "q", "passages": ["a"], "teacher_scores": [1.0]}))


def test_the_pool_is_the_corpus_then_the_positives_that_are_not_in_it_by_their_texts():
    groups = rows(group("q", ["z", "b", "new negative"], [1.0, 1.0, 0.0]), group("r", ["k"], [2.0]))

    pool, judged = gather(groups, {"2": "c", "1": "b"}, keep_negatives=False)

    assert pool.passages == ["c", "b", "k", "z"]
    assert pool.ids == ["2", "1", None, None]
    assert [of.own for of in judged] == [{3: 1.0, 1: 1.0}, {2: 2.0}]


def test_without_a_corpus_the_pool_is_all_passages_of_the_groups():
    one, other = group("q", ["z", "b"], [1.0, 0.0]), group("r", ["b", "a"], [1.0, 0.0])

    assert gather(rows(one, other), None, keep_negatives=False)[0].passages == ["a", "b", "z"]
    assert gather(rows(other, one), None, keep_negatives=False)[0].passages == ["a", "b", "z"]


def test_empty_and_repeated_passages_are_left_out_and_counted():
    pool, _ = gather(rows(group("q", ["a"], [1.0])), {"1": "a", "2": " ", "3": "b", "4": "a"}, keep_negatives=False)

    assert pool.passages == ["a", "b"]
    assert (pool.num_empty, pool.num_duplicates) == (1, 1)
    assert pool.place_of_id == {"1": 0, "3": 1, "4": 0}


def test_queries_of_one_text_share_their_positives():
    groups = rows(group("q", ["a"], [1.0]), group("other", ["b"], [1.0]), group("q", ["c", "b"], [1.0, 0.0]))

    _, judged = gather(groups, None, keep_negatives=False)

    assert [of.positives for of in judged] == [{0, 2}, {1}, {0, 2}]
    assert [set(of.own) for of in judged] == [{0}, {1}, {2}]


def test_a_passage_that_is_the_query_is_excluded_and_no_positive():
    _, (judged,) = gather(rows(group("how to sort", ["use sorted"], [1.0])), ["how to sort"], keep_negatives=False)

    assert judged.excluded == {0, 1}
    assert judged.positives == {1}


def test_negatives_are_kept_only_where_asked_and_the_highest_label_of_a_text_counts():
    groups = rows(group("q", ["a", "b", "b", "c"], [0.0, 1.0, 3.0, 0.0]))

    assert gather(groups, None, keep_negatives=False)[1][0].own == {1: 3.0}
    assert gather(groups, None, keep_negatives=True)[1][0].own == {0: 0.0, 1: 3.0, 2: 0.0}


def test_ids_of_the_groups_are_kept_for_passages_that_are_not_in_the_corpus():
    groups = rows(group("q", ["a", "b"], [1.0, 1.0], passage_ids=["7", "8"]))

    pool, _ = gather(groups, {"8": "b"}, keep_negatives=False)

    assert pool.ids == ["8", "7"]


@pytest.mark.parametrize("corpus", [{"7": "A title a"}, None])
def test_two_texts_under_one_id_are_refused(corpus):
    groups = rows(
        group("q", ["a"], [1.0], passage_ids=["7"]),
        group("r", ["a" if corpus else "A title a"], [1.0], passage_ids=["7"]),
    )

    with pytest.raises(ValueError, match="the passage '7' reads '.*a' in its group but '.*a' elsewhere"):
        gather(groups, corpus, keep_negatives=False)


@pytest.mark.parametrize(
    ("corpus", "found"),
    [
        ("a text", "found the text 'a text'"),
        (datasets.Dataset.from_dict({"_id": ["1"], "text": ["a"]}), r"a data set with the columns _id \(string\)"),
        ({"1": None}, "expected ids and passages as text, found '1': None"),
        ({1: "a"}, "expected ids and passages as text, found 1: 'a'"),
    ],
)
def test_what_is_no_corpus_is_refused(corpus, found):
    with pytest.raises(ValueError, match=found):
        gather(rows(group("q", ["a"], [1.0])), corpus, keep_negatives=False)
