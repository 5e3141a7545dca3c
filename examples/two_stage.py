"""Train in two stages: contrastively from labels, then by distillation from a teacher's scores, written once.

python examples/two_stage.py --teacher BAAI/bge-reranker-v2-m3 --train rows.jsonl --eval dev.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tiny_task import tiny_args, tiny_groups, tiny_model

from rerank_trainer import ContrastiveRerankTrainer, DistillRerankTrainer, RerankTrainingArguments, annotate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="Hub id or folder")
    parser.add_argument("--student", default="answerdotai/ModernBERT-base", help="Hub id or folder")
    parser.add_argument("--train", help="path or Hub id of the training rows")
    parser.add_argument("--eval", help="path or Hub id of the evaluation rows")
    parser.add_argument("--label_weight", type=float, default=0.3, help="how much labels count in the second stage")
    parser.add_argument("--output_dir", type=Path, default=Path("two_stage"))
    parser.add_argument("--smoke", action="store_true", help="tiny models on made-up rows, without a network")
    options = parser.parse_args()
    if not options.smoke and not (options.train and options.teacher):
        parser.error("--train and --teacher are needed: rows (docs/data_formats.md) and a reranker, or --smoke")

    settings = tiny_args() if options.smoke else {"passages_per_query": 16, "bf16": torch.cuda.is_available()}
    rows = tiny_groups(seed=0) if options.smoke else options.train
    evaluation = tiny_groups(seed=1) if options.smoke else options.eval
    if evaluation is not None:
        settings |= {"eval_strategy": "epoch", "metric_for_best_model": "ndcg@10"}

    # Before a student takes memory. Under torchrun processes share the work; a killed run goes on where it was.
    scored = options.output_dir / "teacher_scores"
    print(annotate(rows, tiny_model(seed=1) if options.smoke else options.teacher, scored))

    first = ContrastiveRerankTrainer(
        model=tiny_model() if options.smoke else options.student,
        args=RerankTrainingArguments(str(options.output_dir / "contrastive"), **settings),
        train_dataset=rows,
        eval_dataset=evaluation,
    )
    first.train()
    first.save_model()
    second = DistillRerankTrainer(
        model=first.args.output_dir,
        args=RerankTrainingArguments(
            str(options.output_dir / "distilled"), label_weight=options.label_weight, **settings
        ),
        train_dataset=str(scored),
        eval_dataset=evaluation,
    )
    second.train()
    second.save_model()
    if evaluation is not None:
        for stage, trainer in (("contrastive", first), ("distilled", second)):
            print(f"{stage}: nDCG@10 {trainer.evaluate()['eval_ndcg@10']:.3f}")
    print(f"saved in {second.args.output_dir}: open it with rerank_trainer.Reranker")


if __name__ == "__main__":
    main()
