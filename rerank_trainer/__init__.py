"""Train text rerankers on the Hugging Face Trainer, by contrastive learning and by distillation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_trainer.data.first_stage import BM25
    from rerank_trainer.data.formats import load_groups, to_groups
    from rerank_trainer.data.ir_collections import load_ir_dataset
    from rerank_trainer.data.prompts import Prompt
    from rerank_trainer.data.runs import read_qrels, read_run, write_run
    from rerank_trainer.data.trec import load_beir, load_trec
    from rerank_trainer.evaluation.calibration import Calibration, CalibrationReport, calibration_report
    from rerank_trainer.evaluation.evaluator import RerankEvaluator, evaluate_groups
    from rerank_trainer.evaluation.metrics import ranking_metrics
    from rerank_trainer.evaluation.ranking_metric.ranking_metric import RankingMetric
    from rerank_trainer.evaluation.results import DepthResult, Evaluation
    from rerank_trainer.evaluation.significance import (
        PairedTest,
        detectable_difference,
        holm,
        mean_interval,
        paired_test,
    )
    from rerank_trainer.evaluation.thresholds import threshold_table
    from rerank_trainer.mining.filters import (
        AbsoluteMargin,
        MaxScore,
        PercentOfPositive,
        RelativeMargin,
        RerankerScores,
        RerankerVerdict,
    )
    from rerank_trainer.mining.first_stages import Embeddings
    from rerank_trainer.mining.miner import mine_negatives
    from rerank_trainer.mining.report import MiningReport
    from rerank_trainer.model_card import reranker_card, save_card
    from rerank_trainer.models.export import export_classifier
    from rerank_trainer.models.merging import merge_checkpoints
    from rerank_trainer.models.reranker import Reranker
    from rerank_trainer.models.serving import Serving, serving_commands
    from rerank_trainer.models.token_logits import TokenLogitHead
    from rerank_trainer.models.verify import verify_checkpoint
    from rerank_trainer.models.windows import Windows
    from rerank_trainer.objectives.anchor import Anchor
    from rerank_trainer.objectives.consistency import AffineMap, IsotonicMap, ZScore
    from rerank_trainer.objectives.gated import GatedObjective
    from rerank_trainer.objectives.mixed import MixedObjective
    from rerank_trainer.objectives.objective import (
        LabelObjective,
        Objective,
        Targets,
        TeacherObjective,
        WeightedObjective,
    )
    from rerank_trainer.objectives.schedules import Constant, Ramp
    from rerank_trainer.objectives.temperature import Temperature
    from rerank_trainer.teachers.annotation.annotate import AnnotationReport, annotate
    from rerank_trainer.teachers.annotation.merge import merge_teacher_scores
    from rerank_trainer.teachers.annotation.scorer import TeacherScorer
    from rerank_trainer.teachers.check import TeacherReport, check_teacher
    from rerank_trainer.teachers.checkpoints import CheckpointTeacher
    from rerank_trainer.teachers.column import ColumnTeacher
    from rerank_trainer.teachers.ema import EmaTeacher
    from rerank_trainer.teachers.endpoints.apis import RerankApi
    from rerank_trainer.teachers.endpoints.budget import Budget
    from rerank_trainer.teachers.endpoints.endpoint import EndpointTeacher
    from rerank_trainer.teachers.endpoints.errors import BudgetError, EndpointError
    from rerank_trainer.teachers.endpoints.judge import ChatJudge
    from rerank_trainer.teachers.ensemble import EnsembleTeacher
    from rerank_trainer.teachers.live import LiveTeacher
    from rerank_trainer.teachers.previous_epoch import PreviousEpochTeacher
    from rerank_trainer.teachers.ranking import RankingTeacher
    from rerank_trainer.teachers.similarity import SimilarityTeacher, TfidfEncoder
    from rerank_trainer.teachers.stochastic import StochasticTeacher
    from rerank_trainer.teachers.store import add_teacher_scores
    from rerank_trainer.teachers.teacher import RerankerTeacher, Teacher
    from rerank_trainer.teachers.weights import fit_weights
    from rerank_trainer.trainers.arguments import RerankTrainingArguments
    from rerank_trainer.trainers.base import RerankTrainer
    from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
    from rerank_trainer.trainers.distill import DistillRerankTrainer
    from rerank_trainer.trainers.sources import TrainSource
    from rerank_trainer.trainers.watch import RerankWatch

__version__ = "0.3.0"

_MODULES = {
    "AbsoluteMargin": "rerank_trainer.mining.filters",
    "AffineMap": "rerank_trainer.objectives.consistency",
    "Anchor": "rerank_trainer.objectives.anchor",
    "AnnotationReport": "rerank_trainer.teachers.annotation.annotate",
    "BM25": "rerank_trainer.data.first_stage",
    "Budget": "rerank_trainer.teachers.endpoints.budget",
    "BudgetError": "rerank_trainer.teachers.endpoints.errors",
    "Calibration": "rerank_trainer.evaluation.calibration",
    "CalibrationReport": "rerank_trainer.evaluation.calibration",
    "ChatJudge": "rerank_trainer.teachers.endpoints.judge",
    "CheckpointTeacher": "rerank_trainer.teachers.checkpoints",
    "ColumnTeacher": "rerank_trainer.teachers.column",
    "Constant": "rerank_trainer.objectives.schedules",
    "ContrastiveRerankTrainer": "rerank_trainer.trainers.contrastive",
    "DepthResult": "rerank_trainer.evaluation.results",
    "DistillRerankTrainer": "rerank_trainer.trainers.distill",
    "EmaTeacher": "rerank_trainer.teachers.ema",
    "Embeddings": "rerank_trainer.mining.first_stages",
    "EndpointError": "rerank_trainer.teachers.endpoints.errors",
    "EndpointTeacher": "rerank_trainer.teachers.endpoints.endpoint",
    "EnsembleTeacher": "rerank_trainer.teachers.ensemble",
    "Evaluation": "rerank_trainer.evaluation.results",
    "GatedObjective": "rerank_trainer.objectives.gated",
    "IsotonicMap": "rerank_trainer.objectives.consistency",
    "LabelObjective": "rerank_trainer.objectives.objective",
    "LiveTeacher": "rerank_trainer.teachers.live",
    "MaxScore": "rerank_trainer.mining.filters",
    "MiningReport": "rerank_trainer.mining.report",
    "MixedObjective": "rerank_trainer.objectives.mixed",
    "Objective": "rerank_trainer.objectives.objective",
    "PairedTest": "rerank_trainer.evaluation.significance",
    "PercentOfPositive": "rerank_trainer.mining.filters",
    "PreviousEpochTeacher": "rerank_trainer.teachers.previous_epoch",
    "Prompt": "rerank_trainer.data.prompts",
    "Ramp": "rerank_trainer.objectives.schedules",
    "RankingMetric": "rerank_trainer.evaluation.ranking_metric.ranking_metric",
    "RankingTeacher": "rerank_trainer.teachers.ranking",
    "RelativeMargin": "rerank_trainer.mining.filters",
    "RerankApi": "rerank_trainer.teachers.endpoints.apis",
    "RerankEvaluator": "rerank_trainer.evaluation.evaluator",
    "RerankTrainer": "rerank_trainer.trainers.base",
    "RerankTrainingArguments": "rerank_trainer.trainers.arguments",
    "RerankWatch": "rerank_trainer.trainers.watch",
    "Reranker": "rerank_trainer.models.reranker",
    "RerankerScores": "rerank_trainer.mining.filters",
    "RerankerTeacher": "rerank_trainer.teachers.teacher",
    "RerankerVerdict": "rerank_trainer.mining.filters",
    "Serving": "rerank_trainer.models.serving",
    "SimilarityTeacher": "rerank_trainer.teachers.similarity",
    "StochasticTeacher": "rerank_trainer.teachers.stochastic",
    "Targets": "rerank_trainer.objectives.objective",
    "Teacher": "rerank_trainer.teachers.teacher",
    "TeacherObjective": "rerank_trainer.objectives.objective",
    "TeacherReport": "rerank_trainer.teachers.check",
    "TeacherScorer": "rerank_trainer.teachers.annotation.scorer",
    "Temperature": "rerank_trainer.objectives.temperature",
    "TfidfEncoder": "rerank_trainer.teachers.similarity",
    "TokenLogitHead": "rerank_trainer.models.token_logits",
    "TrainSource": "rerank_trainer.trainers.sources",
    "WeightedObjective": "rerank_trainer.objectives.objective",
    "Windows": "rerank_trainer.models.windows",
    "ZScore": "rerank_trainer.objectives.consistency",
    "add_teacher_scores": "rerank_trainer.teachers.store",
    "annotate": "rerank_trainer.teachers.annotation.annotate",
    "calibration_report": "rerank_trainer.evaluation.calibration",
    "check_teacher": "rerank_trainer.teachers.check",
    "detectable_difference": "rerank_trainer.evaluation.significance",
    "evaluate_groups": "rerank_trainer.evaluation.evaluator",
    "export_classifier": "rerank_trainer.models.export",
    "fit_weights": "rerank_trainer.teachers.weights",
    "holm": "rerank_trainer.evaluation.significance",
    "load_beir": "rerank_trainer.data.trec",
    "load_groups": "rerank_trainer.data.formats",
    "load_ir_dataset": "rerank_trainer.data.ir_collections",
    "load_trec": "rerank_trainer.data.trec",
    "mean_interval": "rerank_trainer.evaluation.significance",
    "merge_checkpoints": "rerank_trainer.models.merging",
    "merge_teacher_scores": "rerank_trainer.teachers.annotation.merge",
    "mine_negatives": "rerank_trainer.mining.miner",
    "paired_test": "rerank_trainer.evaluation.significance",
    "ranking_metrics": "rerank_trainer.evaluation.metrics",
    "read_qrels": "rerank_trainer.data.runs",
    "read_run": "rerank_trainer.data.runs",
    "reranker_card": "rerank_trainer.model_card",
    "save_card": "rerank_trainer.model_card",
    "serving_commands": "rerank_trainer.models.serving",
    "threshold_table": "rerank_trainer.evaluation.thresholds",
    "to_groups": "rerank_trainer.data.formats",
    "verify_checkpoint": "rerank_trainer.models.verify",
    "write_run": "rerank_trainer.data.runs",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for (PEP 562), so that importing the package stays instant."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
