"""The watch: it stops before a step that is not finite, its figures are those of the scores, a collapse is reported."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from transformers import TrainerCallback

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.objectives.naming import contrastive_objective
from rerank_trainer.objectives.objective import Objective, Targets, WeightedObjective
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.watch import RerankWatch, Seen
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.test_hooks import ragged_groups


class Poisoned(Objective):
    """InfoNCE whose value is NaN for the groups that hold the label 7."""

    names, part_weights, needs_labels = ("poisoned",), (1.0,), True

    def __init__(self):
        super().__init__()
        self.inner = contrastive_objective("infonce")

    def counts(self, targets):
        return self.inner.counts(targets)

    def forward(self, scores, targets):
        return self.inner(scores, targets) * torch.where((targets.labels == 7).any(dim=-1), math.nan, 1.0)


class Rootlike(Poisoned):
    """InfoNCE, and for poisoned groups the root of zero: the value is finite, its gradient is not."""

    def forward(self, scores, targets):
        poisoned = (targets.labels == 7).any(dim=-1)
        values = self.inner(scores, targets)
        return values + (scores[poisoned].sum() * 0.0).sqrt() if poisoned.any() else values


def poisoned_groups(row, num_groups=24):
    groups = word_groups(num_groups).to_list()
    groups[row]["labels"] = [7 * label for label in groups[row]["labels"]]
    return type(word_groups(1)).from_list(groups)


def train_poisoned(make_args, objective, **options):
    """A run over rows in order, 4 a batch, whose row 9 (in the third batch) is poisoned."""
    steps = {"logging_strategy": "steps", "logging_steps": 1, "warmup_steps": 0}
    args = make_args(train_sampling_strategy="sequential", **steps, **options)
    return RerankTrainer(
        small_reranker(spread=0.3), args, objective=objective, train_dataset=poisoned_groups(9), callbacks=[]
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_nan_stops_before_its_step_and_names_row_step_and_folder(make_args, accumulation):
    trainer = train_poisoned(make_args, Poisoned(), gradient_accumulation_steps=accumulation)
    good = 2 // accumulation  # steps before the one that holds row 9
    found = rf"step {good + 1} \(epoch 0\.33\) was not taken.*process 0: row 9: poisoned is nan\..*saved: (\S+)\. Look"

    with pytest.raises(FloatingPointError, match=found):
        trainer.train()
    folder = Path(trainer.args.output_dir) / f"last-finite-step-{good}"
    assert trainer.state.global_step == good
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    pairs = [("water", "fire"), ("rain", "rain on hills")]
    torch.testing.assert_close(Reranker.from_pretrained(folder).predict(pairs), trainer.reranker.predict(pairs))
    # and it has learned something: these are not the weights at the start
    assert (small_reranker(spread=0.3).predict(pairs) - trainer.reranker.predict(pairs)).abs().max() > 1e-4


def test_the_saved_weights_are_those_of_a_run_that_ended_there(make_args):
    stopped, whole = train_poisoned(make_args, Poisoned()), train_poisoned(make_args, contrastive_objective("infonce"))
    whole.add_callback(StopAfter(2))
    with pytest.raises(FloatingPointError):
        stopped.train()
    whole.train()

    for one, other in zip(stopped.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


class StopAfter(TrainerCallback):
    def __init__(self, num_steps):
        self.num_steps = num_steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.num_steps


def test_the_part_that_is_not_finite_is_named_among_several(make_args):
    objective = WeightedObjective([(0.5, contrastive_objective("infonce")), (0.5, Poisoned())])

    with pytest.raises(FloatingPointError, match=r"row 9: poisoned is nan\."):
        train_poisoned(make_args, objective).train()


def test_scores_that_are_not_finite_are_counted(make_args):
    trainer = train_poisoned(make_args, contrastive_objective("infonce"))
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(math.inf)

    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert "step 1 (epoch 0.00)" in str(error.value)
    assert "row 0: 4 of 4 scores are not finite, infonce is nan, row 1: 4 of 4" in str(error.value)
    assert "not finite already before this step (classifier.bias is not). No checkpoint in" in str(error.value)


def test_a_gradient_that_is_not_finite_stops_too(make_args):
    with pytest.raises(FloatingPointError, match=r"step 3 .*all scores and losses are finite, of rows 8, 9, 10, 11\."):
        train_poisoned(make_args, Rootlike()).train()


def test_the_latest_finite_checkpoint_is_named_when_the_weights_are_lost(make_args):
    trainer = train_poisoned(make_args, contrastive_objective("infonce"), save_strategy="steps", save_steps=1)
    trainer.add_callback(Spoil(at=3))

    with pytest.raises(FloatingPointError, match="The latest checkpoint with finite weights is .*checkpoint-2[.]"):
        trainer.train()
    assert (Path(trainer.args.output_dir) / "checkpoint-3").is_dir()


class Spoil(TrainerCallback):
    """Makes a weight NaN after a step, before the checkpoint of that step is written."""

    def __init__(self, at):
        self.at = at

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.at:
            with torch.no_grad():
                model.classifier.weight[0, 0] = math.nan


def test_the_log_shows_a_loss_that_is_nan_with_the_watch_and_without(make_args):
    watched, unwatched = train_poisoned(make_args, Poisoned()), train_poisoned(make_args, Poisoned())
    unwatched.remove_callback(RerankWatch)
    with pytest.raises(FloatingPointError):
        watched.train()
    unwatched.train()

    for trainer in (watched, unwatched):
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert [math.isnan(loss) for loss in losses[:3]] == [False, False, True]


def test_a_gradient_that_overflows_under_fp16_is_left_to_the_scaler(make_args):
    watch = RerankWatch()
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=word_groups(4), callbacks=[watch])
    watch.attach(trainer)
    batch = trainer.data_collator([trainer.train_dataset[0, index] for index in range(4)])
    for fp16, stops in ((True, False), (False, True)):
        trainer.args.fp16 = fp16
        trainer.training_step(trainer.model, batch, torch.tensor([4.0]))
        watch.gradient_norm = torch.tensor(math.inf)
        if stops:
            with pytest.raises(FloatingPointError):
                watch.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
        else:
            watch.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)


def test_scores_that_are_not_finite_stop_also_where_no_loss_is_defined(make_args):
    groups = word_groups(2).map(lambda row: {"labels": [0.0] * len(row["labels"])})
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=groups)
    trainer.watch.attach(trainer)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(math.inf)
    batch = trainer.data_collator([trainer.train_dataset[0, 1]])
    assert trainer.training_step(trainer.model, batch, torch.tensor([0.0])).item() == 0.0

    with pytest.raises(FloatingPointError, match=r"process 0: row 1: 4 of 4 scores are not finite\."):
        trainer.watch.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_logged_figures_are_those_of_the_scores_of_the_window(make_args):
    args = make_args(
        logging_strategy="steps",
        logging_steps=3,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=1e-30,  # the scores stay those of the start
        label_weight=0.5,
        passages_per_query=6,
    )
    reranker = small_reranker(spread=0.3)
    trainer = DistillRerankTrainer(reranker, args, train_dataset=ragged_groups(), eval_dataset=word_groups(5))
    trainer.train()
    windows = [entry for entry in trainer.state.log_history if "loss" in entry]

    assert len(windows) == 2
    for number, window in enumerate(windows):
        rows = ragged_groups().select(range(12 * number, 12 * number + 12)).to_list()
        scores = [reranker.predict([(row["query"], p) for p in row["passages"]]).numpy() for row in rows]
        taus = [kendalltau(own, row["teacher_scores"]).statistic for own, row in zip(scores, rows, strict=True)]
        hits = [row["labels"][np.argmax(row["teacher_scores"])] > 0 for row in rows if any(row["labels"])]
        assert window["score_std"] == pytest.approx(np.mean([own.std() for own in scores]), rel=1e-3)
        assert window["kendall_tau"] == pytest.approx(np.mean(taus), abs=1e-3)
        assert window["teacher_top1"] == pytest.approx(np.mean(hits), abs=1e-3)
        assert window["undefined_share"] == 0.0  # the teacher defines every group
    figures = trainer.evaluate()
    assert figures["eval_score_std"] > 0 and figures["eval_tie_share"] < 0.1


def test_undefined_groups_are_counted(make_args):
    args = make_args(logging_strategy="epoch", passages_per_query=6)
    groups = ragged_groups().remove_columns("teacher_scores")
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=groups)
    trainer.train()
    defined = [any(row["labels"]) for row in ragged_groups()]

    (window,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert window["undefined_share"] == pytest.approx(1 - np.mean(defined), abs=1e-4)
    assert "kendall_tau" not in window and "teacher_top1" not in window


def test_evaluation_while_training_does_not_count_into_the_figures(make_args):
    runs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        args = make_args(logging_strategy="epoch", **options)
        trainer = ContrastiveRerankTrainer(
            small_reranker(), args, train_dataset=word_groups(8), eval_dataset=word_groups(40, seed=2)
        )
        trainer.train()
        runs.append([entry["score_std"] for entry in trainer.state.log_history if "score_std" in entry])

    assert runs[0] == runs[1] and len(runs[0]) == 1


def test_figures_do_not_depend_on_how_often_batches_are_folded(make_args, monkeypatch):
    runs = []
    for pairs in (1, 2**18):
        monkeypatch.setattr("rerank_trainer.trainers.watch.PAIRS_PER_FOLD", pairs)
        args = make_args(logging_strategy="epoch")
        trainer = ContrastiveRerankTrainer(small_reranker(spread=0.3), args, train_dataset=ragged_groups())
        trainer.train()
        runs.append([entry for entry in trainer.state.log_history if "score_std" in entry])

    names = ("score_std", "tie_share", "undefined_share")
    assert [runs[0][0][name] for name in names] == pytest.approx([runs[1][0][name] for name in names], rel=1e-3)


# --- collapse --------------------------------------------------------------------------------------------------------


def collapse(make_args, learning_rate, callbacks=None, **options):
    args = make_args(
        **{
            "logging_strategy": "steps",
            "logging_steps": 4,
            "max_steps": 48,
            "learning_rate": learning_rate,
            "passages_per_query": 6,
            **options,
        }
    )
    trainer = ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(160), callbacks=callbacks)
    trainer.train()
    return trainer


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]


def test_a_collapse_is_reported_once_with_figures_and_causes(make_args, caplog):
    trainer = collapse(make_args, learning_rate=1.0)

    (warning,) = warnings_of(caplog)
    assert "learning rate that is too high (now 0." in warning and "was 0." in warning
    assert trainer.state.global_step == 48


def test_a_collapse_stops_the_training_when_asked_to(make_args, caplog):
    trainer = collapse(make_args, learning_rate=1.0, callbacks=[RerankWatch(on_collapse="stop")])

    (warning,) = warnings_of(caplog)
    assert "Training stops here" in warning
    assert trainer.state.global_step < 48


def test_a_collapse_is_ignored_when_asked_to(make_args, caplog):
    collapse(make_args, learning_rate=1.0, callbacks=[RerankWatch(on_collapse="ignore")])

    assert warnings_of(caplog) == []


def test_a_collapse_within_the_first_window_is_reported_at_the_end(make_args, caplog):
    watch = RerankWatch()
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), callbacks=[watch])
    watch.attach(trainer)
    targets = Targets(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    for scores in ([[1.0, -1.0]], *[[[0.5, 0.5001]]] * 199):  # deviations of 1, and of 0.00005: a mean of 0.00505
        scores, nothing = torch.tensor(scores), torch.zeros(1)
        watch.see(Seen(nothing[0], nothing[None], scores, targets, nothing == 0, nothing.long()))
    figures = watch.figures(torch.device("cpu"))
    assert figures["score_std"] == pytest.approx(0.00505, rel=1e-2)
    trainer.state.log_history.append({"loss": 0.7, "step": 200, **figures})
    watch.on_train_end(trainer.args, trainer.state, trainer.control)

    (warning,) = warnings_of(caplog)
    assert "is 0.00505 and was 1;" in warning and "in the last 1 logging windows" in warning


@pytest.mark.parametrize("options", [{}, {"bf16": True, "logging_steps": 1}], ids=str)
def test_no_alarm_in_a_run_that_learns(make_args, caplog, options):
    trainer = collapse(make_args, learning_rate=2e-3, **options)
    spread = [entry["score_std"] for entry in trainer.state.log_history if "score_std" in entry]

    assert warnings_of(caplog) == []
    assert spread[-1] > 10 * spread[0]  # it began with scores that were nearly equal


def test_scores_that_are_nearly_equal_before_the_warmup_is_over_are_no_collapse(make_args, caplog):
    reranker = small_reranker()
    with torch.no_grad():
        reranker.model.classifier.weight.zero_()  # every passage has the same score at first
    args = make_args(logging_strategy="steps", logging_steps=1, max_steps=20, warmup_steps=10, learning_rate=1e-12)
    ContrastiveRerankTrainer(reranker, args, train_dataset=word_groups(40)).train()

    (warning,) = warnings_of(caplog)
    assert warning.startswith("step 13:")  # three windows after the warmup, and not before


def test_a_resumed_run_remembers_how_far_scores_were_apart(make_args, caplog, tmp_path):
    trainer = collapse(make_args, learning_rate=2e-3, save_strategy="steps", save_steps=48)
    path = Path(trainer.args.output_dir) / "checkpoint-48" / "trainer_state.json"
    state = json.loads(path.read_text())
    for entry in state["log_history"]:
        entry["score_std"] = 1000.0  # as if this run had been a thousand apart
    path.write_text(json.dumps(state))
    again = ContrastiveRerankTrainer(
        small_reranker(),
        make_args(logging_strategy="steps", logging_steps=4, max_steps=60, passages_per_query=6),
        train_dataset=word_groups(160),
    )
    again.train(resume_from_checkpoint=str(path.parent))

    (warning,) = warnings_of(caplog)
    assert "was 1e+03" in warning


# --- the callback itself ---------------------------------------------------------------------------------------------


def test_every_trainer_has_a_watch_and_yours_takes_its_place(make_args):
    own = RerankWatch(num_windows=7)
    for callbacks, expected in ((None, 3), ([own], 7), ([RerankWatch], 3)):
        trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), callbacks=callbacks)
        watches = [each for each in trainer.callback_handler.callbacks if isinstance(each, RerankWatch)]
        assert [watch.num_windows for watch in watches] == [expected]
    assert trainer.watch is watches[0]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"on_collapse": "raise"}, "on_collapse='raise'"),
        ({"min_std_share": 2}, "min_std_share=2"),
        ({"max_tie_share": -0.1}, "max_tie_share=-0.1"),
        ({"num_windows": 0}, "num_windows=0"),
    ],
)
def test_options_out_of_their_range_are_refused(options, found):
    with pytest.raises(ValueError, match=found):
        RerankWatch(**options)


def test_nothing_is_kept_after_the_run(make_args):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=word_groups(8))
    trainer.train()

    assert trainer.watch._waiting == trainer.watch._step == []
