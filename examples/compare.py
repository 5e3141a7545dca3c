"""Ask the paper's question of your own data: distil, contrast or mix? Writes tables, charts and one HTML report.

python examples/compare.py --teacher BAAI/bge-reranker-v2-m3 --train rows.jsonl --eval mine=dev.jsonl --steps 1000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tiny_task import tiny_args, tiny_groups, tiny_model

from rerank_trainer import Steps, compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["answerdotai/ModernBERT-base"], help="Hub ids or folders")
    parser.add_argument("--teacher", help="Hub id or folder")
    parser.add_argument("--train", help="path or Hub id of the training rows")
    parser.add_argument("--eval", nargs="+", default=[], metavar="NAME=PATH", help="labelled rows, first stage's order")
    parser.add_argument("--out_of_domain", nargs="+", default=[], help="names among --eval")
    parser.add_argument("--recipes", nargs="+", default=["cl", "kd", "cl+kd", "cl>kd", "kd>cl"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="budget of each recipe")
    parser.add_argument("--output_dir", type=Path, default=Path("comparison"))
    parser.add_argument("--smoke", action="store_true", help="tiny models on made-up rows, without a network")
    options = parser.parse_args()
    if not options.smoke and not (options.train and options.teacher and options.eval):
        parser.error("--train, --teacher and --eval are needed: rows (docs/data_formats.md) and a reranker, or --smoke")

    if options.smoke:
        tiny = {name: value for name, value in tiny_args().items() if name != "num_train_epochs"}
        sets = {"words": tiny_groups(seed=1), "other words": tiny_groups(seed=2)}
        small = {
            "args": tiny,
            "recipes": ["cl", "kd"],
            "seeds": 1,
            "budget": Steps(2),
            "out_of_domain": ["other words"],
        }
        comparison = compare(
            {"tiny": tiny_model()},
            tiny_model(seed=1),
            tiny_groups(seed=0),
            sets,
            output_dir=options.output_dir,
            **small,
        )
    else:
        comparison = compare(
            options.students,
            options.teacher,
            options.train,
            dict(pair.split("=", 1) for pair in options.eval),
            out_of_domain=options.out_of_domain,
            recipes=options.recipes,
            seeds=options.seeds,
            budget=Steps(options.steps),
            args={"passages_per_query": 16, "bf16": torch.cuda.is_available()},
            output_dir=options.output_dir,
        )
    print(comparison)
    print(f"the report: {comparison.report}")


if __name__ == "__main__":
    main()
