"""Scorers: a reranker, a cross-encoder or any function, asked for the scores of pairs, by one process or by all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from torch import Tensor, distributed, nn

from rerank_trainer.evaluation.cross_encoder import LiveCrossEncoder
from rerank_trainer.models.reranker import Reranker

# Query, passage, and the instruction of its group or None.
Ask = tuple[str, str, str | None]


def takes_instructions(model: Any) -> bool:
    """Whether scores of this model can depend on an instruction."""
    reranker = model.reranker if isinstance(model, LiveCrossEncoder) else model
    return isinstance(reranker, Reranker) and reranker.template.takes_instructions


def scores_of(model: Any, asked: Sequence[Ask], *, by_all_processes: bool) -> NDArray[np.float64]:
    """The scores of (query, passage, instruction) triples, ``(num_asked,)``, the same in every process.

    Args:
        model: A :class:`Reranker`; a sentence-transformers cross-encoder, which is asked for raw logits, since its
            sigmoid would make high scores equal; something else with ``predict``; or a function of a list of pairs.
        asked: What to score; instructions are None where the model takes none.
        by_all_processes: Where a process group is initialised, each process scores a share. All must call then.

    Raises:
        ValueError: If the model does not return one finite number a pair.
        RuntimeError: If the model failed in another process.
    """
    if not (by_all_processes and distributed.is_available() and distributed.is_initialized()):
        return _scores_here(model, asked)
    rank, num_processes = distributed.get_rank(), distributed.get_world_size()
    share: Any = None
    failure: Exception | None = None
    try:
        share = _scores_here(model, asked[rank::num_processes])
    except Exception as error:  # noqa: BLE001  the others wait for this process: they must hear of it
        failure = error
    shares: list[Any] = [None] * num_processes
    distributed.all_gather_object(shares, (share, None if failure is None else repr(failure)))
    if failure is not None:
        raise failure
    errors = [f"process {other}: {error}" for other, (_, error) in enumerate(shares) if error is not None]
    if errors:
        raise RuntimeError(f"the evaluation failed in another process; {'; '.join(errors)}")
    scores = np.empty(len(asked))
    for other, (of_other, _) in enumerate(shares):
        scores[other::num_processes] = of_other
    return scores


def _scores_here(model: Any, asked: Sequence[Ask]) -> NDArray[np.float64]:
    pairs = [(query, passage) for query, passage, _ in asked]
    if not pairs:
        return np.empty(0)
    instructions = [instruction for _, _, instruction in asked]
    if not any(instructions):
        return _numbers(_predict(model)(pairs), pairs)
    if isinstance(model, Reranker):
        return _numbers(model.predict(pairs, instruction=instructions), pairs)
    scores = np.empty(len(pairs))  # a cross-encoder has one prompt a call
    for instruction in dict.fromkeys(instructions):
        places = [place for place, own in enumerate(instructions) if own == instruction]
        own = [pairs[place] for place in places]
        found = model.predict(own, prompt=instruction, activation_fn=nn.Identity(), show_progress_bar=False)
        scores[places] = _numbers(found, own)
    return scores


def _predict(model: Any) -> Any:
    if isinstance(model, CrossEncoder):
        return lambda pairs: model.predict(pairs, activation_fn=nn.Identity())
    predict = getattr(model, "predict", model)
    if not callable(predict):
        raise ValueError(
            f"model={model!r}: expected a Reranker, a CrossEncoder of sentence-transformers, or a function that "
            "returns the scores of a list of (query, passage) pairs. A name is opened with Reranker.from_pretrained."
        )
    return predict


def _numbers(given: Any, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """One finite float a pair, from an array, a tensor or a list."""
    try:
        if isinstance(given, Tensor):
            given = given.detach().cpu().double().numpy()
        scores = np.asarray(given if isinstance(given, np.ndarray) else [float(score) for score in given], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"predict must return one number a pair, found {str(given)[:80]!r}: {error}") from error
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if scores.ndim != 1:
        raise ValueError(
            f"predict returned an array of shape {scores.shape} for {len(pairs)} pairs; expected one a pair"
        )
    if len(scores) != len(pairs):
        raise ValueError(f"predict returned {len(scores)} scores for {len(pairs)} pairs; it must return one a pair")
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        query, passage = pairs[int(wrong[0])]
        raise ValueError(
            f"{len(wrong)} of {len(pairs)} scores are not finite numbers, the first is {scores[wrong[0]]} for the "
            f"query {query[:80]!r} with the passage {passage[:80]!r}. The model has diverged, or the function is wrong."
        )
    return scores
