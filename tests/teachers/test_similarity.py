"""Soft labels without a teacher: their values, their encoders, and what a student makes of them."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from rerank_trainer.objectives.mixed import MixedObjective
from rerank_trainer.objectives.objective import Targets
from rerank_trainer.teachers.similarity import SimilarityTeacher, TfidfEncoder
from rerank_trainer.teachers.store import add_teacher_scores
from tests.objectives.planted import fit

POSITIVE, NEAR, FAR = "paris is the capital of france", "the capital of france is called paris", "bread needs flour"
TEXTS = [POSITIVE, NEAR, FAR, "the capital needs more bread", "france bakes bread of flour", "rain falls on the hills"]
GROUP = {"query": "what is the capital of france", "passages": TEXTS, "labels": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]}


def looked_up(vectors):
    return SimilarityTeacher(lambda texts: [vectors[text] for text in texts], fingerprint="looked up")


def test_a_score_is_the_cosine_with_the_nearest_positive_and_positives_stand_above():
    vectors = {
        name: [math.cos(angle), math.sin(angle)] for name, angle in zip("abcd", (0.0, 0.3, 1.0, 2.0), strict=True)
    }
    vectors["c"] = [7 * value for value in vectors["c"]]  # lengths do not count
    groups = [{"query": "q", "passages": [*"abcd"], "labels": [1, 0, 2, 0]}]

    (scores,) = looked_up(vectors).score(groups)["scores"]
    assert scores == pytest.approx([1.1, math.cos(0.3), 1.1, math.cos(1.0)])  # b is nearest to a, d to c


def test_a_copy_of_the_positive_stands_below_it():
    (scores,) = looked_up({"a": [1.0, 2.0]}).score([{"query": "q", "passages": ["a", "a"], "labels": [0, 1]}])["scores"]

    assert scores == pytest.approx([1.0, 1.1])


def test_a_text_that_the_encoder_knows_nothing_of_is_like_no_other():
    vectors = {"a": [1.0, 0.0], "b": [0.0, 0.0]}

    assert looked_up(vectors).score([{"query": "q", "passages": ["a", "b"], "labels": [1, 0]}])["scores"] == [
        [1.1, 0.0]
    ]
    assert looked_up(vectors).score([{"query": "q", "passages": ["a", "b"], "labels": [0, 1]}])["scores"] == [
        [0.0, 1.1]
    ]


def test_the_vectors_of_an_encoder_are_left_as_they_are():
    vectors = np.array([[3.0, 4.0], [0.0, 2.0]])
    SimilarityTeacher(lambda texts: vectors, fingerprint="two").score(
        [{"query": "q", "passages": ["a", "b"], "labels": [1, 0]}]
    )

    assert vectors.tolist() == [[3.0, 4.0], [0.0, 2.0]]


def test_each_passage_is_encoded_once():
    asked = []
    teacher = SimilarityTeacher(lambda texts: asked.extend(texts) or np.ones((len(texts), 2)), fingerprint="ones")
    teacher.score([{"query": q, "passages": ["a", "b"], "labels": [1, 0]} for q in "qrs"])

    assert asked == ["a", "b"]


@pytest.fixture(scope="module", params=["tf-idf", "minilm"])
def encoder(request):
    """An encoder, and a function of another origin that gives the same vectors up to their length."""
    if request.param == "tf-idf":
        from sklearn.feature_extraction.text import TfidfVectorizer

        # six components of six texts leave nothing out: the codes have the vectors' own cosines
        return TfidfEncoder(TEXTS, num_components=6), TfidfVectorizer(sublinear_tf=True).fit(TEXTS).transform
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(request.getfixturevalue("minilm_path"), device="cpu")
    return model, model.encode


def test_a_near_duplicate_of_the_positive_stands_above_what_has_nothing_to_do_with_it(encoder, tmp_path):
    teacher = SimilarityTeacher(encoder[0])
    scored = add_teacher_scores(datasets.Dataset.from_list([GROUP]), teacher, cache_dir=tmp_path)
    expected = cosine_similarity(encoder[1](TEXTS))[0]
    expected[0] = 1.1

    np.testing.assert_allclose(scored["teacher_scores"][0], expected, atol=1e-5)
    assert expected[1] > max(expected[2:]) + 0.2


def test_fewer_components_join_words_that_stand_together():
    passages = ["cars drive on roads", "automobiles drive on roads", "cars brake", "automobiles brake", "fish swim"] * 3
    passages += ["fish swim in rivers", "rivers flow", "cars", "automobiles", "fish"]
    group = {"query": "q", "passages": ["cars", "automobiles", "fish"], "labels": [1, 0, 0]}
    narrow, full = (
        SimilarityTeacher(TfidfEncoder(passages, num_components=width)).score([group])["scores"][0] for width in (2, 50)
    )

    assert narrow[1] > 0.9 > 0.1 > abs(narrow[2])
    assert full[1] == pytest.approx(0.0, abs=1e-6)  # no word in common


def test_the_fingerprint_follows_what_the_vectors_are_made_from(minilm_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm_path, device="cpu")
    plain = SimilarityTeacher(model).fingerprint
    assert plain == SimilarityTeacher(minilm_path).fingerprint
    model.max_seq_length = 17
    shorter = SimilarityTeacher(model).fingerprint
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1.0
    others = [
        shorter,
        SimilarityTeacher(model).fingerprint,
        SimilarityTeacher(TfidfEncoder(TEXTS)).fingerprint,
        SimilarityTeacher(TfidfEncoder(TEXTS[1:])).fingerprint,
        SimilarityTeacher(TfidfEncoder(TEXTS, num_components=2)).fingerprint,
        SimilarityTeacher(TfidfEncoder(TEXTS), margin=0.2).fingerprint,
    ]

    assert len({plain, *others}) == 7
    assert (
        SimilarityTeacher(TfidfEncoder(TEXTS)).fingerprint == SimilarityTeacher(TfidfEncoder(TEXTS[::-1])).fingerprint
    )


def test_labels_are_part_of_what_scores_are_stored_under(tmp_path):
    teacher = looked_up({"a": [1.0, 0.0], "b": [0.6, 0.8]})
    for labels, expected in (([1, 0], [1.1, 0.6]), ([0, 1], [0.6, 1.1])):
        groups = datasets.Dataset.from_list([{"query": "q", "passages": ["a", "b"], "labels": labels}])
        assert add_teacher_scores(groups, teacher, cache_dir=tmp_path)["teacher_scores"][0] == pytest.approx(expected)


# --- what a student makes of them -------------------------------------------------------------------------------------


def partly_labelled(num_groups, *, seed, encoder_knows=True):
    """Groups of eight passages: three are relevant and resemble each other, and one of the three is labelled.

    The first feature is the relevance with noise. The second is a matter of style, and the labelled passage is the one
    of the three with most of it; the others are noise. Returns features, the truth, and targets with the teacher's
    scores, by an encoder that gives relevant passages similar codes, or by one that knows nothing.
    """
    chance = np.random.default_rng(seed)
    truth = np.repeat([[1.0] * 3 + [0.0] * 5], num_groups, axis=0)
    features = chance.normal(size=(num_groups, 8, 8))
    features[..., 0] = truth + 0.3 * features[..., 0]
    labels = np.eye(8)[features[:, :3, 1].argmax(axis=1)]
    codes = chance.normal(size=(num_groups, 8, 16))
    if encoder_knows:
        codes[:, 1:3] = codes[:, :1] + 0.3 * codes[:, 1:3]
    names = [[f"{group}-{k}" for k in range(8)] for group in range(num_groups)]
    vectors = dict(zip([name for of_group in names for name in of_group], codes.reshape(-1, 16), strict=True))
    rows = [{"query": "q", "passages": p, "labels": y} for p, y in zip(names, labels.tolist(), strict=True)]
    targets = Targets(
        torch.tensor(labels).float(),
        torch.ones(num_groups, 8, dtype=torch.bool),
        torch.tensor(looked_up(vectors).score(rows)["scores"]),
    )
    return torch.tensor(features).float(), torch.tensor(truth), targets


def share_found(label_weight, *, encoder_knows=True):
    """The share of relevant passages among the first three of unseen groups, after training with this label weight."""
    features, _, targets = partly_labelled(300, seed=0, encoder_knows=encoder_knows)
    unseen, truth, _ = partly_labelled(1000, seed=1)
    objective = MixedObjective(label_weight=label_weight, teacher_temperature="auto")
    objective.prepare(targets)
    ranked = (unseen @ fit(objective, features, targets)).argsort(dim=1, descending=True)
    return truth.gather(1, ranked[:, :3]).mean().item()


def test_a_small_weight_of_similarity_helps_to_find_positives_that_were_not_labelled():
    found = {weight: share_found(weight) for weight in (1.0, 0.8, 0.0)}

    assert found[0.8] > found[1.0] + 0.02
    assert found[0.0] > found[1.0] + 0.1  # what such an encoder knows


def test_a_small_weight_of_similarities_that_mean_nothing_does_little_harm():
    labels_alone = share_found(1.0)

    assert share_found(0.8, encoder_knows=False) > labels_alone - 0.02


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 0], "the group of the query 'q' has no label above 0"), (None, "reads the column 'labels'")],
)
def test_groups_without_a_positive_are_refused(labels, message):
    group = {"query": "q", "passages": ["a", "b"]} | ({} if labels is None else {"labels": labels})

    with pytest.raises(ValueError, match=message):
        looked_up({}).score([group])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SimilarityTeacher(len),
            "fingerprint=None with <built-in function len>.*Give a function a fingerprint",
        ),
        (lambda: SimilarityTeacher(TfidfEncoder(TEXTS), fingerprint="x"), "fingerprint='x' with .*TfidfEncoder"),
        (lambda: SimilarityTeacher(TfidfEncoder(TEXTS), margin=0), "margin=0: expected a number above 0"),
        (lambda: TfidfEncoder(["?", "!"]), "TF-IDF needs passages with words"),
        (lambda: TfidfEncoder(["word word"]), r"two distinct words or more, found \['word'\]"),
    ],
)
def test_what_cannot_encode_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_encoder_that_returns_another_number_of_vectors_is_refused():
    teacher = SimilarityTeacher(lambda texts: np.ones((1, 3)), fingerprint="one")

    with pytest.raises(ValueError, match=r"the encoder returned \(1, 3\) for 2 texts"):
        teacher.score([{"query": "q", "passages": ["a", "b"], "labels": [1, 0]}])
