"""Arguments: a YAML file and flags, read by ``HfArgumentParser`` into the dataclasses of a command; and their help.

The file is turned into flags that stand before those of the command line. So both have the same names, types and
choices, and where both say something the command line, which comes last, decides.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

# Arguments of Transformers that the short help shows beside our own.
_OFTEN_USED = (
    "output_dir num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "per_device_eval_batch_size bf16 eval_strategy eval_steps save_strategy load_best_model_at_end "
    "metric_for_best_model resume_from_checkpoint seed report_to push_to_hub hub_model_id"
).split()
_FEW_NAMES = 12  # that an error lists where none of them is near
_EPILOG = """\
  --config FILE  YAML file whose keys are these flags; may stand first, without --config
  --dry-run      check the input, say what would be done, do nothing
  --traceback    show where an error comes from
{more}
A flag that is on by default is turned off with --no_FLAG. Mappings are written as JSON."""
_MORE = "  --help-all     all flags, also the others of transformers.TrainingArguments\n"


class _Parser(HfArgumentParser):
    """Raises its errors, and takes no shortened names."""

    def __init__(self, types: Sequence[type[Any]] = (), **options: Any) -> None:
        super().__init__(types, add_help=False, allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message: str) -> Any:
        raise ValueError(message)


class _Help(argparse.HelpFormatter):
    """One name and a short placeholder for each flag, its default where it has one, and whether it must be given."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        placeholder = {"int": " N", "float": " X"}.get(kind, " TEXT")
        if kind == "string_to_bool":
            placeholder = "" if action.nargs == "?" else " true|false"
        if action.choices:
            placeholder = f" {'|'.join(map(str, action.choices))}"
        return action.option_strings[0] + placeholder + (" ..." if action.nargs == "+" else "")

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        words = " ".join(map(str, default)) if isinstance(default, list) else getattr(default, "value", default)
        known = "" if default is None or default is False else f" (default: {words})"
        return (action.help or "") + (" (required)" if action.required else known)


class _Yaml(yaml.SafeLoader):
    """Reads scalars by the core schema of YAML 1.2: `no` and `1:30` are texts and `1e-4` is a number, unlike in 1.1."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping; two entries of one key are refused."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


for _kind, _pattern in {
    "null": r"~|null|",
    "bool": r"true|false",
    "int": r"[-+]?(0|[1-9]\d*)",
    "float": r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?",
}.items():
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), None)


def split_line(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What all commands understand (``config``, ``dry_run``, ``help``, ``help_all``), and the other words.

    >>> common, flags = split_line(["config.yaml", "--dry-run", "--seed", "1"])
    >>> common.config, common.dry_run, flags
    ('config.yaml', True, ['--seed', '1'])
    """
    parser = _Parser()
    parser.add_argument("--config")
    for name in ("dry_run", "traceback", "help", "help_all"):
        options = [f"--{name}", f"--{name.replace('_', '-')}", *(["-h"] if name == "help" else [])]
        parser.add_argument(*options, action="store_true")
    if words and not words[0].startswith("-"):
        words = ["--config", *words]
    return parser.parse_known_args(words)


def parse(name: str, types: Sequence[type[Any]], flags: Sequence[str], *, config: str | None = None) -> tuple[Any, ...]:
    """An object of each dataclass.

    Args:
        name: Of the command.
        types: The dataclasses whose fields are its flags.
        flags: Of the command line.
        config: A YAML file whose keys are flags.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If a key, a flag or a value is not known, or one is missing.
    """
    parser = _Parser(types)
    words = [*([] if config is None else _as_flags(config, parser)), *flags]
    *parsed, rest = parser.parse_args_into_dataclasses(words, look_for_args_file=False, return_remaining_strings=True)
    for word in rest:
        if word.startswith("--"):
            raise unknown("flag", word.partition("=")[0], (f"--{key}" for key in _flags_of(parser)))
    if rest:
        raise ValueError(f"{rest[0]!r} belongs to no flag; see rerank-trainer {name} --help")
    return tuple(parsed)


def read_mapping(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML or JSON text holds.

    Raises:
        ValueError: If it cannot be read, or is no mapping of names.

    >>> read_mapping('{"depth": 20, "split": "test"}', "--dataset")
    {'depth': 20, 'split': 'test'}
    """
    try:
        found = yaml.load(text, _Yaml)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        # not the error's own text, which quotes lines that may hold a token
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"{where} cannot be read as YAML: {problem or type(error).__name__}{place}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{where}: expected keys with values, such as 'seed: 1', found a {type(found).__name__}")
    return found


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error about a name that is not known, with those that are nearest.

    >>> unknown("key", "modle", ["model", "seed"])
    ValueError("unknown key 'modle'; did you mean 'model'?")
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    few = f"; expected one of {known}" if len(known) <= _FEW_NAMES else ""
    return ValueError(f"unknown {kind} {name!r}{f'; did you mean {_either(close)}?' if close else few}")


def help_text(name: str, summary: str, types: Sequence[type[Any]], *, everything: bool) -> str:
    """The help of a command: its flags by dataclass; of inherited ones only those often used, unless all are wanted."""
    parser = _Parser(types, prog=f"rerank-trainer {name}")
    flags, formatter = _flags_of(parser), _Help(parser.prog, max_help_position=32, width=100)
    formatter.add_text(f"{summary[0].upper()}{summary[1:]}{'' if summary.endswith('?') else '.'}")
    hidden = False
    for kind in types:
        own = [field.name for field in dataclasses.fields(kind) if field.name in vars(kind)["__annotations__"]]
        inherited = [field.name for field in dataclasses.fields(kind) if field.name not in own]
        shown = inherited if everything else [key for key in inherited if key in _OFTEN_USED]
        hidden |= shown != inherited
        title = "Of training on groups" if inherited else str(kind.__doc__).partition(".")[0]
        for heading, keys in {title: own, "Of transformers.TrainingArguments": shown}.items():
            formatter.start_section(heading)
            formatter.add_arguments([flags[key] for key in keys])
            formatter.end_section()
    usage = f"usage: {parser.prog} [CONFIG.yaml] [--FLAG VALUE ...]"
    return f"{usage}\n\n{formatter.format_help()}\n{_EPILOG.format(more=_MORE if hidden else '')}"


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The flag of each field; that which turns a field off does not count."""
    return {action.dest: action for action in parser._actions if action.option_strings[0] == f"--{action.dest}"}


def _as_flags(config: str, parser: argparse.ArgumentParser) -> list[str]:
    known = _flags_of(parser)
    words = []
    for key, value in read_mapping(Path(config).read_text(encoding="utf-8"), config).items():
        if key not in known:
            raise ValueError(f"{config}: {unknown('key', key, known)}")
        several = known[key].nargs == "+"
        if isinstance(value, list) != several and value is not None:
            wanted, kind = "a list" if several else "one value", type(value).__name__
            raise ValueError(f"{config}: {key} takes {wanted}, found a {kind}")
        if value == []:
            raise ValueError(f"{config}: {key} is an empty list. Leave the key out, or give one value or more")
        if value is None and known[key].default is not None:
            raise ValueError(f"{config}: {key} has no value. Leave the key out for {known[key].default!r}")
        if isinstance(value, list):
            words += [f"--{key}", *map(_word, value)]
        elif value is not None:
            words.append(f"--{key}={_word(value)}")
    return words


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
