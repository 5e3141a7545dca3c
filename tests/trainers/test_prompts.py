"""Language models in training: they learn by their answers, as plain forwards would, and read instructions."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from rerank_trainer.data.collator import RerankCollator, lay_rows
from rerank_trainer.evaluation.cross_encoder import LiveCrossEncoder
from rerank_trainer.models.families import FAMILIES
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import bind_row_forward
from rerank_trainer.teachers.teacher import RerankerTeacher, fingerprint_reranker
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.distill import DistillRerankTrainer
from rerank_trainer.trainers.sources import TrainSource
from tests.tiny_language_models import saved_language_model, tiny_language_model
from tests.tiny_models import TEXTS
from tests.trainers.conftest import small_reranker, word_groups

SGD = {"optim": "sgd", "learning_rate": 0.02, "warmup_steps": 0, "lr_scheduler_type": "constant"}


def language_reranker(kind="qwen3", family="qwen3-reranker", *, max_length=160, spread=0.1, **options):
    found = FAMILIES[family]
    model, tokenizer = tiny_language_model(kind, spread=spread, **options)
    return Reranker(model, tokenizer, head=found.head, prompt=found.prompt, max_length=max_length)


def plain_forward(reranker, text):
    """The score of a text, by a forward of the plain model over its vocabulary."""
    model, ids = reranker.model, reranker.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = {"decoder_input_ids": torch.tensor([[0]])} if model.config.is_encoder_decoder else {}
    logits = type(model).forward(model, input_ids=ids, **start).logits[0, -1]
    yes, *no = reranker.head.token_ids
    return logits[yes] - sum(logits[token] for token in no)


@pytest.mark.parametrize(
    ("kind", "family", "share_prefix", "recompute"),
    [
        ("qwen3", "qwen3-reranker", True, False),
        ("qwen3", "qwen3-reranker", False, True),
        ("qwen2", "mxbai-rerank-v2", True, True),
        ("gemma2", "bge-reranker-v2-gemma", True, False),
        ("t5", "monot5", None, False),
        ("t5", "rankt5", None, True),
    ],
)
def test_scores_and_gradients_are_those_of_plain_forwards(kind, family, share_prefix, recompute):
    reranker = language_reranker(kind, family)
    model, prompt = reranker.model.train(), reranker.prompt
    groups = [(TEXTS[0], TEXTS[1:]), ("what?", ["", f"{TEXTS[2]}."])]
    rows = reranker.template.encode(groups)
    laid = lay_rows([row for of_group in rows for row in of_group], [(0, i) for i in range(6)])
    scorer = reranker.row_scorer(400, share_prefix=share_prefix, recompute=recompute)
    bind_row_forward(model, scorer)
    scores = model(rows=laid)
    scores.sin().sum().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = torch.stack([plain_forward(reranker, prompt.fill(q, p)) for q, passages in groups for p in passages])
    expected.sin().sum().backward()

    assert scores.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert names <= gradient.keys()
    for name in names:
        ours, plain = gradient[name], model.get_parameter(name).grad
        assert (ours - plain).norm() < 1e-5 * max(1.0, plain.norm()), name


@pytest.mark.parametrize(("kind", "family"), [("qwen3", "qwen3-reranker"), ("t5", "monot5")])
@pytest.mark.parametrize("trainer_class", [ContrastiveRerankTrainer, DistillRerankTrainer])
def test_both_trainers_train_a_language_model_and_its_folder_is_verified(
    kind, family, trainer_class, make_args, tmp_path, caplog
):
    groups, evaluation = (
        groups.add_column("teacher_scores", [[3 * label for label in row] for row in groups["labels"]])
        for groups in (word_groups(16), word_groups(8))
    )
    args = make_args(num_train_epochs=2, save_strategy="epoch", logging_steps=1, learning_rate=5e-3)
    trainer = trainer_class(language_reranker(kind, family), args, train_dataset=groups, eval_dataset=evaluation)
    before = trainer.evaluate()["eval_loss"]
    with caplog.at_level("INFO", logger="rerank_trainer"):
        trainer.train()

    assert trainer.evaluate()["eval_loss"] < before - 0.01
    assert "pairs score the same" in caplog.text
    folder = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    pairs = [("water", "water fire"), ("ship", "map rain north")]
    torch.testing.assert_close(Reranker.from_pretrained(folder).predict(pairs), trainer.reranker.predict(pairs))


def test_a_trainer_makes_a_student_of_a_plain_language_model_by_a_family_s_name(make_args, tmp_path):
    folder = saved_language_model("qwen3", tmp_path / "base")
    options = {"head": "qwen3-reranker", "instruction": "Find it."}
    args = make_args(model_init_kwargs=options, max_length=160)
    own = AutoTokenizer.from_pretrained(folder)
    trainers = [
        ContrastiveRerankTrainer(folder, args, train_dataset=word_groups(2), processing_class=tokenizer)
        for tokenizer in (None, own)
    ]

    expected = Reranker.from_pretrained(folder, max_length=160, **options).predict([(TEXTS[0], TEXTS[1])])
    assert trainers[1].reranker.tokenizer is own
    for trainer in trainers:
        torch.testing.assert_close(trainer.reranker.predict([(TEXTS[0], TEXTS[1])]), expected)


def test_shared_prefixes_train_to_the_same_weights(make_args):
    weights = []
    for share_prefix in (True, False):
        args = make_args(share_prefix=share_prefix, **SGD)
        trainer = ContrastiveRerankTrainer(language_reranker(), args, train_dataset=word_groups(12))
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))

    start = torch.cat([p.detach().flatten() for p in language_reranker().model.parameters()])
    assert (weights[0] - weights[1]).abs().max() < 1e-5 < 1e-3 < (weights[0] - start).abs().max()


def read(trainer, batch):
    """The texts of a batch's rows."""
    rows = batch["student"]["input_ids"].split(batch["student"]["lengths"].tolist())
    return [trainer.reranker.tokenizer.decode(row) for row in rows]


def test_the_instructions_of_a_source_and_of_a_row_are_read(make_args, caplog):
    rows = {
        "maps": TrainSource(word_groups(1), instruction="Find the map."),
        "rows": word_groups(2).add_column("instruction", ["Find the ship.", ""]),
        "plain": word_groups(1),
    }
    evaluation = word_groups(1).add_column("instruction", ["Find the hills."])
    trainer = ContrastiveRerankTrainer(language_reranker(), make_args(), train_dataset=rows, eval_dataset=evaluation)
    texts = read(trainer, trainer.data_collator([trainer.train_dataset[0, index] for index in range(4)]))

    default = FAMILIES["qwen3-reranker"].prompt.instruction
    expected = ["Find the map.", "Find the ship.", default, default]
    assert len(texts) == 16
    for text, instruction in zip(texts, [each for each in expected for _ in range(4)], strict=True):
        assert f"<Instruct>: {instruction}\n<Query>: " in text
    evaluated = read(trainer, trainer.data_collator([trainer.eval_dataset[0]]))
    assert all("<Instruct>: Find the hills.\n" in text for text in evaluated)
    assert "the column instruction is not used" not in caplog.text


def test_a_teacher_reads_the_instructions_of_its_groups():
    teacher = RerankerTeacher(language_reranker(spread=0.3))
    group = {"query": "water", "passages": TEXTS}
    asked = teacher.score([group | {"instruction": "Find the map."}, group])["scores"]

    pairs = [("water", passage) for passage in TEXTS]
    expected = teacher.reranker.predict(pairs, instruction="Find the map.")
    torch.testing.assert_close(torch.tensor(asked[0]), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(asked[1]), teacher.reranker.predict(pairs), atol=1e-5, rtol=0)
    assert (torch.tensor(asked[0]) - torch.tensor(asked[1])).abs().max() > 0.01


def test_a_teacher_s_fingerprint_tells_heads_and_prompts_apart():
    model, tokenizer = tiny_language_model("qwen3")
    prompts = [FAMILIES[name].prompt for name in ("qwen3-reranker", "mxbai-rerank-v2")]
    heads = [FAMILIES[name].head for name in ("qwen3-reranker", "mxbai-rerank-v2")]
    rerankers = [Reranker(model, tokenizer, head=head, prompt=prompt) for head in heads for prompt in prompts]
    digests = [fingerprint_reranker(reranker, None) for reranker in rerankers]

    assert len(set(digests)) == 4 and digests[0] == fingerprint_reranker(rerankers[0].with_lengths(), None)


def test_an_evaluator_s_prompt_is_the_instruction():
    reranker = language_reranker(spread=0.3)
    live = LiveCrossEncoder(reranker)
    pairs = [(TEXTS[0], passage) for passage in TEXTS]

    asked = live.predict(pairs, prompt="Find the map.", convert_to_tensor=True)
    torch.testing.assert_close(asked, reranker.predict(pairs, instruction="Find the map."), atol=1e-6, rtol=0)


def test_a_collator_gives_no_instruction_to_pairs():
    group = word_groups(1)[0] | {"instruction": "Find it.", "row": 0}
    reranker = small_reranker()

    collator = RerankCollator(reranker.template)
    rows = [collator([each])["student"]["input_ids"] for each in (group, {**group, "instruction": "Look."})]
    assert torch.equal(*rows)
