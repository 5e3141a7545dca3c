"""Cases: the tests that run in the process of ``start.py``, by name, and what they share."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_trainer.models.reranker import Reranker
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer
from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from tests.hub.server import HUB
from tests.tiny_models import PAIRS
from tests.trainers.conftest import SILENT, small_reranker, word_groups

MARK = "zirconquail"  # a word that only the training texts hold
SHORT = PAIRS[:6]
LOADER_FILES = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer.json"}
STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}

CASES: dict[str, Callable[[Path], None]] = {}


def case(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Count a function among the cases, under its name."""
    CASES[function.__name__] = function
    return function


def arguments(folder: Path, name: str, **options: Any) -> RerankTrainingArguments:
    """Two steps, each saved and pushed to ``me/<name>``, unless the options say otherwise."""
    ours = {"push_to_hub": True, "hub_model_id": f"me/{name}", "hub_always_push": True, "verify_checkpoints": "never"}
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "passages_per_query": 4}
    return RerankTrainingArguments(
        str(folder / name), **{**SILENT, "logging_strategy": "no", **steps, **ours, **options}
    )


@functools.cache
def train_set() -> Any:
    return word_groups(16).map(lambda row: {"passages": [f"{text} {MARK}" for text in row["passages"]]})


def trained(
    folder: Path, name: str, reranker: Any = None, *, callbacks: Any = None, lora: bool = False, **options: Any
) -> RerankTrainer:
    """A trainer after ``train()``."""
    reranker = reranker or small_reranker(spread=0.3)
    args = arguments(folder, name, **options)
    trainer = ContrastiveRerankTrainer(reranker, args, train_dataset=train_set(), callbacks=callbacks, lora=lora)
    trainer.train()
    return trainer


def pushed(name: str) -> list[tuple[str, set[str]]]:
    """Message of each commit, and the files that stood at the root after it."""
    return [
        (commit.message, {path for path in commit.files if "/" not in path})
        for commit in HUB.repositories[f"me/{name}"].commits
    ]


def by_sentence_transformers(name: str, **options: Any) -> torch.Tensor:
    return CrossEncoder(name, device="cpu", **options).predict(SHORT, convert_to_tensor=True, show_progress_bar=False)


def by_transformers(name: str, **options: Any) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(name, **options).eval()
    texts = AutoTokenizer.from_pretrained(name)(
        *map(list, zip(*SHORT, strict=True)), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return model(**texts).logits[:, 0]


def by_us(name: str, **options: Any) -> torch.Tensor:
    return Reranker.from_pretrained(name, **options).predict(SHORT)


def assert_same(scores: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


class Keeper(logging.Handler):
    """Keeps the warnings of our own loggers."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def warnings_kept() -> Iterator[list[str]]:
    keeper, logger = Keeper(), logging.getLogger("rerank_trainer")
    logger.addHandler(keeper)
    try:
        yield keeper.lines
    finally:
        logger.removeHandler(keeper)


def run_all(folder: Path) -> None:
    """Run every case in a folder of its own; ``outcomes.json`` has the traceback of each that failed."""
    outcomes, seconds = {}, {}
    for name, run in CASES.items():
        (folder / name).mkdir()
        start = time.perf_counter()
        try:
            run(folder / name)
            outcomes[name] = ""
        except (Exception, pytest.fail.Exception):  # noqa: BLE001  in any way
            outcomes[name] = traceback.format_exc()
        seconds[name] = round(time.perf_counter() - start, 2)
    (folder / "outcomes.json").write_text(json.dumps(outcomes))
    (folder / "seconds.json").write_text(json.dumps(seconds, indent=1))
