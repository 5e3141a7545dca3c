from __future__ import annotations

import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from rerank_trainer.data.formats import load_groups, to_groups
from rerank_trainer.data.layouts import LAYOUTS, recognise


def groups_of(rows, **options):
    return list(to_groups(Dataset.from_list(rows), **options))


TEXT, TEXTS, NUMBER, NUMBERS = Value("string"), List(Value("string")), Value("float64"), List(Value("float64"))


@pytest.mark.parametrize(
    ("features", "name", "roles"),
    [
        (
            {"query": TEXT, "passages": TEXTS, "teacher_scores": NUMBERS},
            "groups",
            {"query": "query", "passages": "passages", "teacher_scores": "teacher_scores"},
        ),
        (
            {"anchor": TEXT, "documents": TEXTS, "labels": List(Value("int64"))},
            "labelled list",
            {"anchor": "query", "documents": "passages", "labels": "labels"},
        ),
        (  # mine_hard_negatives(output_format="labeled-list") keeps the name of the positive column
            {"query": TEXT, "answer": TEXTS, "labels": NUMBERS},
            "labelled list",
            {"query": "query", "answer": "passages", "labels": "labels"},
        ),
        (
            {"question": TEXT, "text": TEXT, "label": Value("bool")},
            "labelled pairs",
            {"question": "query", "text": "passage", "label": "label"},
        ),
        (
            {"query": TEXT, "doc": TEXT, "label": ClassLabel(names=["no", "yes"])},
            "labelled pairs",
            {"query": "query", "doc": "passage", "label": "label"},
        ),
        (
            {"query": TEXT, "answer": TEXT, "negative_10": TEXT, "negative_2": TEXT, "scores": NUMBERS},
            "n-tuple",
            {
                "query": "query",
                "answer": "positive",
                "negative_2": "negative",
                "negative_10": "negative",
                "scores": "teacher_scores",
            },
        ),
        (
            {"query": Value("large_string"), "pos": TEXTS, "neg": TEXTS, "prompt": TEXT},
            "flag_embedding",
            {"query": "query", "pos": "pos", "neg": "neg", "prompt": "instruction"},
        ),
        (
            {"query": TEXT, "response": TEXT, "id": Value("int64")},
            "bare pairs",
            {"query": "query", "response": "positive"},
        ),
    ],
)
def test_columns_are_recognised_by_name_and_type(features, name, roles):
    reverse = dict(reversed(features.items()))

    assert recognise(features)[0].name == recognise(reverse)[0].name == name
    assert recognise(features)[1] == roles


def test_layouts_have_unlike_names():
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"text1": TEXT, "text2": TEXT}, r"no layout matches the columns text1 \(string\), text2 \(string\)"),
        ({"query": TEXT, "passages": TEXTS}, "no layout matches"),
        ({"docs": TEXTS, "labels": NUMBERS}, "no layout matches"),
        ({"query": TEXT, "label": NUMBER}, "no layout matches"),
        ({"passage": TEXT, "label": NUMBER}, "no layout matches"),
        ({"query": TEXT, "negative": TEXT}, "no layout matches"),
        ({"positive": TEXT, "negative": TEXT}, "no layout matches"),
        ({"query": TEXT, "neg": TEXTS}, "no layout matches"),
        ({"pos": TEXTS, "neg": TEXTS}, "no layout matches"),
        ({"answer": TEXT}, "no layout matches"),
        ({"query": TEXT, "passages": TEXTS, "labels": TEXTS}, r"labels \(list of string\)"),
        ({"query": Value("int64"), "answer": TEXT}, r"query \(int64\)"),
        ({"query": TEXT, "positive": TEXT, "negative": TEXTS}, r"negative \(list of string\)"),
        ({"query": TEXT, "answer": TEXT, "score": TEXT}, r"score \(string\)"),
        ({"query": TEXT, "pos": TEXTS}, r"pos \(list of string\)"),
        ({"query": {"text": TEXT}, "answer": TEXT}, r"query \(dict\), answer \(string\)"),
        (
            {"query": TEXT, "positive": TEXT, "negative": TEXT, "pos": TEXTS, "neg": TEXTS},
            r"more than one layout matches(.|\n)*- n-tuple(.|\n)*- flag_embedding",
        ),
        (
            {"query": TEXT, "docs": TEXTS, "passages": TEXTS, "label": NUMBERS},
            "'passages' and 'docs' could each be the",
        ),
        ({"query": TEXT, "question": TEXT, "answer": TEXT}, "'query' and 'question' could each be the query"),
        ({"query": TEXT, "answer": TEXT, "text": TEXT}, "'text' and 'answer' could each be the positive"),
        ({"query": TEXT, "text": TEXT, "label": NUMBER, "labels": NUMBER}, "'labels' and 'label' could each be"),
        ({"query": TEXT, "pos": TEXTS, "neg": TEXTS, "pos_scores": NUMBERS}, "'pos_scores' is there but not the other"),
        (
            {"query": TEXT, "pos": TEXTS, "neg": TEXTS, "prompt": TEXT, "instruction": TEXT},
            "'prompt' and 'instruction' could each be the instruction",
        ),
        (
            {"query": TEXT, "passages": TEXTS, "labels": TEXTS, "teacher_scores": NUMBERS},
            "'labels' has the name of a group's column, but the layout 'groups' cannot use it as list of string",
        ),
        (
            {"query": TEXT, "docs": TEXTS, "labels": NUMBERS, "weight": TEXT},
            "'weight' has the name .* cannot use it as string .* A group's weight is one number",
        ),
        (
            {"query": TEXT, "passage": TEXT, "label": NUMBER, "passage_ids": TEXTS},
            "'passage_ids' has the name .* A group's passage_ids is a list of ids",
        ),
    ],
)
def test_columns_that_are_not_clear_are_refused_by_name(features, message):
    with pytest.raises(ValueError, match=message):
        recognise(features)


def test_only_those_that_match_are_listed_when_more_than_one_does():
    with pytest.raises(ValueError, match="more than one layout matches") as error:
        recognise({"query": TEXT, "positive": TEXT, "negative": TEXT, "pos": TEXTS, "neg": TEXTS})

    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == ["- n-tuple", "- flag_embedding"]


def test_every_layout_is_listed_when_none_matches():
    with pytest.raises(ValueError, match="no layout matches") as error:
        recognise({"premise": TEXT, "hypothesis": TEXT})

    for layout in LAYOUTS:
        assert f"- {layout.name}: {layout.columns}" in str(error.value)


LISTS = {"query": "q", "docs": ["a", "b"], "scores": [2.5, 0.5]}
PAIRS = {"query": "q", "passage": "a", "score": 2.5}


@pytest.mark.parametrize("row", [LISTS, PAIRS])
def test_scores_that_may_be_labels_or_teacher_scores_are_refused_until_said(row):
    with pytest.raises(ValueError, match="labels .*teacher_scores .*Say which with scores_are='labels' or scores_are="):
        groups_of([row])


@pytest.mark.parametrize(("row", "values"), [(LISTS, [2.5, 0.5]), (PAIRS, [2.5])])
@pytest.mark.parametrize("scores_are", ["labels", "teacher_scores"])
def test_scores_are_what_the_caller_says(row, values, scores_are):
    (group,) = groups_of([row], scores_are=scores_are)

    assert set(group) == {"query", "passages", scores_are}
    assert group[scores_are] == values


def test_scores_beside_labels_can_be_a_teachers():
    row = {"query": "q", "passages": ["a", "b"], "labels": [1, 0], "scores": [2.5, -0.5]}

    with pytest.raises(ValueError, match="'scores' can be labels"):
        groups_of([row])
    assert groups_of([row], scores_are="teacher_scores") == [
        {"query": "q", "passages": ["a", "b"], "labels": [1.0, 0.0], "teacher_scores": [2.5, -0.5]}
    ]
    with pytest.raises(ValueError, match="'labels' and 'scores' could each be the labels"):
        groups_of([row], scores_are="labels")


def test_an_unknown_role_of_scores_is_refused():
    with pytest.raises(ValueError, match="scores_are must be .* found 'margins'"):
        groups_of([LISTS], scores_are="margins")


def test_groups_that_are_groups_already_come_back_unchanged():
    rows = [
        {
            "query": "q",
            "passages": ["a"],
            "labels": [2.0],
            "query_id": "1",
            "passage_ids": ["7"],
            "missed_gains": [1.0],
        },
        {"query": "r", "passages": [], "labels": [], "query_id": "2", "passage_ids": [], "missed_gains": [3.0]},
    ]
    groups = to_groups(Dataset.from_list(rows))

    assert list(groups) == rows
    assert list(to_groups(groups)) == rows


def test_ids_become_text_and_numbers_float():
    rows = [{"query": "q", "docs": ["a", "b"], "labels": [True, False], "query_id": 3, "passage_ids": [10, 11]}]

    groups = to_groups(Dataset.from_list(rows))

    assert groups.features == Features(
        {"query": TEXT, "passages": TEXTS, "labels": NUMBERS, "query_id": TEXT, "passage_ids": TEXTS}
    )
    assert groups[0]["labels"] == [1.0, 0.0]
    assert (groups[0]["query_id"], groups[0]["passage_ids"]) == ("3", ["10", "11"])


@pytest.mark.parametrize(
    "rows",
    [
        [{"query": "q", "docs": ["a"], "labels": [1]}],
        [{"query": "q", "passage": "a", "label": 1}],
        [{"query": "q", "positive": "a", "negative": "b"}],
        [{"query": "q", "pos": ["a"], "neg": ["b"]}],
        [{"query": "q", "answer": "a"}],
    ],
)
def test_every_layout_keeps_what_belongs_to_the_query(rows):
    extra = {"query_id": 4, "instruction": "", "source": "nq", "weight": 2}

    (group,) = groups_of([row | extra for row in rows])

    assert {name: group[name] for name in extra} == {"query_id": "4", "instruction": "", "source": "nq", "weight": 2.0}


# ---- labelled pairs


def test_pairs_of_one_query_keep_their_order_also_when_others_stand_between():
    rows = [
        {"query": "q", "passage": "z", "label": 0},
        {"query": "r", "passage": "y", "label": 3},
        {"query": "q", "passage": "a", "label": 1},
        {"query": "q", "passage": "m", "label": 2},
    ]

    assert groups_of(rows) == [
        {"query": "q", "passages": ["z", "a", "m"], "labels": [0.0, 1.0, 2.0]},
        {"query": "r", "passages": ["y"], "labels": [3.0]},
    ]


def test_pairs_are_collected_over_more_than_one_batch_of_groups():
    rows = [{"query": f"q{i % 2500}", "passage": f"p{i}", "label": i % 3} for i in range(7500)]

    groups = groups_of(rows)

    assert len(groups) == 2500
    assert groups[2499]["passages"] == ["p2499", "p4999", "p7499"]
    assert groups[2499]["labels"] == [2499 % 3, 4999 % 3, 7499 % 3]


def test_equal_queries_with_different_ids_are_different_groups():
    rows = [{"query": "q", "passage": passage, "label": 1, "query_id": i} for i, passage in enumerate("ab")]

    assert [(group["query_id"], group["passages"]) for group in groups_of(rows)] == [("0", ["a"]), ("1", ["b"])]


def test_rows_of_one_query_that_disagree_about_it_are_refused():
    rows = [
        {"query": "q", "passage": passage, "label": 1, "weight": weight} for passage, weight in [("a", 1), ("b", 2)]
    ]

    with pytest.raises(ValueError, match="row 1, column 'weight': expected 1, as in row 0 of the same query, found 2"):
        groups_of(rows)


def test_a_title_joins_a_text_and_no_passage_of_another_name(caplog):
    caplog.set_level("INFO")
    row = {"query": "q", "title": "t", "label": 1}

    assert groups_of([row | {"text": "a"}])[0]["passages"] == ["t a"]
    assert groups_of([row | {"passage": "a"}])[0]["passages"] == ["a"]
    assert "passage as passage, label as label; left out: title" in caplog.text


def test_content_is_a_passage_only_where_there_is_no_other():
    features = {"query": TEXT, "content": TEXT, "label": NUMBER}

    assert recognise(features)[1]["content"] == "passage"
    assert recognise(features | {"answer": TEXT})[1] == {"query": "query", "answer": "passage", "label": "label"}
    with pytest.raises(ValueError, match="no layout matches"):
        recognise({"query": TEXT, "content": TEXT})


@pytest.mark.parametrize("scores_are", [None, "labels"])
def test_a_score_beside_a_rank_is_a_teachers_whatever_scores_are(scores_are):
    row = {"query": "q", "text": "a", "rank": 1, "score": 2.5}

    assert groups_of([row], scores_are=scores_are) == [{"query": "q", "passages": ["a"], "teacher_scores": [2.5]}]


# ---- n-tuples


def test_a_margin_becomes_two_teacher_scores():
    row = {"query": "q", "positive": "a", "negative": "b", "score": -1.5}

    (group,) = groups_of([row])

    assert group == {"query": "q", "passages": ["a", "b"], "labels": [1.0, 0.0], "teacher_scores": [-1.5, 0.0]}


@pytest.mark.parametrize("name", ["score", "scores", "label", "teacher_scores"])
def test_a_list_beside_an_n_tuple_holds_teacher_scores(name):
    row = {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "c", name: [3, 2, 1]}

    (group,) = groups_of([row])

    assert group["passages"] == ["a", "b", "c"]
    assert group["labels"] == [1.0, 0.0, 0.0]
    assert group["teacher_scores"] == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(("name", "scores_are"), [("labels", None), ("label", "labels"), ("scores", "labels")])
def test_a_list_beside_an_n_tuple_can_hold_labels(name, scores_are):
    row = {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "c", name: [3, 0, 1]}

    (group,) = groups_of([row], scores_are=scores_are)

    assert group == {"query": "q", "passages": ["a", "b", "c"], "labels": [3.0, 0.0, 1.0]}


@pytest.mark.parametrize(
    ("columns", "scores_are", "message"),
    [
        (
            {"negative_1": TEXT, "negative_2": TEXT, "score": NUMBER},
            None,
            "'score' holds one number.* there are 2 columns",
        ),
        ({"negative": TEXT, "label": NUMBER}, None, "'label' holds one number.*say scores_are='teacher_scores'"),
        ({"negative": TEXT, "score": NUMBER}, "labels", "'score' holds one number .* which have labels already"),
        (
            {"negative": TEXT, "score": NUMBER, "teacher_scores": NUMBERS},
            None,
            "'score' and 'teacher_scores' could each",
        ),
        ({"negative": TEXT, "scores": NUMBERS, "teacher_scores": NUMBERS}, None, "'scores' and 'teacher_scores' could"),
    ],
)
def test_scores_of_an_n_tuple_that_are_not_clear_are_refused(columns, scores_are, message):
    with pytest.raises(ValueError, match=message):
        recognise({"query": TEXT, "positive": TEXT, **columns}, scores_are)


def test_teacher_scores_stay_a_teachers_whatever_scores_are():
    row = {"query": "q", "positive": "a", "negative": "b", "scores": [2, 1], "teacher_scores": [0.5, 0.25]}

    (group,) = groups_of([row], scores_are="labels")

    assert (group["labels"], group["teacher_scores"]) == ([2.0, 1.0], [0.5, 0.25])


def test_a_negative_without_a_number_comes_first():
    row = {"query": "q", "positive": "a", "negative_1": "c", "negative": "b"}

    assert groups_of([row])[0]["passages"] == ["a", "b", "c"]


def test_a_label_said_to_be_a_teachers_is_a_margin():
    row = {"query": "q", "positive": "a", "negative": "b", "label": 2.0}

    assert groups_of([row], scores_are="teacher_scores")[0]["teacher_scores"] == [2.0, 0.0]


# ---- flag_embedding


def test_positives_come_before_negatives_also_without_scores():
    row = {"query": "q", "pos": ["a", "b"], "neg": ["c"]}

    assert groups_of([row]) == [{"query": "q", "passages": ["a", "b", "c"], "labels": [1.0, 1.0, 0.0]}]


@pytest.mark.parametrize(("pos", "neg"), [("positive", "negative"), ("positives", "negatives")])
def test_lists_of_positives_and_negatives_may_have_other_names(pos, neg):
    assert groups_of([{"query": "q", pos: ["a", "b"], neg: ["c"]}]) == [
        {"query": "q", "passages": ["a", "b", "c"], "labels": [1.0, 1.0, 0.0]}
    ]


# ---- nemo and ms_swift


def test_a_text_counts_as_a_list_of_one_also_inside_an_object():
    rows = [{"query": "q", "pos_doc": {"text": "a", "image": ""}, "neg_doc": [{"text": "b"}, {"text": "c"}]}]

    assert groups_of(rows) == [{"query": "q", "passages": ["a", "b", "c"], "labels": [1.0, 0.0, 0.0]}]


@pytest.mark.parametrize(
    ("value", "found"),
    [([1, 2], r"'\[1,2\]'"), ({"body": "a"}, r"""'\{"body":"a"\}'"""), ([["a"]], r"""'\[\["a"\]\]'""")],
)
def test_rows_of_unlike_types_that_are_no_texts_are_refused(tmp_path, value, found):
    path = tmp_path / "rows.jsonl"
    rows = [{"query": "q", "pos_doc": "a", "neg_doc": "b"}, {"query": "q", "pos_doc": ["a"], "neg_doc": value}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(ValueError, match=f"row 1, column 'neg_doc': expected a text or a list of texts, found {found}"):
        load_groups(path)


@pytest.mark.parametrize(
    "features",
    [
        {"query": TEXT, "pos_doc": TEXT},
        {"pos_doc": TEXT, "neg_doc": TEXTS},
        {"query": TEXT, "pos_doc": NUMBERS, "neg_doc": TEXTS},
        {"query": TEXT, "rejected_response": TEXTS},
        {"query": TEXT, "response": TEXT, "rejected_response": NUMBERS},
        {"response": TEXT, "rejected_response": TEXTS},
        {"query": TEXT, "positive": TEXTS, "negative": TEXT},
        {"query": TEXT, "answer": TEXT, "negatives": TEXTS},
    ],
)
def test_columns_one_step_away_from_positives_and_negatives_are_refused(features):
    with pytest.raises(ValueError, match="no layout matches"):
        recognise(features)


# ---- bare pairs


def bare_pairs(num_rows):
    return [{"query": f"q{i // 2}", "answer": f"a{i}"} for i in range(num_rows)]


def test_drawn_negatives_are_distinct_and_no_positives_of_the_query():
    rows = bare_pairs(60)

    for row, group in zip(rows, groups_of(rows, num_negatives=10), strict=True):
        positives = {other["answer"] for other in rows if other["query"] == row["query"]}
        negatives = group["passages"][1:]
        assert group["passages"][0] == row["answer"]
        assert group["labels"] == [1.0] + [0.0] * 10
        assert len(set(negatives)) == 10
        assert not positives & set(negatives)


def test_the_same_seed_draws_the_same_negatives_and_another_seed_others():
    rows = bare_pairs(60)

    assert groups_of(rows, num_negatives=5, seed=3) == groups_of(rows, num_negatives=5, seed=3)
    assert groups_of(rows, num_negatives=5, seed=3) != groups_of(rows, num_negatives=5, seed=4)


def test_groups_of_one_data_set_draw_different_negatives():
    drawn = {tuple(group["passages"][1:]) for group in groups_of(bare_pairs(60), num_negatives=5)}

    assert len(drawn) == 60


def test_every_other_passage_is_drawn_when_there_are_few_and_the_log_says_so(caplog):
    caplog.set_level("INFO")

    groups = groups_of(bare_pairs(4), num_negatives=15)

    assert [sorted(group["passages"][1:]) for group in groups] == [
        ["a2", "a3"],
        ["a2", "a3"],
        ["a0", "a1"],
        ["a0", "a1"],
    ]
    assert "some groups have only 2 negatives instead of 15, because the data set has only 4 distinct" in caplog.text


def test_no_shortage_is_logged_where_there_is_none(caplog):
    caplog.set_level("INFO")

    groups = groups_of(bare_pairs(4), num_negatives=2)

    assert all(len(group["passages"]) == 3 for group in groups)
    assert "instead of" not in caplog.text


def test_fewer_than_one_negative_is_refused():
    with pytest.raises(ValueError, match="num_negatives must be 1 or more, found 0"):
        groups_of(bare_pairs(4), num_negatives=0)
