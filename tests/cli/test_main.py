"""The program: help at once, exit codes, and one line about what was refused."""

from __future__ import annotations

import configparser
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_trainer import __version__, mine_negatives
from rerank_trainer.cli import COMMANDS, main
from rerank_trainer.cli.options import AnnotateOptions, MineOptions
from rerank_trainer.teachers.annotation.annotate import annotate
from rerank_trainer.teachers.endpoints.errors import BudgetError

ROOT = Path(__file__).parents[2]


def test_help_comes_without_torch_and_transformers():
    probe = (
        "import sys; from rerank_trainer.cli import main; main(['--help'])\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)

    assert run.stdout.splitlines()[0].startswith("usage: rerank-trainer COMMAND")
    assert run.stdout.splitlines()[-1] == "set()"


def test_the_installed_program_is_this_one():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    name, _, place = settings["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = place.partition(":")

    assert name == "rerank-trainer"
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.slow
def test_the_program_ranks_what_another_one_writes(world):
    command = [sys.executable, "-m", "rerank_trainer", "rank", "--model", "student", "--query", "water"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    given = "fire ship\nwater map\n"
    run = subprocess.run(command, cwd=world, env=environment, input=given, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    assert sorted(line.split(maxsplit=2)[2] for line in run.stdout.splitlines()) == ["fire ship", "water map"]


def test_the_overview_names_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_has_all_of_its_flags(name, capsys):
    assert main([name, "--help"]) == 0

    shown = capsys.readouterr().out
    assert all(re.search(rf"^  --{field.name}\b", shown, re.M) for field in dataclasses.fields(COMMANDS[name].options))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_module_that_plans_and_runs(name):
    module = importlib.import_module(f"rerank_trainer.cli.{name}")

    assert callable(module.plan) and callable(module.run)


def has_default(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and parameter.default is not inspect.Parameter.empty


@pytest.mark.parametrize(("options", "function"), [(AnnotateOptions, annotate), (MineOptions, mine_negatives)])
def test_flags_have_the_defaults_of_the_function(options, function):
    arguments = inspect.signature(function).parameters
    in_words = {"first_stage": ("bm25", None)}
    shared = [field for field in dataclasses.fields(options) if has_default(arguments.get(field.name))]

    assert len(shared) >= 3
    for field in shared:
        defaults = (field.default, arguments[field.name].default)
        assert defaults == in_words.get(field.name, (field.default, field.default)), field.name


REFUSED = [
    (["rnak"], "rnak: unknown command 'rnak'; did you mean 'rank'"),
    (["train", "nothing.yaml"], "No such file or directory: 'nothing.yaml'"),
    (["train", "train.yaml", "--learnign_rate", "1"], "unknown flag '--learnign_rate'; did you mean '--learning_rate'"),
    (["train", "train.yaml", "--passages_per_query", "1"], "passages_per_query=1"),
    (["train", "train.yaml", "--train_dataset", "none.jsonl"], "none.jsonl is not there"),
    (["train", "train.yaml", "--train_dataset", "{source: rows.jsonl, splt: train}"], "did you mean 'split'"),
    (["train", "train.yaml", "--train_dataset", "{web: {rows: rows.jsonl, wieght: 1}}"], "did you mean 'weight'"),
    (["train", "train.yaml", "--eval_dataset", "{folder: dev}"], "load_beir has missing a required argument: 'split'"),
    (["train", "train.yaml", "--method", "contrastive", "--teacher", "teacher"], "learns from labels, and there is"),
    (["train", "train.yaml", "--teacher", "{url: http://localhost, apy: tei}"], "did you mean 'api'"),
    (["train", "train.yaml", "--peft_config", "{rank: 4}"], "unknown argument of LoraConfig 'rank'"),
    (["mine", "--dataset", "rows.jsonl", "--output", "mined.csv"], "output='mined.csv': expected a file that ends in"),
    (
        ["mine", "--dataset", "rows.jsonl", "--output", "m.jsonl", "--reranker", "teacher"],
        "give a reranker and a limit",
    ),
    (["mine", "--dataset", "rows.jsonl", "--output", "m.jsonl", "--range_max", "5"], "range_min=10 and range_max=5"),
    (["evaluate", "--dataset", "dev.jsonl", "--metrics", "nDGC@10"], "Did you mean nDCG@10"),
    (["export", "--model", "student", "--output_dir", "o", "--weights", "1"], "are for several models"),
    (["rank", "--model", "student", "--query", "a", "--passages", "none.txt"], "No such file or directory: 'none.txt'"),
]


@pytest.mark.parametrize(
    ("line", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
@pytest.mark.parametrize("dry", [False, True], ids=["", "dry"])
def test_bad_input_is_refused_in_one_line(line, message, dry, call):
    code, printed, told = call(*line, *(["--dry-run"] if dry else []))

    assert code == 2 and printed == "" and "Traceback" not in told
    assert told.splitlines()[-1].startswith(f"rerank-trainer {line[0]}: ") and message in told.splitlines()[-1]


def test_the_traceback_is_shown_when_asked_for(call):
    code, _, told = call("train", "nothing.yaml", "--traceback")

    assert code == 2 and "Traceback" in told and told.splitlines()[-1].startswith("rerank-trainer train: ")


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [(RuntimeError("broke"), 1, True), (BudgetError("broke"), 1, False), (KeyboardInterrupt(), 130, False)],
)
def test_what_fails_on_the_way_has_other_exit_codes(error, code, traceback, call, monkeypatch):
    def fail(options):
        raise error

    monkeypatch.setattr("rerank_trainer.cli.rank.run", fail)
    found, _, told = call("rank", "--model", "student", "--query", "water")

    assert found == code and ("Traceback" in told) == traceback
    assert told.splitlines()[-1] == f"rerank-trainer rank: {'interrupted' if code == 130 else 'broke'}"
