"""``rerank-trainer mine``: hard negatives into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from rerank_trainer.cli.objects import counted, raw_rows_of, reranker_of
from rerank_trainer.cli.options import MineOptions
from rerank_trainer.data.first_stage import BM25
from rerank_trainer.data.texts import read_texts
from rerank_trainer.mining.filters import AbsoluteMargin, MaxScore, RelativeMargin, RerankerVerdict
from rerank_trainer.mining.first_stages import Embeddings
from rerank_trainer.mining.miner import check_numbers, mine_negatives
from rerank_trainer.mining.passages import labelled_groups
from rerank_trainer.models.preview import preview_checkpoint

_WRITERS = {
    ".parquet": datasets.Dataset.to_parquet,
    ".jsonl": datasets.Dataset.to_json,
    ".json": datasets.Dataset.to_json,
}


def run(options: MineOptions) -> None:
    """Mine and write the groups."""
    write = _writer(options)
    groups, _ = mine_negatives(  # its report is logged
        raw_rows_of(options.dataset, "dataset"),
        None if options.corpus is None else read_texts(options.corpus, "corpus"),
        first_stage=BM25() if options.first_stage == "bm25" else Embeddings(options.first_stage),
        num_negatives=options.num_negatives,
        range_min=options.range_min,
        range_max=options.range_max,
        sampling_strategy=options.sampling_strategy,
        filters=[*_filters(options), *_verdict(options)],
        keep_negatives=options.keep_negatives,
        keep_empty=options.keep_empty,
        seed=options.seed,
    )
    write(groups, options.output)
    print(f"{len(groups):,} groups are in {options.output}")


def plan(options: MineOptions) -> dict[str, str]:
    """Where negatives would come from; nothing is searched."""
    _writer(options)
    _check_verdict(options)
    window = options.num_negatives, options.range_min, options.range_max
    check_numbers(*window, num_examples=0, sampling_strategy=options.sampling_strategy)
    corpus = None if options.corpus is None else read_texts(options.corpus, "corpus")
    return {
        "dataset": counted(labelled_groups(raw_rows_of(options.dataset, "dataset"))),
        "corpus": "the passages of all groups" if corpus is None else f"{len(corpus):,} passages",
        "first_stage": options.first_stage,
        "window": f"ranks {options.range_min + 1} to {options.range_max}, {options.num_negatives} negatives a query",
        "filters": ", ".join(map(repr, _filters(options))) or "none",
        "reranker": "none" if options.reranker is None else str(preview_checkpoint(options.reranker)),
        "output": options.output,
    }


def _filters(options: MineOptions) -> list[Any]:
    """Those that compare scores of the first stage."""
    asked = {MaxScore: options.max_score, AbsoluteMargin: options.absolute_margin}
    asked |= {RelativeMargin: options.relative_margin}
    return [kind(value) for kind, value in asked.items() if value is not None]


def _verdict(options: MineOptions) -> list[RerankerVerdict]:
    _check_verdict(options)
    if options.reranker is None:
        return []
    limits = {"threshold": options.reranker_threshold, "margin": options.reranker_margin}
    return [RerankerVerdict(reranker_of(options.reranker, device=None), **limits)]


def _check_verdict(options: MineOptions) -> None:
    limits = {"reranker_threshold": options.reranker_threshold, "reranker_margin": options.reranker_margin}
    if (options.reranker is None) != (set(limits.values()) == {None}):
        raise ValueError(f"reranker={options.reranker!r} with {limits}: give a reranker and a limit, or none of them")


def _writer(options: MineOptions) -> Any:
    path = Path(options.output)
    if path.suffix not in _WRITERS:
        raise ValueError(f"output={options.output!r}: expected a file that ends in one of {list(_WRITERS)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"output={options.output!r}: the folder {path.absolute().parent} is not there")
    return _WRITERS[path.suffix]
