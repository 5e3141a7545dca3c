"""sentence-transformers' evaluators in our trainer: the figures of the saved folder, without saving or copying."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.evaluation import BaseEvaluator, SequentialEvaluator
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderNanoBEIREvaluator,
    CrossEncoderRerankingEvaluator,
)
from transformers import EarlyStoppingCallback

from rerank_trainer.evaluation.cross_encoder import LiveCrossEncoder
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.trainers.conftest import SILENT, small_reranker, word_groups

GROUPS = word_groups(8, seed=5)
PAIRS = [[group["query"], passage] for group in GROUPS for passage in group["passages"]]
LABELS = [int(label) for group in GROUPS for label in group["labels"]]


def reranking_evaluator(name: str = "dev", **options) -> CrossEncoderRerankingEvaluator:
    samples = [
        {
            "query": group["query"],
            "positive": [p for p, label in zip(group["passages"], group["labels"], strict=True) if label],
            "documents": group["passages"],
        }
        for group in GROUPS
    ]
    return CrossEncoderRerankingEvaluator(samples, name=name, show_progress_bar=False, **options)


def nano_beir_evaluator(folder: Path) -> CrossEncoderNanoBEIREvaluator:
    """On a data set in the layout of NanoBEIR: four subsets, each with a split for each collection."""
    texts = {f"p{i}-{j}": passage for i, group in enumerate(GROUPS) for j, passage in enumerate(group["passages"])}
    rows = {
        "corpus": [{"_id": name, "text": text} for name, text in texts.items()],
        "queries": [{"_id": f"q{i}", "text": group["query"]} for i, group in enumerate(GROUPS)],
        "qrels": [
            {"query-id": f"q{i}", "corpus-id": f"p{i}-{j}"}
            for i, group in enumerate(GROUPS)
            for j, label in enumerate(group["labels"])
            if label
        ],
        "bm25": [{"query-id": f"q{i}", "corpus-ids": [f"p{i}-{j}" for j in range(6)]} for i in range(len(GROUPS))],
    }
    lines = ["---", "configs:"]
    for subset, of_subset in rows.items():
        folder.mkdir(exist_ok=True)
        (folder / f"{subset}.jsonl").write_text("\n".join(map(json.dumps, of_subset)))
        lines += [f"- config_name: {subset}", "  data_files:"]
        lines += ["  - split: NanoMSMARCO", f"    path: {subset}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---"]))
    return CrossEncoderNanoBEIREvaluator(["msmarco"], dataset_id=str(folder))


@pytest.fixture(scope="module")
def evaluators(tmp_path_factory):
    chance = np.random.default_rng(0)
    return {
        "reranking": reranking_evaluator(),
        "nano_beir": nano_beir_evaluator(tmp_path_factory.mktemp("data") / "nano"),
        "correlation": CrossEncoderCorrelationEvaluator(PAIRS, chance.normal(size=len(PAIRS)).tolist(), name="cor"),
        "classification": CrossEncoderClassificationEvaluator(PAIRS, LABELS, name="cls"),
    }


@pytest.fixture(scope="module")
def judged(evaluators, tmp_path_factory):
    """A trainer after an epoch with all evaluators and no evaluation set, its figures, and the folder it saved."""
    from rerank_trainer.trainers.arguments import RerankTrainingArguments

    folder = tmp_path_factory.mktemp("judged")
    args = RerankTrainingArguments(
        str(folder / "out"),
        **SILENT,
        eval_strategy="epoch",
        passages_per_query=4,
        num_train_epochs=1,
        learning_rate=1e-3,
    )
    reranker = small_reranker(spread=0.3)
    trainer = ContrastiveRerankTrainer(
        reranker, args, train_dataset=word_groups(4), evaluator=list(evaluators.values())
    )
    trainer.train()
    figures = trainer.evaluate()
    reranker.save_pretrained(folder / "saved")
    return trainer, figures, CrossEncoder(str(folder / "saved"), device="cpu")


@pytest.mark.parametrize("kind", ["reranking", "nano_beir", "correlation", "classification"])
def test_figures_are_those_of_the_saved_folder_in_sentence_transformers(judged, evaluators, kind):
    _, figures, saved = judged
    expected = evaluators[kind](saved)

    assert len(expected) >= 2 and all(np.isfinite(value) for value in expected.values())
    assert {name: figures[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_training_logs_the_same_names_without_an_evaluation_set(judged):
    trainer, figures, _ = judged
    (logged,) = [entry for entry in trainer.state.log_history if "eval_dev_ndcg@10" in entry and entry["epoch"] == 1][
        :1
    ]

    names = {name for name in figures if name.startswith(("eval_dev_", "eval_cor_", "eval_cls_", "eval_Nano"))}
    assert len(names) > 15 and names | {"eval_sequential_score"} <= set(logged)
    assert trainer.eval_dataset is None


def test_nothing_but_the_evaluators_own_tables_is_written(judged):
    trainer, _, _ = judged
    written = {path.name for path in Path(trainer.args.output_dir).rglob("*") if path.is_file()}

    assert written and all(name.endswith(".csv") for name in written)


class Recorder(BaseEvaluator):
    """Keeps what it sees, and returns a plain number."""

    def __init__(self, figure=0.5):
        super().__init__()
        self.figure = figure
        self.seen = []

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        self.seen.append((model, model.predict(PAIRS, batch_size=5), epoch, steps))
        return self.figure


def test_the_evaluator_gets_a_cross_encoder_that_shares_the_live_weights():
    reranker = small_reranker(spread=0.3)
    model = LiveCrossEncoder(reranker)
    before = model.predict(PAIRS)
    with torch.no_grad():
        reranker.model.classifier.weight.mul_(-2.0)
        reranker.model.classifier.bias.mul_(-2.0)

    assert isinstance(model, CrossEncoder) and model.model is reranker.model and model.num_labels == 1
    theirs, ours = list(model.parameters()), list(reranker.model.parameters())
    assert all(a is b for a, b in zip(theirs, ours, strict=True))
    np.testing.assert_allclose(model.predict(PAIRS), -2.0 * before, rtol=1e-5, atol=1e-6)
    ranked = model.rank(PAIRS[0][0], [passage for _, passage in PAIRS[:6]])
    assert [entry["corpus_id"] for entry in ranked] == np.argsort(-model.predict(PAIRS[:6])).tolist()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_the_mode_it_is_in(training):
    reranker = small_reranker()
    reranker.model.train(training)
    LiveCrossEncoder(reranker).predict(PAIRS)

    assert reranker.model.training is training


@pytest.mark.parametrize("bf16", [False, True])
def test_the_evaluator_sees_the_scores_of_the_trainers_own_evaluation(make_args, bf16):
    recorder = Recorder()
    trainer = ContrastiveRerankTrainer(
        small_reranker(spread=0.3), make_args(bf16=bf16), eval_dataset=GROUPS, evaluator=recorder
    )
    figures = trainer.evaluate()
    scores = trainer.predict(GROUPS).predictions.flatten()
    plain = trainer.reranker.predict(PAIRS).numpy()

    assert figures["eval_evaluator"] == 0.5 and "eval_ndcg@10" in figures
    np.testing.assert_allclose(recorder.seen[0][1], scores, atol=1e-5)
    assert bool(np.abs(scores - plain).max() > 1e-3) is bf16


def test_with_several_evaluation_sets_the_evaluator_runs_once_under_the_plain_prefix(make_args):
    recorder = Recorder()
    trainer = ContrastiveRerankTrainer(
        small_reranker(), make_args(), eval_dataset={"a": GROUPS, "b": GROUPS}, evaluator=recorder
    )
    figures = trainer.evaluate()

    assert len(recorder.seen) == 1
    assert figures["eval_evaluator"] == 0.5 and "eval_b_map" in figures and "eval_a_evaluator" not in figures
    assert trainer.evaluate(GROUPS, metric_key_prefix="test")["test_evaluator"] == 0.5
    assert "test_evaluator" not in trainer.predict(GROUPS).metrics


def test_early_stopping_and_the_best_model_follow_an_evaluator_alone(make_args):
    class Falling(Recorder):
        def __call__(self, model, output_path=None, epoch=-1, steps=-1):
            super().__call__(model, output_path, epoch, steps)
            return {"mine_quality": 1.0 / len(self.seen)}

    args = make_args(
        num_train_epochs=8,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="mine_quality",
    )
    evaluator = Falling()
    trainer = ContrastiveRerankTrainer(
        small_reranker(),
        args,
        train_dataset=word_groups(4),
        evaluator=evaluator,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()

    assert trainer.state.epoch == 3 and trainer.state.best_metric == 1.0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert [(epoch, steps) for _, _, epoch, steps in evaluator.seen] == [(1, 1), (2, 2), (3, 3)]
    best = evaluator.seen[0][1]
    np.testing.assert_allclose(trainer.reranker.predict(PAIRS), best, atol=1e-5)  # loaded at the end


def test_without_evaluation_set_and_evaluator_transformers_says_what_is_missing(make_args):
    with pytest.raises(ValueError, match="eval_dataset"):
        ContrastiveRerankTrainer(small_reranker(), make_args(eval_strategy="epoch"), train_dataset=word_groups(8))


def trainer_with(make_args, evaluator, **options):
    return ContrastiveRerankTrainer(small_reranker(), make_args(), evaluator=evaluator, **options)


def test_figures_that_would_replace_the_trainers_own_are_refused(make_args):
    with pytest.raises(ValueError, match=r"without a name would replace the trainer's own, such as eval_ndcg@10"):
        trainer_with(make_args, reranking_evaluator(""), eval_dataset=GROUPS)
    trainer = trainer_with(make_args, Recorder({"loss": 1.0}), eval_dataset=GROUPS)
    with pytest.raises(ValueError, match=r"the evaluator returns \['eval_loss'\]"):
        trainer.evaluate()
    assert "eval_ndcg@10" in trainer_with(make_args, reranking_evaluator("")).evaluate()  # alone it may
    unlike = CrossEncoderClassificationEvaluator(PAIRS, LABELS)
    assert {"eval_f1", "eval_map"} <= set(trainer_with(make_args, unlike, eval_dataset=GROUPS).evaluate())


@pytest.mark.parametrize("wrap", [list, SequentialEvaluator])
def test_two_evaluators_of_one_name_are_refused(make_args, wrap):
    with pytest.raises(ValueError, match="2 evaluators CrossEncoderRerankingEvaluator have the name 'dev'"):
        trainer_with(make_args, wrap([reranking_evaluator(), reranking_evaluator(at_k=5)]))


@pytest.mark.parametrize("wrong", [print, [print], "dev"])
def test_what_is_no_evaluator_is_refused(make_args, wrong):
    with pytest.raises(ValueError, match=r"evaluator=.*: expected an evaluator of sentence-transformers"):
        trainer_with(make_args, wrong)


def test_a_prompt_is_refused_instead_of_left_out():
    model = LiveCrossEncoder(small_reranker())

    with pytest.raises(ValueError, match="prompt 'Judge: '"):
        model.predict(PAIRS, prompt="Judge: ")
    with pytest.raises(ValueError, match="Prompt name 'web' not found"):
        model.predict(PAIRS, prompt_name="web")


def test_sentence_transformers_has_the_method_that_we_override():
    theirs, ours = (list(inspect.signature(c._inference).parameters) for c in (CrossEncoder, LiveCrossEncoder))

    assert theirs == ["self", "inputs", "prompt", "batch_size", "show_progress_bar", "activation_fn"] + [
        "apply_softmax",
        "device",
        "kwargs",
    ]
    assert set(ours) - set(theirs) == {"_options"}
