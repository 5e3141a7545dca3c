"""Trained: a model that a recipe has trained, opened to score."""

from __future__ import annotations

import torch
from plan import Recipe, Run
from processes import joined

from rerank_trainer import Reranker


def trained(recipe: Recipe, run: Run) -> tuple[Reranker, torch.dtype | None]:
    """The model on this process's device, and the type that it was trained to compute in, if not that of its weights.

    Raises:
        ValueError: If its training is not finished.
    """
    folder = recipe.model_dir(run)
    if not (folder / "finished.json").exists():
        raise ValueError(f"{folder}: the training of {run} is not finished, no finished.json is there. Run train.py.")
    reranker = Reranker.from_pretrained(folder)
    reranker.model.to(joined().device)
    return reranker, torch.bfloat16 if recipe.settings(run.model).get("bf16") else None
