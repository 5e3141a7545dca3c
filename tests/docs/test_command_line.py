"""The page about the command line: its files are written, and its lines run, one after the other, as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rerank_trainer.cli import COMMANDS, main
from tests.docs.test_pages import _answers
from tests.docs.world import build
from tests.tiny_models import TEXTS

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("rerank-trainer ")]


def test_every_command_is_shown():
    assert {line.split()[1] for line in LINES} == set(COMMANDS)
    assert len(FILES) == PAGE.count("```yaml")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what libraries say of tiny models is not the page's matter
def test_every_line_of_the_page_runs(tmp_path, monkeypatch, capsys):
    build(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COHERE_API_KEY", "a-key")
    monkeypatch.setattr("rerank_trainer.teachers.endpoints.asking.Asking.ask", _answers)
    (tmp_path / "my_passages.txt").write_text("\n".join(TEXTS))
    for name, text in FILES:
        (tmp_path / name).write_text(text)

    for line in LINES:
        _, command, *words = shlex.split(line)
        # the page is written for a GPU, where nobody says what a CPU needs
        on_cpu = ["--use_cpu", "--no_dataloader_pin_memory", "--save_strategy", "no"] if command == "train" else []
        assert main([command, *words, *on_cpu]) == 0, f"{line}\n{capsys.readouterr().err[-2000:]}"
