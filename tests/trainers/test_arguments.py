"""Arguments: refused before any work, with the value and the remedy."""

from __future__ import annotations

import os

import pytest
from transformers import HfArgumentParser

from rerank_trainer.trainers.arguments import RerankTrainingArguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passages_per_query": 1}, "passages_per_query=1: .*give 2 or more"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1.0"),
        ({"teacher_temperature": "hot"}, "teacher_temperature='hot': .*a number above 0, or \"auto\""),
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


def test_the_temperature_of_the_teacher_is_a_number_or_auto(make_args):
    assert make_args(teacher_temperature="auto").teacher_temperature == "auto"
    parser = HfArgumentParser(RerankTrainingArguments)
    for text, value in (("auto", "auto"), ("2.5", 2.5)):
        (args,) = parser.parse_args_into_dataclasses(["--teacher_temperature", text, "--use_cpu", "--negatives", "0.0"])
        assert args.teacher_temperature == value


def test_an_output_folder_that_cannot_be_written_is_refused(make_args, tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ValueError, match="output_dir=.*file/out' cannot be written"):
        make_args(output_dir=str(tmp_path / "file" / "out"))


def test_texts_are_never_dropped_as_unused_columns(make_args):
    assert make_args(remove_unused_columns=True).remove_unused_columns is False


@pytest.mark.parametrize("name", ["a/b/c", "me/two--dashes", "me/.hidden", "me/x.git", "me/" + 97 * "x", "with space"])
def test_a_name_that_the_hub_does_not_allow_is_refused_before_anything_is_done(make_args, name):
    with pytest.raises(
        ValueError, match="hub_model_id='.*' is no name of a repository.*Give 'name' or 'namespace/name'"
    ):
        make_args(hub_model_id=name)


def test_an_output_folder_that_is_no_name_is_refused_only_where_it_is_pushed(make_args, tmp_path):
    make_args(output_dir=str(tmp_path / "my run"))
    with pytest.raises(ValueError, match="hub_model_id='my run' is no name"):
        make_args(output_dir=str(tmp_path / "my run"), push_to_hub=True)


@pytest.mark.parametrize("output_dir", [".", "..", "~"])
def test_a_folder_around_ones_work_is_not_pushed(make_args, output_dir):
    with pytest.raises(ValueError, match="all that lies there would be pushed.*a folder of its own"):
        make_args(output_dir=os.path.expanduser(output_dir), push_to_hub=True, hub_model_id="me/all")
