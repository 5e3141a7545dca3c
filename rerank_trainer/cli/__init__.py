"""The command line: ``rerank-trainer COMMAND``. A command is a row of ``COMMANDS`` and a module of its name.

The module has ``plan``, which checks what it is given and says what it would do, without the weights of models; and
``run``, which does it. It is imported when the command is called, so that help comes at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rerank_trainer import __version__
from rerank_trainer.cli import options

# What these say is meant for users. Training turns them into failures once its input has been accepted.
_BAD_INPUT = (ValueError, OSError, ImportError)
_OK, _FAILED, _REFUSED, _INTERRUPTED = 0, 1, 2, 130


class Incomplete(RuntimeError):
    """A command that did less than it was asked for; its message says all that a user needs."""


@dataclass(frozen=True)
class Command:
    """What the command line knows of a command.

    Attributes:
        summary: What it does, in one line.
        options: Its flags, a dataclass of :mod:`rerank_trainer.cli.options`.
        trains: Whether the fields of :class:`RerankTrainingArguments` are flags as well.
    """

    summary: str
    options: type[Any]
    trains: bool = False

    @property
    def dataclasses(self) -> tuple[type[Any], ...]:
        """All dataclasses whose fields are flags."""
        if not self.trains:
            return (self.options,)
        from rerank_trainer.trainers.arguments import RerankTrainingArguments

        return (self.options, RerankTrainingArguments)


COMMANDS = {
    "train": Command("train a reranker, from labels or from a teacher", options.TrainOptions, trains=True),
    "annotate": Command("write a teacher's scores beside the groups of a data set", options.AnnotateOptions),
    "mine": Command("find hard negatives for queries that have positives", options.MineOptions),
    "evaluate": Command("judge a reranker on candidate lists, beside the first stage", options.EvaluateOptions),
    "compare": Command("train and judge students by every recipe: distil, contrast or mix?", options.CompareOptions),
    "export": Command("make a checkpoint ready for servers, or merge several", options.ExportOptions),
    "rank": Command("order passages for a query", options.RankOptions),
}


def main(line: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 failed on the way, 2 refused, 130 interrupted.

    Args:
        line: The words after the program's name; None takes those of this process.
    """
    name, *words = (sys.argv[1:] if line is None else line) or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else _overview())
        return _OK
    try:
        code = _called(name, words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # whoever read the output has seen enough; at the interpreter's end nothing must be written either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except _BAD_INPUT as error:
        return _told(name, error, _REFUSED, whole="--traceback" in words)
    except KeyboardInterrupt:
        print(f"rerank-trainer {name}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  whatever it is, launchers want an exit code
        from rerank_trainer.teachers.endpoints.errors import EndpointError

        # what a service answers is told in a line; anything else may need the whole story to be understood
        is_clear = isinstance(error, EndpointError | Incomplete)
        return _told(name, error, _FAILED, whole="--traceback" in words or not is_clear)


def _called(name: str, words: Sequence[str]) -> int:
    from rerank_trainer.cli.arguments import help_text, parse, split_line, unknown

    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = COMMANDS[name]
    common, flags = split_line(words)
    if common.help or common.help_all:
        print(help_text(name, command.summary, command.dataclasses, everything=common.help_all))
        return _OK
    from rerank_trainer.cli.console import console

    given = parse(name, command.dataclasses, flags, config=common.config)
    with console():
        module = importlib.import_module(f"rerank_trainer.cli.{name}")
        if common.dry_run:
            planned = module.plan(*given)
            width = max(map(len, planned))
            print("\n".join(f"{what:<{width}}  {value}" for what, value in planned.items()))
        else:
            module.run(*given)
    return _OK


def _told(name: str, error: Exception, code: int, *, whole: bool) -> int:
    if whole:
        traceback.print_exception(error)
    print(f"rerank-trainer {name}: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: rerank-trainer COMMAND [CONFIG.yaml] [--FLAG VALUE ...]",
            "",
            "Trains text rerankers by contrastive learning and by distillation.",
            "",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "The keys of the YAML file are the flags; a flag counts more than the file.",
            "",
            "  rerank-trainer COMMAND --help     the flags of a command",
            "  rerank-trainer COMMAND --dry-run  check the input, say what would be done, do nothing",
            "  rerank-trainer --version",
        ]
    )
