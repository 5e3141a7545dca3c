"""Go through a recipe, from the data to the table: what is finished is left as it is.

python run.py recipe.yaml                # each step in processes of its own, which accelerate starts
python run.py recipe.yaml --dry_run      # the commands, with what is finished
accelerate launch --config_file accelerate/cpu.yaml run.py tiny.yaml --here   # all steps in these processes
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from plan import Recipe, Run

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Step:
    """One script with its arguments, and what is there when it is finished.

    Attributes:
        script: The name of a module in this folder.
        arguments: For it, behind the recipe.
        writes: What is there, and only then, when it is finished.
        reads: What must not be younger than that.
        is_shared: Whether several processes share the work.
    """

    script: str
    arguments: tuple[str, ...]
    writes: tuple[Path, ...]
    reads: tuple[Path, ...] = ()
    is_shared: bool = True

    @property
    def is_finished(self) -> bool:
        if not all(path.exists() for path in (*self.reads, *self.writes)):
            return False
        youngest = max((path.stat().st_mtime_ns for path in self.reads), default=0)
        return all(path.stat().st_mtime_ns >= youngest for path in self.writes)

    def __str__(self) -> str:
        return " ".join([self.script, *self.arguments])

    def command(self, recipe: str, launch: Path) -> list[str]:
        """How it is started in processes of its own."""
        script = [str(HERE / f"{self.script}.py"), recipe, *self.arguments]
        if not self.is_shared:
            return [sys.executable, *script]
        return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch), *script]


def steps(recipe: Recipe) -> list[Step]:
    """All steps, in an order in which each finds what it needs."""
    sets = recipe.evaluate["sets"]

    def trained(run: Run) -> Step:
        return Step("train", ("--model", run.model, "--method", run.method), (recipe.model_dir(run) / "finished.json",))

    results = {run: tuple(recipe.result_files(run, name)[0] for name in sets) for run in recipe.runs}
    reports = (recipe.work_dir / "report.json", recipe.work_dir / "report.md")
    data = (recipe.train_file, *(recipe.eval_file(name) for name in sets))
    return [
        Step("prepare", (), data, is_shared=False),
        trained(recipe.teacher_run),
        Step("annotate", (), (recipe.scores_dir / "manifest.json",)),
        *(trained(run) for run in recipe.student_runs),
        *(Step("judge", ("--model", run.model, "--method", run.method), results[run]) for run in recipe.runs),
        Step("report", (), reports, reads=tuple(path for paths in results.values() for path in paths), is_shared=False),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a file such as recipe.yaml")
    parser.add_argument("--launch", help="a file of accelerate, in place of the recipe's")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--here", action="store_true", help="run all steps in these processes, one after the other")
    options = parser.parse_args(arguments)

    recipe = Recipe.read(options.recipe)
    launch = Path(options.launch).resolve() if options.launch else recipe.path(recipe.launch)
    todo = steps(recipe)
    recipe.refuse_other_settings(keep=not options.dry_run)
    if options.here:
        run_here(recipe, options.recipe, todo)
        return
    for step in todo:
        command = step.command(options.recipe, launch)
        if step.is_finished:
            print(f"finished: {step}", flush=True)
        elif options.dry_run:
            print(shlex.join(command))
        else:
            print(f"begins:   {step}", flush=True)
            ended = subprocess.run(command).returncode
            if ended:
                sys.exit(f"{step} ended with {ended}. What is finished stays; the same command goes on from there.")


def run_here(recipe: Recipe, path: str, todo: list[Step]) -> None:
    """Run the steps in this process, or in this group of processes, which all came here.

    Raises:
        ValueError: If a model is trained in shards: processes are set up for that once.
    """
    sharded = [run.model for run in recipe.runs if {"fsdp", "deepspeed"} & recipe.settings(run.model).keys()]
    if sharded:
        raise ValueError(f"--here: {sharded} are trained in shards, which takes processes of their own. Leave it out.")
    from accelerate.utils import broadcast_object_list
    from processes import joined

    state = joined()
    is_left = [[not step.is_finished for step in todo]]
    if state.num_processes > 1:  # before anything is written, and as the first process sees it
        broadcast_object_list(is_left)
    for step, left in zip(todo, is_left[0], strict=True):
        if state.is_main_process:
            print(f"{'begins:  ' if left else 'finished:'} {step}", flush=True)
        if left and (step.is_shared or state.is_main_process):
            importlib.import_module(step.script).main([path, *step.arguments])
        state.wait_for_everyone()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
