"""Work: tokens and padding are those of hand-made batches, and operations those that PyTorch counts."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, MambaConfig, MambaForCausalLM

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.data.templates import Row
from rerank_trainer.models.heads import LogitHead
from rerank_trainer.models.scoring import RowScorer
from rerank_trainer.models.work import Work, training_flops
from tests.tiny_models import tiny_config, tiny_model


def rows_of(lengths, *, prefix_length=0):
    """Rows of these lengths that begin alike and go on unlike each other."""
    rows = [
        Row([5] * prefix_length + [6 + i] * (n - prefix_length), None, prefix_length) for i, n in enumerate(lengths)
    ]
    return lay_rows(rows, [(0, i) for i in range(len(rows))])


def worked(kind, rows, *, backward=False, **options):
    model, _ = tiny_model(kind)
    model.config.pad_token_id = 0
    scorer = RowScorer(LogitHead(), pad_token_id=0, padding_side="right", **options)
    scorer.work = Work()
    scores = scorer(model, rows)
    if backward:
        scores.sum().backward()
    return scorer.work


def test_padding_is_what_fills_the_micro_batches():
    # at most 20 tokens: 9 and 8 run as two rows of 9, 3 and 2 as two rows of 3
    work = worked("bert", rows_of([2, 9, 3, 8]), max_tokens=20)

    assert work == Work(num_tokens=22, num_padding=2, num_attended=81 + 64 + 9 + 4)


def test_a_shared_prefix_counts_once_and_is_attended_to_by_all():
    # 5 tokens once; then 4, 2 and 1 as three rows of 4, which attend to 9, 7 and 6
    work = worked("llama", rows_of([9, 7, 6], prefix_length=5), share_prefix=True, max_tokens=100)

    assert work == Work(num_tokens=5 + 7, num_padding=5, num_attended=25 + 4 * 9 + 2 * 7 + 1 * 6)


def test_forwards_that_only_keep_step_with_other_processes_are_padding():
    work = worked("bert", rows_of([4, 4]), max_tokens=100, agree=lambda num_forwards: num_forwards + 3)

    assert work == Work(num_tokens=8, num_padding=3, num_attended=32)


def test_what_the_backward_computes_again_is_not_counted():
    rows = rows_of([2, 9, 3, 8])

    plain, recomputed = (worked("bert", rows, backward=True, recompute=wanted) for wanted in (False, True))

    assert plain == recomputed == Work(num_tokens=22, num_padding=14, num_attended=158)


@pytest.mark.parametrize("frozen", [False, True], ids=["all trained", "layers frozen"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_operations_are_those_that_pytorch_counts(kind, frozen):
    config = tiny_config(kind, vocab_size=64)
    sizes = {"hidden_size": 128, "num_hidden_layers": 6, "intermediate_size": 512}
    config.update({**sizes, **({"head_dim": 64} if kind == "llama" else {})})
    config.pad_token_id = 0
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not frozen or "layer" not in name or "embed" in name
    scorer = RowScorer(LogitHead(), pad_token_id=0, padding_side="right", max_tokens=1)  # each row alone: no padding
    scorer.work = Work()

    with FlopCounterMode(display=False) as counter:
        scorer(model, rows_of([120, 90, 60])).sum().backward()

    assert scorer.work.num_padding == 0
    assert training_flops(model, scorer.work) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_a_backbone_without_attention_costs_what_its_parameters_do():
    model = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, state_size=4, num_hidden_layers=1))
    num_parameters = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)

    assert training_flops(model, Work(num_tokens=10, num_attended=100)) == 6 * 10 * num_parameters
