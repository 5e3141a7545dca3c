"""The contrastive trainer: a reranker learns from labels."""

from __future__ import annotations

from rerank_trainer.objectives.naming import contrastive_objective
from rerank_trainer.objectives.objective import Objective
from rerank_trainer.trainers.arguments import RerankTrainingArguments
from rerank_trainer.trainers.base import RerankTrainer


class ContrastiveRerankTrainer(RerankTrainer):
    """Trains a reranker on labelled groups: by default InfoNCE over the passages of each query.

    See :class:`RerankTrainer` for the arguments. A column ``scores`` in the rows is taken for labels.
    """

    scores_are = "labels"

    def named_objective(self, args: RerankTrainingArguments) -> Objective:
        """The loss of labels that ``args.objective`` names; InfoNCE when it names none.

        Raises:
            ValueError: If the name is not known, or arguments are set that only a teacher gives a meaning.
        """
        needs_teacher = {
            "label_weight": 0.0,
            "label_loss": None,
            "label_loss_options": None,
            "teacher_temperature": 1.0,
        }
        for name, unused in needs_teacher.items():
            if getattr(args, name) != unused:
                raise ValueError(f"{name}={getattr(args, name)} needs a teacher; use DistillRerankTrainer")
        assert not isinstance(args.loss_options, str)  # the arguments refuse it
        return contrastive_objective(
            args.objective or "infonce", temperature=args.temperature, loss_options=args.loss_options
        )
