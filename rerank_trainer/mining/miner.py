"""The miner: candidates of a first stage, less what the filters drop, become the negatives of each query."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
from datasets.fingerprint import Hasher

from rerank_trainer.data.columns import group_features
from rerank_trainer.data.first_stage import BM25
from rerank_trainer.mining.filters import NegativeFilter
from rerank_trainer.mining.first_stages import FirstStage, Run, search
from rerank_trainer.mining.passages import Corpus, Judged, PassagePool, gather, labelled_groups
from rerank_trainer.mining.report import FilterCount, MiningReport, count_ranks
from rerank_trainer.mining.window import Window, apply_filters

logger = logging.getLogger(__name__)

# What a group brings along; teacher scores do not, since the new passages have none.
_KEPT = ("query", "query_id", "instruction", "source", "weight")


def mine_negatives(
    dataset: datasets.Dataset,
    corpus: Corpus | None = None,
    *,
    first_stage: FirstStage | Run | None = None,
    num_negatives: int = 15,
    range_min: int = 10,
    range_max: int = 100,
    sampling_strategy: Literal["random", "top"] = "random",
    filters: Sequence[NegativeFilter] = (),
    keep_negatives: bool = False,
    keep_empty: bool = False,
    num_examples: int = 0,
    seed: int = 0,
) -> tuple[datasets.Dataset, MiningReport]:
    """Groups of each query's positives and of negatives that a first stage finds, and a report of what was done.

    No negative is a positive of its query: by id, by text, or as a positive of another group whose query has the same
    text; nor is it the query itself. The window is cut from the candidates that are left, then the filters drop some of
    it, in their order. Passages of a group: its positives in their order, with their labels; then, where asked for, the
    negatives it had; then the mined ones with label 0, best first.

    Args:
        dataset: Rows of any layout that :func:`rerank_trainer.data.formats.to_groups` knows: bare pairs (the rows of a
            query become one group), labelled pairs, groups. Their own negatives are left out unless ``keep_negatives``.
        corpus: Where negatives come from: passage id to text, or texts. Positives that are not in it join it. None is
            the passages of all groups.
        first_stage: ``BM25()``, ``Embeddings(model)``, or a run: query id to (passage id, score) pairs, best first.
            None is ``BM25()``, which needs the extra ``bm25``.
        num_negatives: How many a query gets at most.
        range_min: How many of the best candidates are skipped.
        range_max: Where the window ends: candidates of the ranks range_min + 1 to range_max, counted from 1.
        sampling_strategy: "random" draws from what the filters leave, "top" takes the best of it.
        filters: See :mod:`rerank_trainer.mining.filters`. Put the cheap ones first: the next scores what is left.
        keep_negatives: Whether the negatives of the groups stay, before the mined ones and not counted with them.
        keep_empty: Whether groups stay that got no negative; they are left out otherwise. The report counts them.
        num_examples: How many chosen negatives, and how many that each filter dropped, the report shows with their
            texts.
        seed: Decides the draw, together with the query: not the order of the groups.

    Returns:
        Groups in the order of ``dataset``, with ``query``, ``passages``, ``labels``, with ``passage_ids`` where all
        passages have one, and with what the groups had of ``query_id``, ``instruction``, ``source`` and ``weight``;
        kept in memory. And the :class:`MiningReport`.

    Raises:
        ValueError: A number is out of range; the groups have no labels or miss positives; corpus and groups have
            different texts under one id; the run does not fit; or a filter needs the score of a positive that the run
            does not have.

    >>> pairs = datasets.Dataset.from_dict({
    ...     "question": ["capital of France", "capital of Peru"],
    ...     "answer": ["The capital of France is Paris.", "The capital of Peru is Lima."],
    ... })
    >>> groups, report = mine_negatives(pairs, num_negatives=1, range_min=0)
    >>> groups[0]["passages"], groups[0]["labels"]
    (['The capital of France is Paris.', 'The capital of Peru is Lima.'], [1.0, 0.0])
    >>> report.num_complete, report.ranks
    (2, {'1-10': 2})
    """
    first_stage = BM25() if first_stage is None else first_stage
    check_numbers(num_negatives, range_min, range_max, num_examples, sampling_strategy)
    groups = labelled_groups(dataset)
    pool, all_judged = gather(groups, corpus, keep_negatives=keep_negatives)
    # In an order of their own, so that batches, and with them the last digits of scores, do not follow the rows' order.
    judged = sorted((of for of in all_judged if of.positives), key=lambda of: (of.query, of.query_id or "", of.row))
    if not judged:
        raise ValueError(f"expected groups with a label above 0, found none in {len(groups)}")
    window = Window.of(judged, search(first_stage, judged, pool, range_max), range_min)
    counts = apply_filters(window, filters, pool.passages)
    chosen = [_draw(window.left(i), num_negatives, sampling_strategy, seed, of) for i, of in enumerate(judged)]

    num_chosen = [len(of_query) for of_query in chosen]
    report = MiningReport(
        first_stage="a run" if isinstance(first_stage, Mapping) else repr(first_stage),
        num_passages=len(pool.passages),
        num_empty_passages=pool.num_empty,
        num_duplicate_passages=pool.num_duplicates,
        num_groups=len(groups),
        num_without_positive=len(all_judged) - len(judged),
        num_negatives_asked=num_negatives,
        num_candidates=len(window.places),
        filters=counts,
        num_negatives=sum(num_chosen),
        num_complete=sum(count == num_negatives for count in num_chosen),
        num_short=sum(0 < count < num_negatives for count in num_chosen),
        num_empty=num_chosen.count(0),
        empty_kept=keep_empty,
        num_without_candidates=int((np.diff(window.starts) == 0).sum()),
        ranks=count_ranks(window.ranks[np.concatenate(chosen)].tolist()),
        examples=_examples(window, counts, chosen, pool, num_examples),
    )
    dropped = [name for name in groups.column_names if name in ("teacher_scores", "missed_gains")]
    logger.info("mined negatives; columns left out: %s\n%s", ", ".join(dropped) or "none", report)
    if not any(num_chosen):
        raise ValueError(f"no query got a negative. Widen the window or loosen the filters:\n{report}")
    rows = [_Row(of, window.places[of_query]) for of, of_query in zip(judged, chosen, strict=True)]
    rows = sorted((row for row in rows if keep_empty or len(row.mined)), key=lambda row: row.judged.row)
    return _with_texts(groups, rows, pool), report


@dataclass(frozen=True)
class _Row:
    """A group to be: its query with its own passages, and the places of those mined."""

    judged: Judged
    mined: np.ndarray

    @property
    def places(self) -> list[int]:
        own = sorted(self.judged.own, key=lambda place: self.judged.own[place] <= 0)  # positives first
        return own + self.mined.tolist()

    @property
    def labels(self) -> list[float]:
        return [self.judged.own.get(place, 0.0) for place in self.places]


def _draw(left: np.ndarray, num_negatives: int, sampling_strategy: str, seed: int, of: Judged) -> np.ndarray:
    if sampling_strategy == "top" or len(left) <= num_negatives:
        return left[:num_negatives]
    rng = random.Random(f"negatives-{seed}-{of.query_id or ''}-{of.query}")
    return left[sorted(rng.sample(range(len(left)), num_negatives))]


def _examples(
    window: Window, counts: Sequence[FilterCount], chosen: Sequence[np.ndarray], pool: PassagePool, num_examples: int
) -> tuple[dict[str, Any], ...]:
    """The first of each verdict, in the order of the queries' texts."""
    of_verdicts = [("chosen", np.concatenate(chosen))]
    of_verdicts += [(of.name, np.flatnonzero(window.dropped_by == number)) for number, of in enumerate(counts)]
    query_of = window.query_of()
    examples = []
    for verdict, places in of_verdicts:
        for place in places[:num_examples]:
            query = int(query_of[place])
            examples.append(
                {
                    "verdict": verdict,
                    "query": window.judged[query].query,
                    "positive": pool.passages[window.positives[window.positive_starts[query]]],
                    "passage": pool.passages[window.places[place]],
                    "rank": int(window.ranks[place]),
                    "score": float(window.scores[place]),
                }
            )
    return tuple(examples)


def _with_texts(groups: datasets.Dataset, rows: Sequence[_Row], pool: PassagePool) -> datasets.Dataset:
    without_id = sum(pool.ids[place] is None for row in rows for place in row.places)
    kept = [name for name in _KEPT if name in groups.column_names]
    made = ["passages", "labels"] if without_id else ["passages", "passage_ids", "labels"]
    if without_id and any(name is not None for name in pool.ids):
        logger.info("no column passage_ids: %d passages of the groups have no id", without_id)

    def fill(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        places = [rows[index].places for index in indices]
        columns: dict[str, list[Any]] = {
            "passages": [[pool.passages[place] for place in of_query] for of_query in places],
            "passage_ids": [[pool.ids[place] for place in of_query] for of_query in places],
            "labels": [rows[index].labels for index in indices],
        }
        return {name: columns[name] for name in made}

    # The texts are too large for `map` to hash, and what it finds in its cache may be of another corpus.
    digest = hashlib.sha256()
    for row in rows:
        for place in row.places:
            digest.update(f"{pool.ids[place]} {pool.passages[place]}\0".encode())
    return (
        groups.select([row.judged.row for row in rows])
        .select_columns(kept)
        .map(
            fill,
            batched=True,
            batch_size=100,
            with_indices=True,
            features=group_features([*kept, *made]),
            new_fingerprint=Hasher.hash([groups._fingerprint, digest.hexdigest(), made]),
            load_from_cache_file=False,
            desc="Making groups",
        )
        .select_columns(list(group_features([*kept, *made])))
    )


def check_numbers(
    num_negatives: int, range_min: int, range_max: int, num_examples: int, sampling_strategy: str
) -> None:
    """Refuse numbers with which nothing could be mined, before anything is searched."""
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be 1 or more, found {num_negatives}")
    if not 0 <= range_min < range_max:
        raise ValueError(
            f"expected 0 <= range_min < range_max, found range_min={range_min} and range_max={range_max}: candidates "
            "of the ranks range_min + 1 to range_max become negatives"
        )
    if num_negatives > range_max - range_min:
        raise ValueError(
            f"num_negatives={num_negatives} cannot come from the {range_max - range_min} ranks between "
            f"range_min={range_min} and range_max={range_max}. Widen the window or ask for fewer."
        )
    if num_examples < 0:
        raise ValueError(f"num_examples must be 0 or more, found {num_examples}")
    if sampling_strategy not in ("random", "top"):
        raise ValueError(f"sampling_strategy must be 'random' or 'top', found {sampling_strategy!r}")
