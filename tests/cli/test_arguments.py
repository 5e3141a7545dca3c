"""Arguments: what a file says, what a flag says, and what neither may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from rerank_trainer.cli.arguments import help_text, parse
from rerank_trainer.trainers.arguments import RerankTrainingArguments


@dataclass
class Options:
    """A part with a name. And more."""

    name: str = field(metadata={"help": "what it is called"})
    rate: float = field(default=0.5, metadata={"help": "how fast"})
    count: int | None = field(default=None, metadata={"help": "how many"})
    order: Literal["up", "down"] = field(default="up", metadata={"help": "which way"})
    is_quick: bool = field(default=True, metadata={"help": "whether it is quick"})
    metrics: list[str] | None = field(default=None, metadata={"help": "which"})


@pytest.fixture
def parsed(tmp_path):
    """The options that a file and flags give."""

    def parse_both(text: str, *flags: str) -> Options:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return parse("test", [Options], flags, config=str(path))[0]

    return parse_both


def test_a_flag_counts_more_than_the_file(parsed):
    text = "name: file\nrate: 0.25\nis_quick: true\nmetrics: [a, b]"

    assert parsed(text, "--rate", "2", "--no_is_quick", "--metrics", "c") == Options(
        "file", 2.0, None, "up", False, ["c"]
    )


@pytest.mark.parametrize("written", ["--is-quick=false", "--is_quick=false", "--no-is-quick"])
def test_flags_have_the_two_spellings_of_hf(parsed, written):
    assert not parsed("name: a", written).is_quick


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("rate: 1e-4", "rate", 0.0001),  # texts in YAML 1.1
        ("rate: 3", "rate", 3.0),
        ("rate: -.5", "rate", -0.5),
        ("name: no", "name", "no"),  # false in YAML 1.1
        ("name: 1:30", "name", "1:30"),  # 90 in YAML 1.1
        ("name: 2024-05-01", "name", "2024-05-01"),
        ("name: -dash", "name", "-dash"),
        ("name: {url: here, count: 2}", "name", '{"url": "here", "count": 2}'),
        ("is_quick: yes", "is_quick", True),
        ("is_quick: false", "is_quick", False),
        ("count: null", "count", None),
        ("count: -1", "count", -1),
        ("metrics: [nDCG@10, 1]", "metrics", ["nDCG@10", "1"]),
    ],
)
def test_a_value_of_the_file_has_the_type_of_its_flag(parsed, text, name, value):
    found = getattr(parsed(text if name == "name" else f"name: a\n{text}"), name)

    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("name: a\nrat: 1", [], "unknown key 'rat'; did you mean 'rate'"),
        ("name: a", ["--rat", "1"], "unknown flag '--rat'; did you mean '--rate'"),
        ("name: a", ["--rat=1"], "unknown flag '--rat'"),
        ("name: a", ["stray"], "'stray' belongs to no flag"),
        ("name: a\nname: b", [], "the key 'name' stands twice"),
        ("name: a\nrate: fast", [], "invalid float value: 'fast'"),
        ("name: a\norder: left", [], "invalid choice: 'left'"),
        ("name: a\nrate: null", [], "rate has no value. Leave the key out for 0.5"),
        ("name: a\nmetrics: nDCG@10", [], "metrics takes a list, found a str"),
        ("name: a\nmetrics: []", [], "metrics is an empty list"),
        ("name: [a, b]", [], "name takes one value, found a list"),
        ("rate: 1", [], "required: --name"),
        ("- a\n- b", [], "expected keys with values"),
        ("name: a\nmetrics: [a", [], r"cannot be read as YAML: expected ',' or '\]'.* \(line 2, column 12\)"),
    ],
)
def test_what_is_not_understood_is_refused(parsed, text, flags, message):
    with pytest.raises(ValueError, match=message):
        parsed(text, *flags)


def test_the_arguments_of_training_are_read_from_a_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("output_dir: out\neval_strategy: no\nuse_cpu: true\nloss_options: {k: 10}\nlearning_rate: 2e-5")

    (args,) = parse("train", [RerankTrainingArguments], [], config=str(path))

    assert args.eval_strategy == "no" and args.learning_rate == 2e-5 and args.loss_options == {"k": 10}


def test_help_shows_every_flag_once_with_its_default():
    shown = help_text("test", "do it", [Options], everything=False)

    assert "Do it." in shown and "A part with a name:" in shown
    assert all(shown.count(f"--{name} ") == 1 for name in ("name", "rate", "count", "order", "is_quick", "metrics"))
    assert "what it is called (required)" in shown and shown.count("(required)") == 1
    assert "--rate X" in shown and "how fast (default: 0.5)" in shown and "--order up|down" in shown


def test_help_hides_rare_arguments_of_transformers_until_all_are_asked_for():
    short, whole = (
        help_text("train", "do it", [RerankTrainingArguments], everything=everything) for everything in (False, True)
    )

    assert "--passages_per_query N" in short and "--bf16" in short and "--help-all" in short
    assert "--adam_beta1" not in short and "--adam_beta1 X" in whole and "--help-all" not in whole


def test_a_summary_that_asks_has_one_mark():
    assert "This or that?\n" in help_text("test", "this or that?", [Options], everything=False)
