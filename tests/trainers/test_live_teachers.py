"""Live teachers in training: what they remember is what is claimed, a resume and processes change nothing of it."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from rerank_trainer.losses import infonce, kl
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.objectives.consistency import AffineMap
from rerank_trainer.objectives.objective import LabelObjective, TeacherObjective, WeightedObjective
from rerank_trainer.teachers.ema import EmaTeacher
from rerank_trainer.teachers.previous_epoch import PreviousEpochTeacher
from rerank_trainer.teachers.stochastic import StochasticTeacher
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.live import TEACHER_FILE, LiveTeaching
from rerank_trainer.trainers.sources import TrainSource
from tests.tiny_language_models import tiny_language_model
from tests.tiny_models import tiny_model
from tests.trainers.conftest import small_reranker, word_groups
from tests.trainers.launch import launch
from tests.trainers.runs import SGD, furthest, outcome, train, train_all, uneven_groups

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

TEACHERS = {
    "ema": partial(EmaTeacher, decay=0.8),
    "previous epoch": PreviousEpochTeacher,
    "stochastic": partial(StochasticTeacher, num_samples=12, dropout=0.3, kept_share=0.25, weigh_by_variance=True),
}
each_teacher = pytest.mark.parametrize("name", TEACHERS)
BOTH = {"objective": "kl", "label_weight": 0.5}  # from the first step on


class Weights(TrainerCallback):
    """Keeps the student's weights, as they were before the training and after each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def _keep(self, args: Any, state: Any, control: Any, *, model: torch.nn.Module, **kwargs: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in model.named_parameters()})

    on_train_begin = on_step_end = _keep


@pytest.fixture
def make_trainer(make_args):
    def make(teacher, *, reranker=None, objective=None, callbacks=(), **options) -> DistillRerankTrainer:
        parts: dict[str, Any] = {
            "callbacks": list(callbacks),
            "objective": objective,
            "lora": options.pop("lora", False),
        }
        reranker = reranker or small_reranker(spread=0.3)
        args = make_args(**options)
        return DistillRerankTrainer(reranker, args, teacher=teacher, train_dataset=word_groups(16), **parts)

    return make


def a_batch(trainer) -> dict[str, Any]:
    return trainer.data_collator([trainer.train_dataset[0, index] for index in range(4)])


def test_averaged_weights_are_those_of_the_recursion(make_trainer):
    keeper, teacher = Weights(), EmaTeacher(decay=0.35)
    make_trainer(teacher, callbacks=[keeper], num_train_epochs=2).train()

    name = "classifier.weight"
    before_each_step = [weights[name].double() for weights in keeper.seen[:-1]]
    assert len(before_each_step) == 8
    # min(0.35, (1 + t) / (10 + t)): the decay is warmed up until the fourth step
    decays = [2 / 11, 3 / 12, 4 / 13, 0.35, 0.35, 0.35, 0.35]
    average = before_each_step[0]
    for decay, weights in zip(decays, before_each_step[1:], strict=True):
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(teacher.state_dict()[name].double(), average, atol=1e-7, rtol=1e-6)
    assert (average - before_each_step[-1]).abs().max() > 1e-4


ADAPTERS = {
    "dora": LoraConfig(r=2, use_dora=True),
    "ia3": IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
    "prompt tuning": PromptTuningConfig(num_virtual_tokens=2),
}


def student_of(kind: str, folder: Path) -> Reranker:
    if kind == "token":
        return Reranker(*tiny_language_model("qwen3"), head=TokenLogitHead("yes", "no"), max_length=48)
    if kind not in ADAPTERS:
        return Reranker(*tiny_model(kind), max_length=48)
    small_reranker(spread=0.3).save_pretrained(folder)
    return Reranker.from_pretrained(folder).with_adapter(ADAPTERS[kind])


@pytest.mark.parametrize("kind", ["bert", "llama", "token", *ADAPTERS])
def test_an_average_scores_as_a_model_with_its_weights_does_and_leaves_the_student_as_it_is(
    make_trainer, tmp_path, kind
):
    teacher = EmaTeacher(decay=0.9)
    trainer = make_trainer(teacher, reranker=student_of(kind, tmp_path / "base"), learning_rate=2e-2)
    trainer.train()
    batch, model = a_batch(trainer), trainer.model.train()
    before, chance = copy.deepcopy(dict(model.named_parameters())), torch.get_rng_state()

    found = teacher.teach(batch)["teacher_scores"]

    assert furthest(before, dict(model.named_parameters())) == 0
    assert model.training and torch.equal(chance, torch.get_rng_state())
    groups = [trainer.train_dataset[0, index] for index in range(4)]
    pairs = [(group["query"], passage) for group in groups for passage in group["passages"]]
    own = trainer.reranker.predict(pairs)
    with torch.no_grad():
        for name, value in teacher.state_dict().items():
            model.get_parameter(name).copy_(value)
    torch.testing.assert_close(found.flatten(), trainer.reranker.predict(pairs), atol=1e-5, rtol=1e-5)
    assert (found.flatten() - own).abs().max() > 1e-3


def test_an_adapter_has_an_average_of_what_is_trained_alone_also_in_its_checkpoint(make_trainer, tmp_path):
    small_reranker(spread=0.3).save_pretrained(tmp_path / "base")
    reranker = Reranker.from_pretrained(tmp_path / "base")
    trainer = make_trainer(EmaTeacher(), reranker=reranker, lora=True, save_strategy="epoch")
    trainer.train()

    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    kept = load_file(f"{trainer.args.output_dir}/checkpoint-4/{TEACHER_FILE}")
    assert kept.keys() == trained and len(trained) < len(list(trainer.model.parameters())) / 2
    assert not (tmp_path / "out" / TEACHER_FILE).exists()


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=str)
@each_teacher
def test_a_teacher_that_counts_nothing_leaves_every_weight_as_it_is_without_it(
    make_trainer, make_args, name, precision
):
    """Its forward must not change what the student draws, nor hand it weights of 16 bits without a gradient."""
    options = {"num_train_epochs": 2, **precision}
    reranker = small_reranker(spread=0.3)
    for module in reranker.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    plain_reranker = copy.deepcopy(reranker)
    nothing = WeightedObjective([(1.0, LabelObjective(infonce)), (0.0, TeacherObjective(kl))])
    teacher = EmaTeacher() if name == "ema" else TEACHERS[name]()
    if name == "stochastic":
        teacher.weigh_by_variance = False

    taught = make_trainer(teacher, reranker=reranker, objective=nothing, **options)
    taught.train()
    plain = ContrastiveRerankTrainer(plain_reranker, make_args(**options), train_dataset=word_groups(16))
    plain.train()

    assert furthest(dict(taught.model.named_parameters()), dict(plain.model.named_parameters())) == 0


# 2 epochs of 4 steps
RESUMED: dict[str, Any] = {
    "num_groups": 16,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-3,
    "dropout": 0.1,
    "save_strategy": "steps",
    "save_steps": 2,
    "verify_checkpoints": "never",
}


@each_teacher
def test_a_resumed_run_ends_bit_for_bit_as_the_whole_run(tmp_path, name):
    options = {**RESUMED, **(BOTH if name == "ema" else {}), "live": TEACHERS[name]}
    train(tmp_path, name="whole", **options)
    whole = outcome(tmp_path, "whole")

    for step in (4, 6):  # between epochs, and inside one
        train(tmp_path, name="cut", **options, resume_from=f"checkpoint-{step}")
        cut = outcome(tmp_path, "cut")
        assert furthest(whole["weights"], cut["weights"]) == 0
        assert whole["history"] == cut["history"] and whole["history"][-1]["step"] == 8
        assert furthest(whole["teacher"], cut["teacher"]) == 0 and len(whole["teacher"]) > 20


@each_teacher
def test_a_step_of_8_groups_is_taught_the_same_however_it_is_cut(tmp_path, name):
    options = {**SGD, "num_groups": 16, "num_train_epochs": 2, **BOTH, "live": TEACHERS[name]}
    train(tmp_path, name="whole", per_device_train_batch_size=8, **options)
    train(tmp_path, name="cut", per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    whole, cut = outcome(tmp_path, "whole"), outcome(tmp_path, "cut")

    assert furthest(whole["weights"], cut["weights"]) < 1e-6
    assert furthest(whole["teacher"], cut["teacher"]) < 1e-6


@pytest.mark.slow
def test_two_processes_are_taught_as_one_is(tmp_path):
    options = {**SGD, "num_groups": 21, "num_train_epochs": 2, **BOTH}
    runs = {name: {**options, "live": teacher, "per_device_train_batch_size": 4} for name, teacher in TEACHERS.items()}
    launch(train_all, tmp_path / "two", num_processes=2, runs=runs)

    start = small_reranker(spread=0.3).model.state_dict()
    for name, run in runs.items():
        train(tmp_path / "one", name=name, **{**run, "per_device_train_batch_size": 8})
        one, two = (outcome(tmp_path / number, name) for number in ("one", "two"))
        assert furthest(one["weights"], two["weights"]) < 1e-6 < 1e-3 < furthest(one["weights"], start)
        assert furthest(one["teacher"], two["teacher"]) < 1e-6


def test_the_first_epoch_before_a_previous_one_is_that_of_labels_alone(make_trainer, make_args):
    keeper, teacher = Weights(), PreviousEpochTeacher()
    taught = make_trainer(teacher, callbacks=[keeper], num_train_epochs=2, **SGD)
    taught.train()
    plain_keeper = Weights()
    plain = ContrastiveRerankTrainer(
        small_reranker(spread=0.3),
        make_args(num_train_epochs=2, **SGD),
        train_dataset=word_groups(16),
        callbacks=[plain_keeper],
    )
    plain.train()

    apart = [furthest(one, other) for one, other in zip(keeper.seen, plain_keeper.seen, strict=True)]
    assert max(apart[:5]) < 1e-6 < 1e-5 < min(apart[6:])
    assert (
        furthest({name: value for name, value in teacher.state_dict().items() if name != "epoch"}, keeper.seen[4]) == 0
    )


def test_labels_are_alone_at_first_and_count_one_half_in_the_end(make_trainer):
    trainer = make_trainer(EmaTeacher(), num_train_epochs=5, logging_strategy="steps", logging_steps=1)
    trainer.train()

    logged = [entry["label_weight"] for entry in trainer.state.log_history if "label_weight" in entry]
    assert logged[:7] == [1.0] * 7 and logged[10:] == [0.5] * 10  # of 20 steps
    assert logged[7:10] == pytest.approx([0.875, 0.75, 0.625])


class Recorder(TeacherObjective):
    """Keeps what it compares with, and the student's scores."""

    def __init__(self) -> None:
        super().__init__(kl)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, scores, targets):
        self.seen.append((scores.detach(), targets.teacher_scores))
        return super().forward(scores, targets)


def test_a_student_is_compared_with_the_one_sample_that_is_nearest_to_it(make_trainer):
    recorder, teacher = Recorder(), StochasticTeacher(num_samples=9, dropout=0.3)  # a tenth of 9 is one
    trainer = make_trainer(teacher, objective=recorder, max_steps=1, dataloader_num_workers=0)
    trainer.train()

    ((scores, compared),) = recorder.seen
    # the draws are still those of the one step, the weights those before it
    samples = [teacher.teach(batch)["teacher_samples"] for batch in trainer.get_train_dataloader()][0]
    for group in range(4):
        divergences = [
            torch.nn.functional.kl_div(samples[group, :, n].log_softmax(0), scores[group].softmax(0), reduction="sum")
            for n in range(9)
        ]
        nearest = int(torch.stack(divergences).argmin())
        torch.testing.assert_close(compared[group], samples[group, :, nearest], atol=1e-5, rtol=1e-5)
        assert samples[group].std(dim=-1).min() > 0.01


def test_a_teacher_of_its_own_teaches_by_samples_without_a_checkpoint_file(make_trainer):
    teacher = StochasticTeacher(small_reranker(seed=3, spread=0.3), num_samples=4)
    trainer = make_trainer(teacher, save_strategy="epoch", label_weight=0.5)
    before = trainer.reranker.predict([("water", "fire")])
    trainer.train()

    assert (trainer.reranker.predict([("water", "fire")]) - before).abs().max() > 1e-3
    assert teacher.state_dict() == {}
    trainer.train(resume_from_checkpoint=True)


def test_evaluation_asks_no_live_teacher_and_has_no_loss(make_trainer):
    trainer = make_trainer(StochasticTeacher(num_samples=4))

    figures = trainer.evaluate(word_groups(5))

    assert "eval_ndcg@10" in figures and "eval_loss" not in figures


def test_a_source_whose_objective_has_no_teacher_trains_beside_one_that_has(make_args):
    sources = {"taught": word_groups(8), "plain": TrainSource(word_groups(8, seed=1), objective="infonce")}
    args = make_args(label_weight=0.5, num_train_epochs=2, logging_strategy="steps", logging_steps=1)
    trainer = DistillRerankTrainer(
        small_reranker(spread=0.3), args, teacher=PreviousEpochTeacher(), train_dataset=sources
    )
    trainer.train()

    logged = trainer.state.log_history[:-1]
    assert [sum("loss_taught/kl" in entry for entry in part) for part in (logged[:4], logged[4:])] == [0, 4]


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (EmaTeacher, {"objective": TeacherObjective(kl)}, r"objective \('kl',\) compares with EmaTeacher alone"),
        (PreviousEpochTeacher, {"objective": TeacherObjective(kl)}, "compares with PreviousEpochTeacher alone"),
        (EmaTeacher, {"teacher_temperature": "auto"}, "measures teacher scores before the training"),
        (
            StochasticTeacher,
            {"objective": TeacherObjective(kl, consistency=AffineMap())},
            "measures teacher scores before the training",
        ),
        (PreviousEpochTeacher, {"num_train_epochs": 1}, "from the second epoch on, and there are 1 "),
        (PreviousEpochTeacher, {"num_train_epochs": 0.5}, "from the second epoch on, and there are 0.5 "),
    ],
)
def test_what_a_live_teacher_cannot_do_is_refused_before_training(make_trainer, teacher, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(teacher(), **options)


def test_rows_with_teacher_scores_and_a_live_teacher_are_refused(make_args):
    with pytest.raises(ValueError, match="a column teacher_scores already and EmaTeacher is given: which one counts"):
        DistillRerankTrainer(small_reranker(), make_args(), teacher=EmaTeacher(), train_dataset=uneven_groups(4))


@pytest.mark.parametrize("sharding", ["fsdp", "deepspeed"])
def test_sharded_weights_are_refused(make_trainer, sharding):
    trainer = make_trainer(EmaTeacher())
    setattr(trainer, f"is_{sharding}_enabled", True)

    with pytest.raises(ValueError, match=f"EmaTeacher with {sharding}: a live teacher computes"):
        LiveTeaching(trainer, EmaTeacher())


def test_a_stream_has_no_second_epoch_but_an_average(make_args):
    stream = word_groups(16).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"there are 1 \(a stream has one\)"):
        DistillRerankTrainer(
            small_reranker(), make_args(max_steps=8), teacher=PreviousEpochTeacher(), train_dataset=stream
        )

    trainer = DistillRerankTrainer(small_reranker(), make_args(max_steps=2), teacher=EmaTeacher(), train_dataset=stream)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_checkpoint_of_another_teacher_is_refused(make_trainer):
    options = {"save_strategy": "epoch", "num_train_epochs": 2}
    make_trainer(StochasticTeacher(small_reranker(), num_samples=2), **options).train()

    for teacher in (EmaTeacher(), PreviousEpochTeacher()):
        with pytest.raises(
            ValueError, match=rf"{TEACHER_FILE}: expected a teacher's weights for the 41 parameters.*found 0"
        ):
            make_trainer(teacher, **options).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay}"):
        EmaTeacher(decay=decay)
