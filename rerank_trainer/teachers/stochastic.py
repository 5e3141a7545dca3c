"""The stochastic teacher: a trained model whose last layer is sampled, and whose samples the student chooses among."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rerank_trainer.losses.reduction import masked_log_softmax, weighted_mean
from rerank_trainer.models.head_dropout import HeadDropout
from rerank_trainer.models.placement import place
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.scoring import RowScorer
from rerank_trainer.teachers.live import LiveTeacher, Training, score_batch
from rerank_trainer.teachers.student_copy import StudentCopy
from rerank_trainer.teachers.teacher import require_trained

_SAMPLES = "teacher_samples"  # what a batch holds until the student has chosen


class StochasticTeacher(LiveTeacher):
    r"""A trained reranker whose last layer is sampled by dropout; each query follows the samples nearest its student.

    The teacher runs once a pair. Before its last layer N dropouts are drawn, the same for all passages of a step, so
    that each sample is one scoring function. Of a query's N score lists the part that is nearest to the student's
    counts:

    .. math:: a_n = \frac{e^{-D_n}}{\sum_{m \in \mathcal{N}} e^{-D_m}}, \quad
              D_n = \operatorname{KL}(\operatorname{softmax}(s) \,\|\, \operatorname{softmax}(t^{(n)})), \quad
              t = \sum_{n \in \mathcal{N}} a_n t^{(n)}

    with the nearest :math:`\mathcal{N}`, a tenth of the samples. Adapted from SSD (Aslam et al., 2025,
    https://arxiv.org/abs/2504.14307), which keeps the tenth of a teacher's stochastic representations with the greatest
    attention of the student's. A query's score list stands for the representation here; averaging lists is averaging
    representations, because the last layer is linear.

    Args:
        teacher: A trained reranker that reads pairs as the student does (the same tokenizer and prompt): a Hub id, a
            folder, or a :class:`Reranker`. None takes the student as it is when the training begins, which must have
            been trained then; checkpoints keep that copy.
        num_samples: N.
        dropout: The share of features that a sample drops, above 0 and below 1.
        kept_share: The share of samples that a query keeps, above 0 and up to 1 (all); at least one sample.
        temperature: Divides both score lists before they are compared, above 0.
        weigh_by_variance: Whether passages on which the samples disagree count less, see :func:`variance_weights`: in
            every loss of the group, also those of labels.

    Raises:
        ValueError: If a value is out of its range, or the teacher's head is freshly initialised.
    """

    def __init__(
        self,
        teacher: str | Path | Reranker | None = None,
        *,
        num_samples: int = 30,
        dropout: float = 0.1,
        kept_share: float = 0.1,
        temperature: float = 1.0,
        weigh_by_variance: bool = False,
    ) -> None:
        if not (num_samples >= 1 and 0 < dropout < 1 and 0 < kept_share <= 1 and temperature > 0):
            raise ValueError(
                f"num_samples={num_samples}, dropout={dropout}, kept_share={kept_share}, temperature={temperature}: "
                "expected 1 sample or more, a rate above 0 and below 1, a share above 0 and up to 1, a number above 0"
            )
        if isinstance(teacher, str | Path):
            teacher = Reranker.from_pretrained(teacher, dtype="auto")
        if teacher is not None:
            require_trained(teacher)
        self.reranker = teacher
        self.num_samples, self.dropout, self.temperature = num_samples, dropout, temperature
        # one more part in a thousand million is rounding: 0.1 of 30 are 3
        self.num_kept = max(1, math.ceil(kept_share * num_samples - 1e-9))
        self.weigh_by_variance = weigh_by_variance

    def attach(self, student: Reranker, training: Training) -> None:
        """As :meth:`LiveTeacher.attach`.

        Raises:
            ValueError: If the student is to be its own teacher and is not trained, a given teacher reads pairs
                otherwise, or the teacher's score is not made by a linear layer.
        """
        self._seed, self._training = training.seed, training
        self._copy: StudentCopy | None = None
        if self.reranker is None:
            require_trained(student)
            self._head = HeadDropout(student)
            self._copy = StudentCopy(student, training, head=self._head)
            return
        _require_alike(self.reranker, student)
        place(self.reranker.model, student.model.device)
        self._head = HeadDropout(self.reranker)
        self._scorer: RowScorer = self.reranker.row_scorer(
            training.max_tokens, share_prefix=training.share_prefix, head=self._head
        )

    def follow(self, step: int, epoch: int) -> None:
        """Draw the step's dropouts."""
        if step == 0 and self._copy is not None:
            self._copy.take()
        chance = random.Random(f"head dropout-{self._seed}-{step}").getrandbits(63)
        generator = torch.Generator().manual_seed(chance)
        self._head.draw(self.num_samples, rate=self.dropout, generator=generator)

    def teach(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """All samples, ``(batch_size, group_size, num_samples)``, and their mean, until the student has chosen."""
        samples = self._samples(batch)
        gained = {"teacher_scores": samples.mean(dim=-1), _SAMPLES: samples}
        if self.weigh_by_variance:
            weights = variance_weights(sample_variance(samples, batch["mask"]), batch["mask"])
            gained["passage_weights"] = weights * batch.get("passage_weights", 1.0)
        return gained

    def guided(self, batch: Mapping[str, Any], scores: Tensor) -> Mapping[str, Tensor]:
        """The scores that the student chooses; nothing in evaluation, where the teacher is not asked."""
        if _SAMPLES not in batch:
            return {}
        chosen = student_guided(
            batch[_SAMPLES], scores, batch["mask"], num_kept=self.num_kept, temperature=self.temperature
        )
        return {"teacher_scores": chosen}

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of the student when the training began, if they are the teacher's."""
        return {} if self._copy is None else self._copy.weights

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As :meth:`LiveTeacher.load_state_dict`."""
        if self._copy is not None:
            self._copy.load(state)

    def _samples(self, batch: Mapping[str, Any]) -> Tensor:
        if self._copy is not None:
            return self._copy.scores(batch)
        assert self.reranker is not None
        return score_batch(self._scorer, self.reranker.model, batch, autocast_dtype=self._training.autocast_dtype)


def student_guided(samples: Tensor, scores: Tensor, mask: Tensor, *, num_kept: int, temperature: float = 1.0) -> Tensor:
    """The samples nearest to the student's scores, averaged as in :class:`StochasticTeacher`.

    Args:
        samples: A teacher's, ``(batch_size, group_size, num_samples)``.
        scores: The student's, ``(batch_size, group_size)``.
        mask: True = a passage, same shape.
        num_kept: How many samples count.
        temperature: Divides both before they are compared.

    Returns:
        ``(batch_size, group_size)``; 0 where no passage is.

    >>> samples = torch.tensor([[[0.0, 5.0, 2.0], [0.0, 1.0, 1.0]]])  # margins 0, 4 and 1
    >>> student_guided(samples, torch.tensor([[1.2, 0.0]]), torch.tensor([[True, True]]), num_kept=1)
    tensor([[2., 1.]])
    """
    of_student = masked_log_softmax(scores.float() / temperature, mask)[:, None]  # (B, 1, K)
    of_samples = masked_log_softmax(samples.transpose(1, 2) / temperature, mask[:, None])  # (B, N, K)
    terms = of_student.exp() * (of_student - of_samples)
    nearness = -terms.masked_fill(~mask[:, None], 0.0).sum(dim=-1)  # (B, N)
    nearest = nearness.topk(num_kept, dim=-1)
    attention = nearest.values.softmax(dim=-1)[:, None]  # (B, 1, num_kept)
    kept = samples.gather(-1, nearest.indices[:, None].expand(-1, samples.shape[1], -1))
    return (attention * kept).sum(dim=-1).masked_fill(~mask, 0.0)


def sample_variance(samples: Tensor, mask: Tensor) -> Tensor:
    """How far the samples disagree on each passage, ``(batch_size, group_size)``, in the square of the scores' unit.

    The variance over the samples, each taken relative to its mean over the group: what all passages of a group have in
    common changes no order. 0 where no passage is.

    Args:
        samples: ``(batch_size, group_size, num_samples)``.
        mask: True = a passage, ``(batch_size, group_size)``.

    >>> samples = torch.tensor([[[1.0, 5.0], [1.0, 5.0], [4.0, 2.0]]])
    >>> sample_variance(samples, torch.ones(1, 3, dtype=torch.bool))
    tensor([[1., 1., 4.]])
    """
    shares = mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    relative = samples - (shares[..., None] * samples).sum(dim=1, keepdim=True)
    return relative.var(dim=-1, correction=0).masked_fill(~mask, 0.0)


def variance_weights(variance: Tensor, mask: Tensor) -> Tensor:
    r"""How much each passage counts by its variance, ``(batch_size, group_size)``; 0 where no passage is.

    .. math:: w_k \propto \frac{1}{\bar v + v_k}

    with a mean of 1 over the group. The group's mean variance beside a passage's own keeps one without any from
    outweighing all others; equal variances change nothing.

    Args:
        variance: As of :func:`sample_variance`.
        mask: True = a passage, same shape.

    >>> variance_weights(torch.tensor([[0.0, 2.0]]), torch.tensor([[True, True]]))  # 1 / 1 and 1 / 3
    tensor([[1.5000, 0.5000]])
    """
    doubt = weighted_mean(variance, mask)[:, None] + variance
    weights = 1 / doubt.masked_fill(doubt == 0, 1.0)
    return (weights / weighted_mean(weights, mask).clamp(min=1e-30)[:, None]).masked_fill(~mask, 0.0)


def _require_alike(teacher: Reranker, student: Reranker) -> None:
    """Refuse a teacher that would read the student's rows otherwise than its own."""

    def reading(reranker: Reranker) -> dict[str, Any]:
        return {"frame": reranker.template.frame, "vocabulary": reranker.tokenizer.get_vocab()}

    own, other = reading(teacher), reading(student)
    unlike = [name for name in own if own[name] != other[name]]
    if teacher.max_length < student.max_length:
        unlike.append(f"max_length {teacher.max_length} against {student.max_length}")
    if unlike:
        raise ValueError(
            f"StochasticTeacher reads the student's own token rows, and this teacher has another {', '.join(unlike)}. "
            "Take a teacher with the student's tokenizer, or give it to the trainer as it is: teacher=the reranker."
        )
