"""Train text rerankers on the Hugging Face Trainer, by contrastive learning and by distillation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_trainer.data.formats import load_groups, to_groups
    from rerank_trainer.data.trec import load_beir
    from rerank_trainer.evaluation.evaluator import evaluate_groups
    from rerank_trainer.evaluation.metrics import ranking_metrics
    from rerank_trainer.models.reranker import Reranker
    from rerank_trainer.teachers.store import add_teacher_scores
    from rerank_trainer.teachers.teacher import RerankerTeacher, Teacher
    from rerank_trainer.trainers.arguments import RerankTrainingArguments
    from rerank_trainer.trainers.base import RerankTrainer
    from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
    from rerank_trainer.trainers.distill import DistillRerankTrainer
    from rerank_trainer.trainers.sources import TrainSource

__version__ = "0.1.0"

_MODULES = {
    "ContrastiveRerankTrainer": "rerank_trainer.trainers.contrastive",
    "DistillRerankTrainer": "rerank_trainer.trainers.distill",
    "RerankTrainer": "rerank_trainer.trainers.base",
    "RerankTrainingArguments": "rerank_trainer.trainers.arguments",
    "Reranker": "rerank_trainer.models.reranker",
    "RerankerTeacher": "rerank_trainer.teachers.teacher",
    "Teacher": "rerank_trainer.teachers.teacher",
    "TrainSource": "rerank_trainer.trainers.sources",
    "add_teacher_scores": "rerank_trainer.teachers.store",
    "evaluate_groups": "rerank_trainer.evaluation.evaluator",
    "load_beir": "rerank_trainer.data.trec",
    "load_groups": "rerank_trainer.data.formats",
    "ranking_metrics": "rerank_trainer.evaluation.metrics",
    "to_groups": "rerank_trainer.data.formats",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for (PEP 562), so that importing the package stays instant."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
