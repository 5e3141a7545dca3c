"""Mine hard negatives for the judged queries of a BEIR folder and write groups to train on.

python examples/mine_negatives.py --folder scifact --embeddings intfloat/e5-base-v2 --output mined.jsonl
python examples/train_contrastive.py --train mined.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
from tiny_task import tiny_groups, tiny_model

from rerank_trainer import BM25, Embeddings, PercentOfPositive, Reranker, RerankerVerdict, mine_negatives
from rerank_trainer.data.runs import read_qrels
from rerank_trainer.data.texts import read_texts


def judged_pairs(folder: Path, split: str, corpus: dict[str, str]) -> datasets.Dataset:
    """One row for each judged pair of the split."""
    qrels = read_qrels(folder / "qrels" / f"{split}.tsv")
    queries = read_texts(folder / "queries.jsonl", "queries", qrels)
    return datasets.Dataset.from_list(
        [
            {"query_id": query_id, "query": queries[query_id], "passage": corpus[passage_id], "label": max(grade, 0)}
            for query_id, grades in qrels.items()
            for passage_id, grade in grades.items()
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="has corpus.jsonl, queries.jsonl and qrels/<split>.tsv")
    parser.add_argument("--split", default="train")
    parser.add_argument("--embeddings", help="an embedding model, by Hub id or folder; BM25 without it")
    parser.add_argument("--reranker", help="a trained reranker whose verdict filters as well")
    parser.add_argument("--num_negatives", type=int, default=15)
    parser.add_argument("--output", default="mined.jsonl")
    parser.add_argument("--smoke", action="store_true", help="made-up rows, BM25 and a tiny model, without a network")
    options = parser.parse_args()
    if not options.smoke and not options.folder:
        parser.error("--folder is needed: a BEIR folder, or --smoke")

    if options.smoke:
        corpus, rows, num_negatives = None, tiny_groups(seed=0), 2
        reranker = tiny_model()
    else:
        corpus = read_texts(options.folder / "corpus.jsonl", "corpus")
        rows, num_negatives = judged_pairs(options.folder, options.split, corpus), options.num_negatives
        reranker = Reranker.from_pretrained(options.reranker) if options.reranker else None

    filters = [PercentOfPositive(0.95)] if options.embeddings else []
    if reranker is not None:
        filters.append(RerankerVerdict(reranker, margin=0.0))
    groups, report = mine_negatives(
        rows,
        corpus,
        first_stage=Embeddings(options.embeddings) if options.embeddings else BM25(),
        num_negatives=num_negatives,
        # A filter drops what is too good; without one, the first ranks are the ones to distrust.
        range_min=0 if filters else 10,
        sampling_strategy="top" if filters else "random",
        filters=filters,
    )
    print(report)
    groups.to_json(options.output)
    print(f"{len(groups)} groups in {options.output}")


if __name__ == "__main__":
    main()
