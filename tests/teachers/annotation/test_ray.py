"""Ray: the scorer that `annotate` runs gives the same scores in Ray Data, on a Ray of this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_trainer.data.formats import load_groups
from rerank_trainer.teachers.annotation.annotate import annotate

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install "rerank_trainer[ray]"'
    ),
]


def test_ray_data_gives_the_scores_of_annotate(tmp_path):
    # a process of its own, which Ray may start others from; it leaves its teacher and its rows behind
    script = ROOT / "examples" / "annotate_with_ray.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    run = subprocess.run(
        [sys.executable, str(script), "--smoke"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-4000:]
    annotate(tmp_path / "tiny.parquet", str(tmp_path / "tiny_teacher"), tmp_path / "annotated", device="cpu")

    by_ray, here = (
        {(row["query"], *row["passages"]): row["teacher_scores"] for row in load_groups(tmp_path / name)}
        for name in ("scored", "annotated")
    )
    assert by_ray.keys() == here.keys() and len(here) > 20
    for group, scores in here.items():
        assert by_ray[group] == pytest.approx(scores, abs=1e-5)
