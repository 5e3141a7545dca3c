"""First stages of mining: where the candidates of a query come from, and what each query's known positives score there.

BM25 stands in :mod:`rerank_trainer.data.first_stage`. Here are the embedding model, the run that somebody else made,
and the search: every passage is scored for every query, so ranks are exact and equal scores stand in the corpus' order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from rerank_trainer.data.first_stage import best_places
from rerank_trainer.mining.passages import Judged, PassagePool
from rerank_trainer.models.embedder import open_embedder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Run = Mapping[str, Sequence[tuple[str, float]]]

# Scores that a block of queries may have at a time (256 MiB), and pairs of embeddings.
_SCORES_PER_BLOCK, _PAIRS_PER_BLOCK = 2**26, 2**16
_MANY_TEXTS = 1000


@runtime_checkable
class FirstStage(Protocol):
    """Scores all passages for a query.

    Attributes:
        retrieves_above: A passage is a candidate if its score is above this.
    """

    @property
    def retrieves_above(self) -> float: ...

    def score_rows(self, queries: Sequence[str], passages: Sequence[str]) -> Iterator[np.ndarray]:
        """For each query the scores of all passages, ``(num_passages,)``, higher is more relevant."""
        ...


@dataclass(frozen=True)
class Embeddings:
    """An embedding model as first stage, or as scorer of a filter: cosine similarities, from -1 to 1.

    Queries are encoded by the model's ``encode_query`` and passages by its ``encode_document``, so a model that has
    prompts for them uses them; prompts given here replace them. Every passage is compared (no approximate index).

    Args:
        model: A ``SentenceTransformer``, a Hub id or a folder.
        query_prompt: What stands before each query, ``"query: "`` for instance.
        corpus_prompt: What stands before each passage.
        query_prompt_name: One of the model's own prompts, by name.
        corpus_prompt_name: One of the model's own prompts, by name.
        batch_size: Texts encoded at a time.

    >>> Embeddings("sentence-transformers/all-MiniLM-L6-v2")
    Embeddings('sentence-transformers/all-MiniLM-L6-v2')
    """

    model: SentenceTransformer | str | Path
    query_prompt: str | None = field(default=None, kw_only=True)
    corpus_prompt: str | None = field(default=None, kw_only=True)
    query_prompt_name: str | None = field(default=None, kw_only=True)
    corpus_prompt_name: str | None = field(default=None, kw_only=True)
    batch_size: int = field(default=32, kw_only=True)

    retrieves_above = -math.inf
    scale = "similarity"

    def __repr__(self) -> str:
        name = str(self.model) if isinstance(self.model, str | Path) else type(self.model).__name__
        return f"Embeddings({name!r})"

    def score_rows(self, queries: Sequence[str], passages: Sequence[str]) -> Iterator[np.ndarray]:
        """As :meth:`FirstStage.score_rows`."""
        of_passages, of_queries = self._encode(queries, passages)
        num_queries = max(1, _SCORES_PER_BLOCK // len(passages))
        with tqdm(total=len(queries), desc="Embedding search", disable=len(queries) <= _MANY_TEXTS) as bar:
            for block in of_queries.split(num_queries):
                yield from (block @ of_passages.T).cpu().numpy()
                bar.update(len(block))

    def score_pairs(self, queries: Sequence[str], passages: Sequence[str], pairs: np.ndarray) -> np.ndarray:
        """As :meth:`rerank_trainer.mining.filters.PairScorer.score_pairs`; each text is encoded once."""
        used_queries, query = np.unique(pairs[:, 0], return_inverse=True)
        used_passages, passage = np.unique(pairs[:, 1], return_inverse=True)
        of_passages, of_queries = self._encode([queries[i] for i in used_queries], [passages[i] for i in used_passages])
        scores = np.empty(len(pairs))
        for start in range(0, len(pairs), _PAIRS_PER_BLOCK):
            block = slice(start, start + _PAIRS_PER_BLOCK)
            scores[block] = (of_queries[query[block]] * of_passages[passage[block]]).sum(dim=1).cpu().numpy()
        return scores

    def _encode(self, queries: Sequence[str], passages: Sequence[str]) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        if isinstance(model, str | Path):
            model = open_embedder(model)
        options = {"batch_size": self.batch_size, "normalize_embeddings": True, "convert_to_tensor": True}
        of_passages = model.encode_document(
            list(passages),
            prompt=self.corpus_prompt,
            prompt_name=self.corpus_prompt_name,
            show_progress_bar=len(passages) > _MANY_TEXTS,
            **options,
        )
        of_queries = model.encode_query(
            list(queries),
            prompt=self.query_prompt,
            prompt_name=self.query_prompt_name,
            show_progress_bar=len(queries) > _MANY_TEXTS,
            **options,
        )
        return of_passages.float(), of_queries.float()


@dataclass(frozen=True)
class Candidates:
    """The candidates of one query, best first, without its known positives.

    Attributes:
        places: Of the candidates in the pool of passages.
        scores: By the first stage.
        positives: Places of the known positives.
        positive_scores: By the first stage; NaN where it gave none.
    """

    places: np.ndarray
    scores: np.ndarray
    positives: np.ndarray
    positive_scores: np.ndarray


def search(first_stage: FirstStage | Run, judged: Sequence[Judged], pool: PassagePool, depth: int) -> list[Candidates]:
    """The best ``depth`` candidates of each query.

    Raises:
        ValueError: The first stage is no first stage, gives a score that is not finite, or is a run that does not fit.
    """
    if isinstance(first_stage, Mapping):
        return [_from_run(first_stage, of_query, pool, depth) for of_query in judged]
    if not isinstance(first_stage, FirstStage):
        raise ValueError(
            f"first_stage={first_stage!r}: expected BM25(), Embeddings(model), or a run: "
            "{query_id: [(passage_id, score), ...]}"
        )
    rows = first_stage.score_rows([of_query.query for of_query in judged], pool.passages)
    return [
        _from_row(np.array(row), of_query, len(pool.passages), first_stage.retrieves_above, depth)
        for row, of_query in zip(rows, judged, strict=True)
    ]


def _from_row(row: np.ndarray, judged: Judged, num_passages: int, retrieves_above: float, depth: int) -> Candidates:
    if row.shape != (num_passages,) or not np.isfinite(row).all():
        raise ValueError(
            f"query {judged.query!r}: expected {num_passages} finite scores of the first stage, one a passage, found "
            f"an array of shape {row.shape}, of which {int((~np.isfinite(row)).sum())} are not finite"
        )
    positives = np.array(sorted(judged.positives), dtype=np.int64)
    positive_scores = row[positives].astype(np.float64)
    row[sorted(judged.excluded)] = -np.inf
    places = best_places(row, depth, above=retrieves_above)
    return Candidates(places, row[places].astype(np.float64), positives, positive_scores)


def _from_run(run: Run, judged: Judged, pool: PassagePool, depth: int) -> Candidates:
    if judged.query_id is None:
        raise ValueError(f"query {judged.query!r}: a run needs a column query_id, to find the query's candidates by")
    scores: dict[int, float] = {}
    last = math.inf
    for passage_id, score in run.get(judged.query_id, ()):
        place = pool.place_of_id.get(passage_id)
        if place is None:
            raise ValueError(
                f"query {judged.query_id!r}: the run names the passage {passage_id!r}, which is not in the corpus (or "
                "has no text). Give the corpus that the run was made from, {passage_id: text}."
            )
        if not score <= last or not math.isfinite(score):
            raise ValueError(
                f"query {judged.query_id!r}, passage {passage_id!r}: expected finite scores, best first, found {score} "
                f"after {last}. read_run gives this order."
            )
        last = score
        scores.setdefault(place, score)
    found = [place for place in scores if place not in judged.excluded][:depth]
    positives = sorted(judged.positives)
    return Candidates(
        np.array(found, dtype=np.int64),
        np.array([scores[place] for place in found]),
        np.array(positives, dtype=np.int64),
        np.array([scores.get(place, math.nan) for place in positives]),
    )
