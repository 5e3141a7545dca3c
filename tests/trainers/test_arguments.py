"""Arguments: refused before any work, with the value and the remedy."""

from __future__ import annotations

import pytest
from transformers import HfArgumentParser

from rerank_trainer.trainers.arguments import RerankTrainingArguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passages_per_query": 1}, "passages_per_query=1: .*give 2 or more"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1.0"),
        ({"label_weight": 1.01}, "label_weight=1.01"),
        ({"negatives": "hard"}, "negatives='hard': expected 'random', 'top'"),
        ({"negatives": 1.5}, "negatives=1.5"),
        ({"negatives": None}, "negatives=None: expected 'random', 'top'"),
        ({"loss_options": "k=10"}, "loss_options='k=10': expected a mapping, as JSON"),
        ({"verify_checkpoints": "always"}, "verify_checkpoints='always': expected one of"),
        ({"eval_metrics": ["ndcg@10", "ndgc@5"]}, "metric 'ndgc@5' is not known"),
    ],
)
def test_a_value_out_of_range_is_refused(make_args, options, message):
    with pytest.raises(ValueError, match=message):
        make_args(**options)


@pytest.mark.parametrize(("negatives", "share"), [("random", 0.0), ("top", 1.0), (0.25, 0.25), ("0.5", 0.5)])
def test_negatives_are_a_name_or_a_share(make_args, negatives, share):
    assert make_args(negatives=negatives).top_share == share


def test_the_budget_of_a_micro_batch_is_a_number_of_tokens_or_auto(make_args):
    assert make_args().max_tokens_per_micro_batch == "auto"
    assert make_args(max_tokens_per_micro_batch="2048").max_tokens_per_micro_batch == 2048
    with pytest.raises(ValueError, match="the tokens of a micro-batch are None: expected a number above 0, or 'auto'"):
        make_args(max_tokens_per_micro_batch=None)


def test_a_command_line_gives_the_options_of_losses_as_json(tmp_path):
    line = ["--output_dir", str(tmp_path), "--loss_options", '{"k": 10, "weighting": "ndcg_loss1"}']
    line += ["--label_loss", "hinge", "--label_loss_options", '{"margin": 2.0}']

    (args,) = HfArgumentParser(RerankTrainingArguments).parse_args_into_dataclasses(line)

    assert args.loss_options == {"k": 10, "weighting": "ndcg_loss1"}
    assert args.label_loss == "hinge" and args.label_loss_options == {"margin": 2.0}


def test_an_output_folder_that_cannot_be_written_is_refused(make_args, tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ValueError, match="output_dir=.*file/out' cannot be written"):
        make_args(output_dir=str(tmp_path / "file" / "out"))


def test_texts_are_never_dropped_as_unused_columns(make_args):
    assert make_args(remove_unused_columns=True).remove_unused_columns is False
