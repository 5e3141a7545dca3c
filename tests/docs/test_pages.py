"""The pages: every block of Python on them runs, one after the other, as it is printed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from rerank_trainer import RerankTrainingArguments
from tests.docs.world import build, given

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
ELSEWHERE = ["hub"]  # runs in tests/hub, where there is a Hub
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n+)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = 2  # blocks that need what no test has; each says so in a comment before it


def blocks(page: Path) -> list[str]:
    return [code for skipped, code in BLOCK.findall(page.read_text("utf-8")) if not skipped]


def _answers(self, requests) -> dict[bytes, float]:
    """What services answer: the further down a passage stands, the less probable."""
    return {pair: 0.9 / place for request in requests for place, pair in enumerate(request.pairs, 1)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    build(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page) and page.stem not in ELSEWHERE], ids=lambda page: page.stem
)
@pytest.mark.filterwarnings("ignore")  # what libraries say of tiny models is not the pages' matter
def test_every_block_of_a_page_runs(page, world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rerank_trainer.trainers.base.RerankTrainer.push_to_hub", lambda *_, **__: None)
    monkeypatch.setenv("COHERE_API_KEY", "a-key")
    monkeypatch.setattr("rerank_trainer.teachers.endpoints.asking.Asking.ask", _answers)
    plain = RerankTrainingArguments.__init__  # pages are written for a GPU, where bf16 needs no word about the CPU
    on_cpu = lambda self, *values, **options: plain(self, *values, **{"use_cpu": True, **options})  # noqa: E731
    monkeypatch.setattr(RerankTrainingArguments, "__init__", on_cpu)
    names = {"__name__": page.stem, **given()}

    for number, code in enumerate(blocks(page)):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)


def test_few_blocks_are_not_run():
    skipped = [block for page in PAGES for block, _ in BLOCK.findall(page.read_text("utf-8")) if block]

    assert len(skipped) <= NOT_RUN
