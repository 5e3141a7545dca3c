"""Order and distances: which parts of an objective read more of a teacher's scores than the order they give."""

from __future__ import annotations

import torch

from rerank_trainer.objectives.objective import Objective, Targets, TeacherObjective


def parts_that_read_distances(objective: Objective) -> list[str]:
    """The names of the parts that compare with distances between a teacher's scores, as these come.

    A loss is tried, not believed: it reads the order alone if targets of the same order give it the same value. A part
    whose ``consistency`` maps the scores is left out: it reads the map's distances.

    >>> from rerank_trainer.losses import kl, ranknet
    >>> parts_that_read_distances(TeacherObjective(kl)), parts_that_read_distances(TeacherObjective(ranknet))
    (['kl'], [])
    """
    return [
        name
        for part in objective.modules()
        if isinstance(part, TeacherObjective) and part.consistency is None and not _reads_order_alone(part)
        for name in part.names
    ]


def refuse_distances_of_ranks(objective: Objective, scale: str | None) -> None:
    """Refuse to compare with distances between ranks.

    Args:
        objective: What is minimised.
        scale: Of the teacher's scores.

    Raises:
        ValueError: If the scale is "rank" and a part reads distances.
    """
    reading = parts_that_read_distances(objective) if scale == "rank" else []
    if reading:
        raise ValueError(
            f"objective {reading} reads the distances between teacher scores, and these are ranks, which have an order "
            'only. Take a loss of an order (objective="ranknet", "adr_mse", "list_mle", "p_list_mle" or "hinge"), give '
            "the objective consistency=IsotonicMap(), which makes distances of ranks, or say with "
            'teacher_scale="logit" that the distances between these ranks are meant.'
        )


def _reads_order_alone(part: TeacherObjective) -> bool:
    scores, labels = torch.tensor([[0.3, -0.2, 0.1, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    targets = Targets(labels, torch.ones(1, 4, dtype=torch.bool))
    even, uneven = torch.tensor([[-1.0, -2.0, -3.0, -4.0]]), torch.tensor([[4.0, 0.5, 0.25, -7.0]])
    return torch.equal(part.compared(scores, even, targets), part.compared(scores, uneven, targets))
