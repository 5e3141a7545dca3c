"""Hooks: the signatures that we rely on, one loss over the whole optimizer step, the files of a checkpoint."""

from __future__ import annotations

import concurrent.futures
import copy
import inspect
import math
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import Trainer

from rerank_trainer.data.sampling import EvalGroups
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.verify import verify_checkpoint
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.evaluation_hooks import EvaluationHooks
from rerank_trainer.trainers.hooks import GroupHooks
from rerank_trainer.trainers.hub_hooks import HubHooks
from rerank_trainer.trainers.saving import hide_token, some_pairs
from tests.trainers.conftest import small_reranker, word_groups

SIGNATURES = {
    "_get_dataloader": [
        "self",
        "dataset",
        "description",
        "batch_size",
        "sampler_fn",
        "is_training",
        "dataloader_key",
    ],
    "_prepare_input": ["self", "data"],
    "_track_num_input_tokens": ["self", "inputs"],
    "hyperparameter_search": [
        "self",
        "hp_space",
        "compute_objective",
        "n_trials",
        "direction",
        "backend",
        "hp_name",
        "kwargs",
    ],
    "_get_num_items_in_batch": ["self", "batch_samples", "device"],
    "_get_train_sampler": ["self", "train_dataset"],
    "_load_best_model": ["self"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_finish_current_push": ["self"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "init_hf_repo": ["self", "token", "private"],
    "push_to_hub": ["self", "commit_message", "blocking", "token", "revision", "private", "kwargs"],
    "_save": ["self", "output_dir", "state_dict"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "create_model_card": [
        "self",
        "language",
        "license",
        "tags",
        "model_name",
        "finetuned_from",
        "tasks",
        "dataset_tags",
        "dataset",
        "dataset_args",
    ],
    "create_optimizer": ["self", "model"],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "evaluation_loop": [
        "self",
        "dataloader",
        "description",
        "prediction_loss_only",
        "ignore_keys",
        "metric_key_prefix",
    ],
    "floating_point_ops": ["self", "inputs"],
    "log": ["self", "logs", "start_time"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_transformers_has_the_method_that_we_override(name):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == SIGNATURES[name]
    assert list(inspect.signature(getattr(GroupHooks, name)).parameters) == SIGNATURES[name]


def test_no_other_method_of_transformers_is_overridden_here():
    ours = {
        name
        for hooks in (GroupHooks, EvaluationHooks, HubHooks)
        for name, method in vars(hooks).items()
        if inspect.isfunction(method)
    }

    assert {name for name in ours if hasattr(Trainer, name)} == set(SIGNATURES)


def test_transformers_still_scales_by_what_the_class_attribute_says():
    assert "loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)
    assert GroupHooks.loss_is_scaled_for_ga is True


def ragged_groups():
    """24 groups; every third without a positive, every fourth shorter than K, with teacher scores."""
    rows = word_groups(24).to_list()
    for index, row in enumerate(rows):
        if index % 3 == 0:
            row["labels"] = [0.0] * len(row["labels"])
        size = 3 if index % 4 == 0 else 6
        row.update({name: row[name][:size] for name in ("passages", "labels")})
        row["teacher_scores"] = [math.sin(7.0 * index + i) for i in range(size)]
    return type(word_groups(1)).from_list(rows)


def test_the_loss_is_the_mean_over_the_groups_that_define_it(make_args):
    groups = ragged_groups()
    trainer = ContrastiveRerankTrainer(small_reranker(spread=0.3), make_args(), train_dataset=groups)
    batch = trainer.data_collator([trainer.train_dataset[0, index] for index in range(6)])
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)

    expected = []
    for scores, labels, mask in zip(outputs["scores"], batch["labels"], batch["mask"], strict=True):
        if labels[mask].any():
            expected.append(torch.nn.functional.cross_entropy(scores[mask], labels[mask].argmax()))
    assert len(expected) == 3  # groups 0 and 3 have no positive, and group 4 lost it when it was cut
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_a_weight_of_two_counts_as_the_group_twice(make_args):
    groups = word_groups(3)
    trainer = ContrastiveRerankTrainer(
        small_reranker(spread=0.3), make_args(), train_dataset=groups.add_column("weight", [1.0, 2.0, 0.0])
    )
    rows = [trainer.train_dataset[0, index] for index in range(3)]
    weighted = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    for row in rows:
        row.pop("weight")
    repeated = trainer.compute_loss(trainer.model, trainer.data_collator([rows[0], rows[1], rows[1]]))

    torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("distil", [False, True], ids=["infonce", "margin_mse"])
def test_a_passage_weight_counts_as_the_passage_repeated_and_zero_as_absent(make_args, distil):
    rows = [ragged_groups()[index] for index in (1, 2, 5)]
    without_its_positive = [int(not label) for label in rows[2]["labels"]]
    repeated = []
    for row, times in zip(rows, ([1, 0, 2, 1, 3, 1], [2, 1, 1, 0, 1, 2], without_its_positive), strict=True):
        names = [name for name in row if name != "query"]
        repeated.append(
            row | {name: [v for v, n in zip(row[name], times, strict=True) for _ in range(n)] for name in names}
        )
        row["passage_weights"] = times
    options = {"objective": "margin_mse"} if distil else {}
    trainer_class = DistillRerankTrainer if distil else ContrastiveRerankTrainer
    losses = []
    for groups in (rows, repeated):
        groups = type(word_groups(1)).from_list(groups)
        args = make_args(passages_per_query=16, **options)
        trainer = trainer_class(small_reranker(spread=0.3), args, train_dataset=groups, eval_dataset=groups)
        batch = trainer.data_collator([trainer.train_dataset[0, index] for index in range(3)])
        losses += [trainer.compute_loss(trainer.model, batch).item(), trainer.evaluate()["eval_loss"]]

    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5) and losses[0] > 0.1


def test_a_batch_that_defines_no_loss_gives_zero_and_a_zero_gradient(make_args):
    groups = word_groups(2).map(lambda row: {"labels": [0.0] * len(row["labels"])})
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=groups)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[0, 0]]))
    loss.backward()

    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_the_parts_of_a_mixture_stand_in_the_log_and_add_up(make_args):
    args = make_args(label_weight=0.5, logging_strategy="steps", logging_steps=3)
    trainer = DistillRerankTrainer(small_reranker(), args, train_dataset=ragged_groups())
    trainer.train()

    (first, *_) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["loss_kl"] > 0 and first["loss_label_infonce"] > 0
    assert first["loss"] == pytest.approx(first["loss_kl"] + first["loss_label_infonce"], abs=2e-4)


def test_checkpoints_written_in_training_hold_every_file_and_no_token(make_args):
    args = make_args(save_strategy="steps", save_steps=2, max_steps=2, hub_token="hf_secret_word")
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(8))
    trainer.train()
    folder = Path(args.output_dir) / "checkpoint-2"

    names = {path.name for path in folder.iterdir()}
    assert {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"} <= names
    assert not any(b"hf_secret_word" in path.read_bytes() for path in folder.iterdir())
    assert args.hub_token == trainer.args.hub_token == "hf_secret_word"
    pairs = [("water", "fire"), ("rain", "rain on hills")]
    again = Reranker.from_pretrained(folder).predict(pairs)
    torch.testing.assert_close(again, trainer.reranker.predict(pairs), atol=1e-6, rtol=0)


LOADER_FILES = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}


class FakeHub:
    """The Hub at the boundary of Transformers: keeps a copy of what is uploaded, and the scores of that moment."""

    def __init__(self, folder, events):
        self.folder, self.events, self.uploads, self.trainer = folder, events, [], None

    def create_repo(self, name, **options):
        return SimpleNamespace(repo_id=f"user/{name}")

    def upload_folder(self, *, repo_id, folder_path, token, path_in_repo="", ignore_patterns=None, **options):
        assert token == "hf_secret_word"
        self.events.append(f"upload {Path(folder_path).name}")
        names = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        copy = self.folder / str(len(self.uploads))
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path, name), copy / name)
        self.uploads.append((path_in_repo, copy, self.trainer.reranker.predict(WORD_PAIRS)))
        job = concurrent.futures.Future()
        job.set_result(None)
        return job


WORD_PAIRS = [("water", "fire"), ("rain", "rain on hills"), ("ship", "the ship sailed north")]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    events = []
    hub = FakeHub(tmp_path / "uploads", events)
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)

    def verify(folder, reranker, pairs):
        events.append(f"verify {Path(folder).name}")
        return verify_checkpoint(folder, reranker, pairs)

    monkeypatch.setattr("rerank_trainer.trainers.saving.verify_checkpoint", verify)
    return hub


# the tests switch progress bars off by the environment, and Transformers switches them on again after a push
@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
@pytest.mark.parametrize(
    ("strategy", "uploads"),
    [
        ("end", [""]),
        ("every_save", ["", "", ""]),
        ("checkpoint", ["", "last-checkpoint", "", "last-checkpoint", ""]),
        ("all_checkpoints", ["", "checkpoint-1", "", "checkpoint-2", ""]),
    ],
)
def test_every_folder_that_is_pushed_is_whole_verified_and_without_token(make_args, hub, strategy, uploads):
    args = make_args(
        save_strategy="steps",
        save_steps=1,
        max_steps=2,
        push_to_hub=True,
        hub_strategy=strategy,
        hub_token="hf_secret_word",
    )
    hub.trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(8))
    hub.trainer.train()
    hub.trainer.push_to_hub()

    assert [path for path, _, _ in hub.uploads] == uploads
    for _, folder, scores in hub.uploads:
        names = {path.name for path in folder.iterdir()}
        assert (
            LOADER_FILES | {"config.json", "model.safetensors", "tokenizer.json", "training_args.bin", "README.md"}
            <= names
        )
        assert not any(b"hf_secret_word" in path.read_bytes() for path in folder.iterdir())
        other = CrossEncoder(str(folder), device="cpu").predict(WORD_PAIRS, convert_to_tensor=True)
        torch.testing.assert_close(other, scores, atol=1e-5, rtol=0)
    verified = {"end": [], "every_save": [1, 2]}.get(strategy, [1, 2])
    before = [event for event in hub.events if event.startswith("verify checkpoint")]
    assert before == [f"verify checkpoint-{step}" for step in [*verified, 2]]  # the last once more: training ends there
    assert hub.events[-2:] == ["verify out", "upload out"]
    assert hub.trainer.args.hub_token == "hf_secret_word"


def test_a_broken_folder_is_not_pushed(make_args, hub, monkeypatch):
    args = make_args(push_to_hub=True, max_steps=1, hub_token="hf_secret_word")
    hub.trainer = ContrastiveRerankTrainer(small_reranker(spread=0.3), args, train_dataset=word_groups(8))
    write = Trainer._save

    def write_and_break(self, output_dir=None, state_dict=None):
        write(self, output_dir, state_dict)
        path = Path(output_dir or self.args.output_dir, "model.safetensors")
        weights = {name: 1.01 * value for name, value in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})

    monkeypatch.setattr(Trainer, "_save", write_and_break)
    for push in (hub.trainer.push_to_hub, hub.trainer.save_model):
        with pytest.raises(ValueError, match=r"scores pair \d as .* a difference of"):
            push()
    assert hub.uploads == []


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("never", []),
        ("final", ["checkpoint-2", "saved"]),
        ("every_save", ["checkpoint-1", "checkpoint-2", "saved"]),
    ],
)
def test_the_argument_says_which_folders_are_verified(make_args, hub, tmp_path, mode, expected):
    args = make_args(save_strategy="steps", save_steps=1, max_steps=2, verify_checkpoints=mode)
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(8))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))

    assert hub.events == [f"verify {name}" for name in expected]


def test_the_best_checkpoint_is_verified_when_it_is_loaded(make_args, hub):
    args = make_args(
        num_train_epochs=2,
        learning_rate=1e-9,  # nothing improves after the first epoch
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="ndcg@10",
    )
    groups = word_groups(8)
    ContrastiveRerankTrainer(small_reranker(), args, train_dataset=groups, eval_dataset=groups).train()

    assert hub.events == ["verify checkpoint-2"]


def test_verifying_changes_nothing_of_the_training(make_args):
    weights = []
    for mode in ("never", "every_save"):
        args = make_args(save_strategy="steps", save_steps=1, verify_checkpoints=mode)
        reranker = small_reranker(spread=0.3)
        reranker.model.bert.embeddings.dropout.p = 0.2  # so that the numbers drawn matter
        ContrastiveRerankTrainer(reranker, args, train_dataset=word_groups(12)).train()
        weights.append(torch.cat([p.detach().flatten() for p in reranker.model.parameters()]))

    assert torch.equal(*weights)


def test_verified_pairs_come_from_the_first_data_set_that_has_groups():
    groups = word_groups(6)
    pairs = some_pairs([None, EvalGroups(groups)], 8)

    assert pairs == [(row["query"], passage) for row in list(groups)[:4] for passage in row["passages"][:2]]
    assert some_pairs([None, EvalGroups(groups.select([]))], 8) == []


def test_a_trainer_without_groups_still_compares_ids_and_says_so(make_args, tmp_path, caplog):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args())
    with caplog.at_level("WARNING", logger="rerank_trainer"):
        trainer.save_model(str(tmp_path / "saved"))

    assert "holds no groups, so only token ids" in caplog.text


def test_a_hidden_token_is_a_text_everywhere_but_in_a_pickle(make_args):
    args = make_args(hub_token="hf_secret_word")
    hide_token(args)

    assert args.hub_token == copy.deepcopy(args).hub_token == "hf_secret_word"
    assert pickle.loads(pickle.dumps(args)).hub_token is None


@pytest.mark.parametrize(("progress", "epoch"), [(0, 0), (1.0, 1), (2.75, 2)])
def test_the_sampler_is_told_its_epoch_where_the_data_loader_does_not_reach_it(make_args, progress, epoch):
    # with several processes and a resume in the middle of an epoch, accelerate wraps the sampler too deep
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=word_groups(4))
    sampler = trainer._get_train_sampler()
    trainer.state.epoch = progress
    trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)

    assert {key[0] for key in sampler} == {epoch}
