"""Groups and trainers small enough to train in a second, and learnable: the right passage shares the query's word."""

from __future__ import annotations

import gc
import random
from typing import Any

import datasets
import pytest

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from tests.tiny_models import tiny_model

WORDS = ["water", "fire", "ship", "rain", "hills", "north", "map", "blood"]

# A run on the CPU that shows and saves nothing.
SILENT: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
}


def word_groups(num_groups: int, *, group_size: int = 6, seed: int = 0, **columns: list[Any]) -> datasets.Dataset:
    """Groups whose query is one word, and whose one positive alone holds it."""
    chance = random.Random(seed)
    rows = []
    for _ in range(num_groups):
        word, place = chance.choice(WORDS), chance.randrange(group_size)
        others = [w for w in WORDS if w != word]
        passages = [" ".join(chance.choices(others, k=3)) for _ in range(group_size)]
        passages[place] = f"{word} {chance.choice(others)}"
        labels = [float(i == place) for i in range(group_size)]
        rows.append({"query": word, "passages": passages, "labels": labels})
    return datasets.Dataset.from_list(rows)


def small_reranker(seed: int = 0, kind: str = "bert", spread: float = 0.1) -> Reranker:
    return Reranker(*tiny_model(kind, seed=seed, spread=spread), max_length=48)


@pytest.fixture(scope="session", autouse=True)
def libraries_are_not_collected():
    """Every ``train()`` begins with a garbage collection, which would walk through all loaded libraries each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def make_args(tmp_path):
    """Arguments for a quick run on the CPU; keyword arguments override them."""

    def make(**options: Any) -> RerankTrainingArguments:
        defaults = {
            "output_dir": str(tmp_path / "out"),
            **SILENT,
            "logging_strategy": "no",
            "passages_per_query": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 2e-3,
            "num_train_epochs": 1,
            "teacher_cache_dir": str(tmp_path / "teacher_scores"),
        }
        return RerankTrainingArguments(**{**defaults, **options})

    return make
