"""Annotate: the teacher's scores of all training groups, written once for all students.

accelerate launch --config_file accelerate/multi_gpu.yaml annotate.py recipe.yaml

A process that is killed loses at most one shard; each process holds the whole teacher.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from plan import Recipe, Run
from processes import joined

from rerank_trainer import Reranker, RerankerTeacher, annotate


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    recipe = Recipe.read(parser.parse_args(arguments).recipe)
    reranker, dtype = trained(recipe, recipe.teacher_run)
    print(annotate(str(recipe.train_file), RerankerTeacher(reranker, autocast_dtype=dtype), recipe.scores_dir))


def trained(recipe: Recipe, run: Run) -> tuple[Reranker, torch.dtype | None]:
    """A trained model on this process's device, and the type in which it was trained to compute.

    Raises:
        ValueError: If its training is not finished.
    """
    folder = recipe.model_dir(run)
    if not (folder / "finished.json").exists():
        raise ValueError(f"{folder}: the training of {run} is not finished, no finished.json is there. Run train.py.")
    settings: dict[str, Any] = recipe.settings(run.model)
    reranker = Reranker.from_pretrained(folder)
    reranker.model.to(joined().device)
    return reranker, torch.bfloat16 if settings.get("bf16") else None


if __name__ == "__main__":
    main()
