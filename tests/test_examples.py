"""Every script of ``examples/`` runs from start to end in its smallest form, which its flag ``--smoke`` asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


def test_there_are_examples():
    assert SCRIPTS


@each_script
def test_script_has_a_smallest_form(script):
    assert '"--smoke"' in script.read_text(encoding="utf-8"), f"{script.name} lacks the flag --smoke"


@pytest.mark.slow
@each_script
def test_script_runs_in_its_smallest_form(script, tmp_path):
    if script.name == "annotate_with_ray.py":
        pytest.skip("tests/teachers/annotation/test_ray.py runs it, where Ray is installed")
    # In an empty folder, so that what it writes stays there; the environment (offline, own cache) is that of the tests.
    command = [sys.executable, str(script), "--smoke"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    assert run.returncode == 0, (
        f"{script.name} ended with {run.returncode}:\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    )
    assert run.stdout.strip(), f"{script.name} printed nothing; an example prints what it measured"
