"""The page about teachers: its snippets on ensembles, rankings and soft labels run."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "teachers.md"
SECTIONS = ("Which one", "The protocol", "Ensembles", "Rankings without scores", "Soft labels without a teacher")


def test_the_snippets_of_the_page_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr("rerank_trainer.teachers.store.default_cache_dir", lambda: tmp_path)
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S))
    names: dict[str, object] = {}
    for section in SECTIONS:
        for snippet in re.findall(r"```python\n(.*?)```", sections[section], re.S):
            exec(snippet, names)

    assert names["weights"] == (1.0, 0.0)
    assert names["LengthTeacher"]().score(names["groups"])["scores"] == [[15.0, 21.0, 31.0]]
