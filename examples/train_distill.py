"""Distil a reranker into a smaller one: the teacher scores the rows once, the student learns its distribution.

python examples/train_distill.py --teacher BAAI/bge-reranker-v2-m3 --train rows.jsonl --eval dev.jsonl
"""

from __future__ import annotations

import argparse

import torch
from tiny_task import tiny_args, tiny_groups, tiny_model

from rerank_trainer import DistillRerankTrainer, RerankTrainingArguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="Hub id or folder; leave it out when the rows carry teacher_scores")
    parser.add_argument("--student", default="answerdotai/ModernBERT-base", help="Hub id or folder")
    parser.add_argument("--train", help="path or Hub id of the training rows")
    parser.add_argument("--eval", help="path or Hub id of the evaluation rows")
    parser.add_argument("--label_weight", type=float, default=0.3, help="how much the labels count, from 0 to 1")
    parser.add_argument("--output_dir", default="distilled")
    parser.add_argument("--smoke", action="store_true", help="tiny models on made-up rows, without a network")
    options = parser.parse_args()
    if not options.smoke and not options.train:
        parser.error("--train is needed: the path or Hub id of rows (docs/data_formats.md), or --smoke")

    settings = tiny_args() if options.smoke else {"passages_per_query": 16, "bf16": torch.cuda.is_available()}
    evaluation = tiny_groups(seed=1) if options.smoke else options.eval
    trainer = DistillRerankTrainer(
        model=tiny_model() if options.smoke else options.student,
        teacher=tiny_model(seed=1) if options.smoke else options.teacher,
        args=RerankTrainingArguments(
            options.output_dir,
            label_weight=options.label_weight,
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
