"""Train a reranker from labels: rows in any layout that the library recognises, a model of your choice.

python examples/train_contrastive.py --model answerdotai/ModernBERT-base --train rows.jsonl --eval dev.jsonl
"""

from __future__ import annotations

import argparse

import torch
from tiny_task import tiny_args, tiny_groups, tiny_model

from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="answerdotai/ModernBERT-base", help="Hub id or folder")
    parser.add_argument("--train", help="path or Hub id of the training rows")
    parser.add_argument("--eval", help="path or Hub id of the evaluation rows")
    parser.add_argument("--output_dir", default="contrastive")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on made-up rows, without a network")
    options = parser.parse_args()
    if not options.smoke and not options.train:
        parser.error("--train is needed: the path or Hub id of rows (docs/data_formats.md), or --smoke")

    settings = tiny_args() if options.smoke else {"passages_per_query": 16, "bf16": torch.cuda.is_available()}
    evaluation = tiny_groups(seed=1) if options.smoke else options.eval
    trainer = ContrastiveRerankTrainer(
        model=tiny_model() if options.smoke else options.model,
        args=RerankTrainingArguments(
            options.output_dir,
            eval_strategy="epoch" if evaluation is not None else "no",
            metric_for_best_model="ndcg@10",
            **settings,
        ),
        train_dataset=tiny_groups(seed=0) if options.smoke else options.train,
        eval_dataset=evaluation,
    )
    trainer.train()
    trainer.save_model()
    if evaluation is not None:
        print(f"nDCG@10 {trainer.evaluate()['eval_ndcg@10']:.3f}")
    print(f"saved in {options.output_dir}: open it with rerank_trainer.Reranker or sentence_transformers.CrossEncoder")


if __name__ == "__main__":
    main()
