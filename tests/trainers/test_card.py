"""The trainer's card: it says what the log says, is there at every save, and names nothing that is private."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard
from transformers import TrainerState

from rerank_trainer.evaluation.evaluator import evaluate_groups
from rerank_trainer.trainers.card import _of_model
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from tests.trainers.conftest import small_reranker, word_groups

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

MARK = "zirconquail"


def scored(groups):
    """The groups with teacher scores that put the positive first in every other group."""
    scores = [[label if index % 2 else -label for label in labels] for index, labels in enumerate(groups["labels"])]
    return groups.add_column("teacher_scores", scores)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A distillation with two evaluation sets, of which one has teacher scores, and checkpoints at steps 2 and 4."""
    from rerank_trainer.trainers.arguments import RerankTrainingArguments
    from tests.trainers.conftest import SILENT

    folder = tmp_path_factory.mktemp("private")
    args = RerankTrainingArguments(
        str(folder / "out"),
        **{**SILENT, "save_strategy": "steps", "save_steps": 2},
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
        max_steps=4,
        passages_per_query=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=2e-3,
        seed=13,
        load_best_model_at_end=True,
        metric_for_best_model="eval_dev_ndcg@10",
        check_teacher=False,
    )
    evaluation = {"dev": scored(word_groups(10, seed=9)), "out_of_domain": word_groups(8, seed=5)}
    train = scored(word_groups(16)).map(lambda row: {"query": f"{MARK} {row['query']}"})
    trainer = DistillRerankTrainer(small_reranker(), args, train_dataset=train, eval_dataset=evaluation)
    trainer.train()
    return trainer, folder, evaluation


def read(folder):
    return ModelCard.load(folder / "README.md")


def figures(card, name):
    return {each.metric_type: each.metric_value for each in card.data.eval_results if each.dataset_name == name}


def logged(trainer, name, step):
    (entry,) = [e for e in trainer.state.log_history if f"eval_{name}_runtime" in e and e["step"] == step]
    return {metric: entry[f"eval_{name}_{metric}"] for metric in trainer.args.eval_metrics}


@pytest.mark.parametrize("name", ["dev", "out_of_domain"])
@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_has_a_card_with_the_figures_of_its_step(trained, step, name):
    trainer, folder, _ = trained

    assert figures(read(folder / "out" / f"checkpoint-{step}"), name) == logged(trainer, name, step)


def test_the_final_card_has_the_figures_of_the_best_model_that_was_loaded(trained):
    trainer, folder, _ = trained
    trainer.create_model_card()

    assert figures(read(folder / "out"), "dev") == logged(trainer, "dev", trainer.state.best_global_step)


def test_the_model_is_compared_with_the_first_stage_the_teacher_and_itself_before(trained):
    trainer, folder, evaluation = trained
    trainer.create_model_card()
    text = read(folder / "out").text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]

    metrics = trainer.args.eval_metrics
    first_stage = [evaluate_groups(groups, metrics=metrics) for groups in evaluation.values()]
    assert [row[1:] for row in rows if row[0] == "first stage"] == [
        [f"{each[metric]:.4f}" for metric in metrics] for each in first_stage
    ]
    before = [logged(trainer, name, 0) for name in evaluation]
    assert [row[1:] for row in rows if row[0] == "before training"] == [
        [f"{each[metric]:.4f}" for metric in metrics] for each in before
    ]
    # the positive stands first in five groups, last of six in the others
    teacher = [(1 + 0.3562071871080222) / 2, (1 + 1 / 6) / 2, (1 + 1 / 6) / 2, 1.0]
    assert [row[1:] for row in rows if row[0] == "teacher"] == [[f"{value:.4f}" for value in teacher]]


def test_the_card_says_how_it_was_trained(trained):
    trainer, folder, _ = trained
    trainer.create_model_card()
    text = read(folder / "out").text

    for line in (
        "| passages per query (K) | 4, negatives drawn at random |",
        "| training groups | 16 |",
        "| groups seen | 32 |",
        "| steps | 4 (2 epochs) |",
        "| groups a step | 8 (4 × 2 accumulated) |",
        "| precision | weights in float32 |",
        "| seed | 13 |",
        "| kl | kl | teacher | 1 |  |",
    ):
        assert line in text, line
    assert "| learning rate | 0.002, linear, warmup 10% of the steps" in text
    footprint = trainer.footprint
    assert f"| trained parameters | {footprint.num_trained:,} of {footprint.num_parameters:,} (100.00%) |" in text
    assert f"| peak memory | {footprint.peak_bytes / 1e9:.2f} GB of the whole process |" in text


def test_the_card_says_how_servers_start_the_model_by_its_name_and_not_by_its_path(trained):
    trainer, folder, _ = trained
    trainer.save_model(str(folder / "served"))
    text = read(folder / "served").text

    assert "vllm serve served --runner pooling" in text
    assert "**text-embeddings-inference**" in text
    assert str(folder) not in text


def test_the_final_card_has_the_differences_that_were_found_when_it_was_verified(trained):
    trainer, folder, _ = trained
    best = folder / "out" / f"checkpoint-{trainer.state.best_global_step}"
    for loader, difference in trainer.card.parity[1].items():
        shown = f"{difference:.1e}" if difference else "0"
        assert f"| {loader} | {shown} |" in read(best).text
    assert set(trainer.card.parity[1]) == {"transformers", "sentence_transformers"}

    other = 6 - trainer.state.best_global_step  # the checkpoint that was not verified
    assert "largest difference" not in read(folder / "out" / f"checkpoint-{other}").text


def test_differences_of_another_step_are_not_shown(trained, monkeypatch):
    trainer, folder, _ = trained
    monkeypatch.setattr(trainer.card, "parity", (3, {"transformers": 0.5}))
    trainer.create_model_card()

    assert "largest difference" not in read(folder / "out").text


def test_no_training_text_and_no_path_stands_in_a_card(trained):
    trainer, folder, _ = trained
    trainer.create_model_card()

    for card in folder.rglob("README.md"):
        assert MARK not in card.read_text() and str(folder) not in card.read_text()


def test_what_is_given_to_create_model_card_stands_in_it(trained):
    trainer, folder, _ = trained
    trainer.create_model_card(
        language="de",
        license="mit",
        tags="law",
        model_name="judge",
        finetuned_from="some/base",
        tasks="question-answering",
        dataset_tags=["some/words"],
        dataset=["Words"],
        dataset_args=["large"],
    )
    card = read(folder / "out")

    assert (card.data.language, card.data.license, card.data.base_model) == ("de", "mit", "some/base")
    assert card.data.datasets == ["some/words"] and "law" in card.data.tags
    assert "# judge\n" in card.text and "[Words (large)](https://huggingface.co/datasets/some/words)" in card.text
    assert {each.task_type for each in card.data.eval_results} == {"question-answering"}
    assert card.data.model_name == "judge"


def test_training_groups_are_shown_when_they_are_asked_for(make_args, tmp_path):
    groups = word_groups(4)
    args = make_args(max_steps=1, card_examples=2, verify_checkpoints="never")
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=groups)
    trainer.save_model()
    text = read(tmp_path / "out").text

    shown = [json.loads(block.split("```")[0]) for block in text.split("```json\n")[1:]]
    assert shown == [
        {"query": row["query"], "passages": row["passages"][:2], "labels": row["labels"][:2]}
        for row in groups.select([0, 1])
    ]
    with pytest.raises(ValueError, match="card_examples=-1: give how many"):
        make_args(card_examples=-1)


def test_words_of_a_person_survive_training_with_an_adapter(make_args, tmp_path):
    small_reranker().save_pretrained(tmp_path / "base")
    args = make_args(max_steps=1, verify_checkpoints="never")
    trainer = ContrastiveRerankTrainer(tmp_path / "base", args, lora=True, train_dataset=word_groups(4))
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    trainer.save_model()
    card = read(tmp_path / "out")

    assert card.text == "Mine.\n" and card.data.license == "mit"
    assert card.data.library_name == "sentence-transformers" and "lora" in card.data.tags
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_merged_weights_have_a_card_of_their_own(make_args, tmp_path):
    small_reranker().save_pretrained(tmp_path / "base")
    args = make_args(max_steps=1, hub_model_id="me/adapter")
    trainer = ContrastiveRerankTrainer(tmp_path / "base", args, lora=True, train_dataset=word_groups(4))
    trainer.save_merged(tmp_path / "whole")
    trainer.save_model()

    whole, adapter = read(tmp_path / "whole"), read(tmp_path / "out")
    assert 'CrossEncoder("whole")' in whole.text and "peft" not in whole.data.tags
    assert 'CrossEncoder("me/adapter", model_kwargs=' in adapter.text and "peft" in adapter.data.tags


def test_a_single_set_and_an_evaluator_have_their_figures(make_args, tmp_path):
    from sentence_transformers.cross_encoder.evaluation import (
        CrossEncoderCorrelationEvaluator,
        CrossEncoderRerankingEvaluator,
    )

    samples = [{"query": "water", "positive": ["water fire"], "documents": ["ship rain", "water fire", "map"]}]
    pairs = [["water", "water"], ["fire", "rain"], ["map", "map ship"]]
    evaluators = [
        CrossEncoderRerankingEvaluator(samples, name="few", write_csv=False, show_progress_bar=False),
        CrossEncoderCorrelationEvaluator(pairs, [1.0, 0.0, 0.5], name="sts", write_csv=False),
    ]
    args = make_args(max_steps=1, verify_checkpoints="never", eval_metrics=["mrr@10"])
    trainer = ContrastiveRerankTrainer(
        small_reranker(), args, train_dataset=word_groups(4), eval_dataset=word_groups(6), evaluator=evaluators
    )
    metrics = trainer.evaluate()
    trainer.create_model_card()
    card = read(tmp_path / "out")

    assert figures(card, "evaluation") == {"mrr@10": metrics["eval_mrr@10"]}
    assert figures(card, "few") == {name: metrics[f"eval_few_{name}"] for name in ("map", "mrr@10", "ndcg@10")}
    assert figures(card, "SequentialEvaluator") == {
        name: metrics[f"eval_{name}"] for name in ("sts_pearson", "sts_spearman", "sequential_score")
    }
    assert f"ndcg@10 (first stage {metrics['eval_few_base_ndcg@10']:.4f})" in str(card)


def test_metrics_of_ones_own_stand_in_the_card(make_args, tmp_path):
    args = make_args(max_steps=1, verify_checkpoints="never")
    trainer = ContrastiveRerankTrainer(
        small_reranker(),
        args,
        train_dataset=word_groups(4),
        eval_dataset=word_groups(6),
        compute_metrics=lambda prediction: {"hits": 0.25, "map": 0.5},
    )
    trainer.evaluate()
    trainer.create_model_card()

    assert figures(read(tmp_path / "out"), "evaluation") == {"hits": 0.25, "map": 0.5}
    assert "first stage" not in read(tmp_path / "out").text  # whatever their "map" is, ours may be another


def test_other_rows_than_the_trainers_own_are_compared_with_their_own_first_stage(make_args, tmp_path):
    own, other = word_groups(6), word_groups(9, seed=7)
    args = make_args(max_steps=1, verify_checkpoints="never", eval_metrics=["map"])
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    trainer = ContrastiveRerankTrainer(
        small_reranker(), args, train_dataset=own, eval_dataset=str(tmp_path / "dev.jsonl")
    )
    for rows, name in ((None, "dev.jsonl"), (other, "evaluation")):
        measured = trainer.evaluate(rows)
        trainer.create_model_card()
        first_stage = evaluate_groups(own if rows is None else rows, metrics=["map"])
        assert figures(read(tmp_path / "out"), name) == {"map": measured["eval_map"]}
        assert f"map (first stage {first_stage['map']:.4f})" in str(read(tmp_path / "out"))


def test_the_main_process_alone_writes_a_card(make_args, tmp_path, monkeypatch):
    args = make_args(max_steps=1, verify_checkpoints="never")
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(4))
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()

    assert not (tmp_path / "out" / "README.md").exists()


def test_a_folder_beside_the_output_is_not_named_by_the_repository(make_args, tmp_path):
    args = make_args(max_steps=1, hub_model_id="me/reranker", verify_checkpoints="never")
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(4))
    for folder in ("out", "out/checkpoint-7", "elsewhere"):
        trainer.save_model(str(tmp_path / folder))

    ids = [
        re.search(r'CrossEncoder\("(.*?)"', read(tmp_path / folder).text)[1] for folder in ("out", "out/checkpoint-7")
    ]
    assert ids == ["me/reranker", "me/reranker"]
    assert 'CrossEncoder("elsewhere")' in read(tmp_path / "elsewhere").text


def entry(step, **figures):
    return {"eval_runtime": 1.0, "step": step, **figures}


END = {"train_runtime": 9.0, "step": 3}


@pytest.mark.parametrize(
    ("history", "best", "step"),
    [
        ([entry(1), entry(2)], None, 2),
        ([entry(1), entry(2)], 1, 2),  # training goes on with the last weights
        ([entry(1), entry(2), END], 1, 1),
        ([entry(1), entry(2), END], None, 2),
        ([entry(1), END, entry(3)], 1, 3),  # evaluated again after the best was loaded
    ],
)
def test_figures_are_those_of_the_model_in_memory(history, best, step):
    assert _of_model(history, best)["eval"]["step"] == step
    assert TrainerState().best_global_step is None  # where Transformers keeps it


def test_an_order_that_was_made_from_the_labels_is_no_first_stage(make_args, tmp_path):
    groups = word_groups(6)
    ordered = groups.map(
        lambda row: {
            "passages": [p for _, p in sorted(zip(row["labels"], row["passages"], strict=True), reverse=True)],
            "labels": sorted(row["labels"], reverse=True),
        }
    )
    args = make_args(max_steps=1, verify_checkpoints="never")
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=groups, eval_dataset=ordered)
    trainer.evaluate()
    trainer.create_model_card()

    assert "first stage" not in (tmp_path / "out" / "README.md").read_text()
