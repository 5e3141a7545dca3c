"""The house itself: import order, lengths, public names, version, what an import costs and does, no strange paths."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rerank_trainer

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rerank_trainer"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports from its own part or from the lines above its own; parts of one line do not know each other.
LAYERS = [
    {"losses", "data"},
    {"models"},
    {"teachers", "evaluation", "mining"},
    {"objectives"},
    {"model_card"},
    {"trainers"},
    {"compare"},
    {"cli"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

# What no part below the trainers may know, and what the losses may: tensors, and nothing of texts or models.
TRAINER_NAMES = {"Trainer", "TrainingArguments", "TrainerCallback", "TrainerState", "TrainerControl"}
KNOWN_TO_LOSSES = {"torch", "rerank_trainer"} | set(sys.stdlib_module_names)

MAX_FILE_LINES = 420
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}

SETS_FOR_ALL = re.compile(
    r"environ\[|environ\.(setdefault|update|pop)|putenv|filterwarnings|simplefilter|basicConfig|setLevel|set_verbosity"
    r"|manual_seed|random\.seed|set_num_threads|set_default_dtype"
)


def part_of(path: Path) -> str:
    """``losses/pairwise.py`` -> ``losses``; ``cli.py`` -> ``cli``; the root's ``__init__.py`` -> ``__init__``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
each_file_in_a_part = pytest.mark.parametrize(
    "path", [path for path in FILES if part_of(path) in RANK], ids=lambda path: str(path.relative_to(PACKAGE))
)
each_public_name = pytest.mark.parametrize("name", rerank_trainer.__all__)


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str | None, int]]:
    """Each import as (module, name taken from it, level)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module or "", alias.name, node.level
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, 0


def broken_imports(source: str, own: str) -> list[str]:
    """What a module of the part ``own`` imports although the order of the house forbids it."""
    broken = []
    for module, name, level in imports_of(ast.parse(source)):
        top, _, rest = module.partition(".")
        part = rest.split(".")[0]
        if level:
            broken.append(f"a relative import of {module or name}")
        elif module == "rerank_trainer" and name in RANK:
            part = name
        elif module == "rerank_trainer" and name != "__version__":
            broken.append(f"{name or 'the package'} from the package root; name its module")
        if part in RANK and part != own and RANK[part] >= RANK[own]:
            broken.append(f"{part}, which stands on the same line or below")
        if own == "losses" and top not in KNOWN_TO_LOSSES:
            broken.append(f"{module}: losses know tensors only")
        if RANK[own] < RANK["trainers"] and top == "transformers" and (name in TRAINER_NAMES or "trainer" in rest):
            broken.append(f"{module} {name}: only the trainers know the Trainer")
    return broken


def lines_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    docstring = ast.get_docstring(node, clean=False)
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    return total - (docstring.count("\n") + 1 if docstring else 0)


@pytest.mark.parametrize(
    ("source", "own", "found"),
    [
        ("from rerank_trainer.data.runs import read_run", "losses", "data, which stands on the same line"),
        ("from rerank_trainer.trainers.base import Base", "models", "trainers, which stands on the same line or below"),
        ("def f():\n    import rerank_trainer.cli", "compare", "cli, which stands on the same line or below"),
        ("from rerank_trainer import trainers", "models", "trainers, which stands on the same line or below"),
        ("from rerank_trainer import Reranker", "trainers", "Reranker from the package root"),
        ("import rerank_trainer", "trainers", "the package from the package root"),
        ("from .runs import read_run", "data", "a relative import of runs"),
        ("from transformers import Trainer", "objectives", "only the trainers know the Trainer"),
        ("from transformers.trainer_utils import EvalPrediction", "evaluation", "only the trainers know the Trainer"),
        ("import numpy as np", "losses", "losses know tensors only"),
    ],
)
def test_a_forbidden_import_is_found(source, own, found):
    assert any(found in line for line in broken_imports(source, own))


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("from rerank_trainer.losses.reduction import check_same_shape", "losses"),
        ("from rerank_trainer.losses.reduction import check_same_shape", "objectives"),
        ("from rerank_trainer import __version__", "model_card"),
        ("from transformers import Trainer", "trainers"),
        ("from transformers import AutoTokenizer", "data"),
    ],
)
def test_an_allowed_import_is_not_complained_about(source, own):
    assert broken_imports(source, own) == []


@each_file
def test_every_file_belongs_to_a_part_of_the_house(path):
    assert part_of(path) in {*RANK, "__init__", "__main__"}, f"{part_of(path)} has no line in LAYERS"


@each_file
def test_every_folder_is_a_package_so_that_a_wheel_contains_it(path):
    assert (path.parent / "__init__.py").is_file()


@each_file_in_a_part
def test_imports_go_downward_and_are_absolute(path):
    assert broken_imports(path.read_text(encoding="utf-8"), part_of(path)) == []


@each_file
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")

    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_without_docstring(node) <= MAX_FUNCTION_LINES, f"{node.name} in line {node.lineno}"


def test_a_docstring_does_not_count_as_length():
    node = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n').body[0]

    assert lines_without_docstring(node) == 2  # def and return


@each_file
def test_a_file_name_says_what_is_inside(path):
    assert path.stem not in VAGUE_NAMES


@each_file
def test_every_module_says_what_it_holds(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_public_names_are_sorted_and_unique():
    assert rerank_trainer.__all__ == sorted(set(rerank_trainer.__all__))


@each_public_name
def test_public_name_is_documented_where_it_is_defined(name):
    value = getattr(rerank_trainer, name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        pytest.skip("a value has no docstring of its own")

    # Dataclasses without a docstring are given their signature as one.
    docstring = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert docstring and not docstring.startswith(f"{name}("), f"{name} has no docstring of its own"
    if inspect.isfunction(value):
        assert ">>>" in docstring, f"{name} has no example that runs"


@each_public_name
def test_public_methods_are_documented_here_or_in_a_parent(name):
    value = getattr(rerank_trainer, name)
    if not inspect.isclass(value):
        pytest.skip("no class")

    methods = [key for key, member in vars(value).items() if inspect.isroutine(member) and not key.startswith("_")]
    assert [key for key in methods if not inspect.getdoc(getattr(value, key))] == []


@each_public_name
def test_public_name_is_mentioned_in_the_readme_or_the_docs(name):
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

    assert any(re.search(rf"\b{re.escape(name)}\b", page.read_text(encoding="utf-8")) for page in pages)


def test_an_unknown_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = rerank_trainer.Nonsense


def test_top_version_of_the_changelog_is_the_version_of_the_package():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert versions[0] == rerank_trainer.__version__


PROBE = """
import json, logging, os, sys, time, warnings

def state():
    return [dict(os.environ), [str(f) for f in warnings.filters], logging.root.level, len(logging.root.handlers)]

before, start = state(), time.perf_counter()
import rerank_trainer
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "unchanged": state() == before, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def imported() -> list[dict]:
    """What ``import rerank_trainer`` did in three fresh interpreters."""
    command = [sys.executable, "-c", PROBE]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(3)]
    return [json.loads(run.stdout) for run in runs]


def test_import_takes_less_than_a_second(imported):
    assert min(run["seconds"] for run in imported) < 1.0


@pytest.mark.parametrize(
    "module", ["torch", "transformers", "bitsandbytes", "matplotlib", "sentence_transformers", "datasets", "bm25s"]
)
def test_import_loads_no_heavy_module(imported, module):
    assert module not in imported[0]["modules"]


def test_import_has_no_effect_on_environment_warnings_or_root_logger(imported):
    assert all(run["unchanged"] for run in imported)


@each_file
def test_no_module_sets_anything_for_others_when_imported(path):
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    run_at_import = [node for node in statements if not isinstance(node, ast.FunctionDef | ast.ClassDef)]

    for node in run_at_import:
        assert not SETS_FOR_ALL.search(ast.unparse(node)), f"line {node.lineno}: {ast.unparse(node)}"


def text_files() -> list[Path]:
    """Files that git tracks or would track; outside a checkout, the package, its tests and what stands beside them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        folders = [PACKAGE, *(ROOT / name for name in ("tests", "examples", "benchmarks", "docs", ".ci"))]
        paths = [path for path in [*ROOT.glob("*"), *(path for f in folders for path in f.rglob("*"))]]
    skipped = {".png", ".svg", ".parquet", ".pyc"}
    return [path for path in paths if path.is_file() and path.suffix not in skipped]


def test_no_file_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.~/-])/(?:work|tmp|root|opt|home)\b")

    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]

    assert found == []


def test_no_test_reaches_another_machine():
    import socket

    with pytest.raises(RuntimeError, match=r"asked for '192\.0\.2\.1'"):
        socket.create_connection(("192.0.2.1", 443), timeout=1)
    with pytest.raises(RuntimeError, match=r"asked for 'example\.org'"):
        socket.getaddrinfo("example.org", 443)
