"""Decoder speed: one group of 16 passages behind a long query, with the shared prefix, without it, and beside
sentence-transformers.

A decoder of Qwen3's shape made from its config (vocabulary 151,936, 6 layers, 512 wide) with a score head and random
weights: speed does not depend on their values. Words are tokens, so lengths are exact: 120 tokens a passage. What is
timed is `train()` from the end of its first step, with the same AdamW and clipping on every side.

Sides:
    shared    ContrastiveRerankTrainer with share_prefix=True
    whole     the same with share_prefix=False
    st-<size> CrossEncoderTrainer of sentence-transformers under ListNetLoss(mini_batch_size=size); None is its default,
              as many pairs as the batch has groups: one

The table has two ratios: of the whole `train()`, and of forward and backward alone. Clipping and AdamW over the
embedding matrix of 151,936 x 512 take the same time on every side, and sharing cannot shorten them. The lines below the
table show how fast sharing could be at best: by multiplications, and for the whole `train()` with what was measured
outside of forward and backward.

    python benchmarks/decoder_speed.py --prefix 90
    python benchmarks/decoder_speed.py --prefix 300
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

NUM_PASSAGES, PASSAGE_LENGTH = 16, 120
VOCABULARY, WIDTH, MLP_WIDTH, LAYERS, HEADS, KEY_VALUE_HEADS, HEAD_WIDTH = 151_936, 512, 1536, 6, 8, 4, 64
SIDES = ("shared", "whole", "st-None", "st-4", "st-16")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", type=int, default=90, help="tokens of the query")
    parser.add_argument("--num_steps", type=int, default=4, help="timed steps of one group, after one of warm-up")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--sides", nargs="+", default=SIDES, help="the first is the base")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_model(folder: Path) -> None:
    """The decoder and a tokenizer whose words are tokens, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification, set_seed

    words = {f"w{number}": number for number in range(VOCABULARY - 1)} | {"<|end|>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.model_max_length = 1024
    fast.save_pretrained(folder)
    set_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        head_dim=HEAD_WIDTH,
        num_labels=1,
        pad_token_id=VOCABULARY - 1,
    )
    Qwen3ForSequenceClassification(config).save_pretrained(folder)


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    chance = random.Random(0)

    def text(length: int) -> str:
        return " ".join(f"w{chance.randrange(VOCABULARY - 1)}" for _ in range(length))

    labels = [1.0] + [0.0] * (NUM_PASSAGES - 1)
    return [
        {
            "query": text(options.prefix),
            "passages": [text(PASSAGE_LENGTH) for _ in range(NUM_PASSAGES)],
            "labels": labels,
        }
        for _ in range(options.num_steps + 2)  # one of warm-up, and one that is only loaded, as in training_speed.py
    ]


def run_side(options: argparse.Namespace) -> None:
    import datasets
    from training_speed import LEARNING_RATE, arguments, in_order, stopwatch

    model, watch = str(options.output_dir / "decoder"), stopwatch()
    data = datasets.Dataset.from_list(rows(options))
    with tempfile.TemporaryDirectory() as folder:
        settings = {**arguments(options, folder), "per_device_train_batch_size": 1}
        if options.side.startswith("st-"):
            from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, losses
            from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments as Arguments

            cross_encoder = CrossEncoder(model, num_labels=1, device="cpu")
            size = options.side.removeprefix("st-")
            CrossEncoderTrainer(
                model=cross_encoder,
                args=Arguments(**settings, batch_sampler=in_order),
                train_dataset=data.rename_columns({"passages": "docs"}),
                loss=losses.ListNetLoss(cross_encoder, mini_batch_size=None if size == "None" else int(size)),
                callbacks=[watch],
            ).train()
        else:
            from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments

            args = RerankTrainingArguments(
                **settings,
                passages_per_query=NUM_PASSAGES,
                share_prefix=options.side == "shared",
                head_learning_rate=LEARNING_RATE,
            )
            ContrastiveRerankTrainer(model, args, train_dataset=data, callbacks=[watch]).train()
    print(json.dumps(watch.report()))


def multiplications(starts: int, lengths: int) -> int:
    """Multiplications of a causal forward over the tokens from place ``starts`` on of rows of this length."""
    heads = 2 * HEADS + 2 * KEY_VALUE_HEADS  # queries and output, keys and values
    weights = WIDTH * HEAD_WIDTH * heads + 3 * WIDTH * MLP_WIDTH
    keys = sum(range(starts + 1, lengths + 1))  # a token sees itself and those before it
    return LAYERS * ((lengths - starts) * weights + 2 * keys * HEADS * HEAD_WIDTH)


def bounds(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """How many times faster sharing could be, in words with the arithmetic."""
    prefix, length = options.prefix, options.prefix + PASSAGE_LENGTH
    tokens, of_shared = NUM_PASSAGES * length, prefix + NUM_PASSAGES * PASSAGE_LENGTH
    whole = NUM_PASSAGES * multiplications(0, length)
    shared = multiplications(0, prefix) + NUM_PASSAGES * multiplications(prefix, length)
    lines = [
        f"bound by tokens: {NUM_PASSAGES} x ({prefix} + {PASSAGE_LENGTH}) = {tokens} against {prefix} + {NUM_PASSAGES} "
        f"x {PASSAGE_LENGTH} = {of_shared}: {tokens / of_shared:.2f}",
        f"bound by multiplications (layers, attention): {whole / 1e9:.1f}e9 against {shared / 1e9:.1f}e9 a forward: "
        f"{whole / shared:.2f}",
    ]
    if "whole" in results:
        inside = statistics.median(run["forward_backward"] for run in results["whole"]) / options.num_steps
        outside = statistics.median(run["seconds"] for run in results["whole"]) / options.num_steps - inside
        least = inside * shared / whole + outside
        lines.append(
            f"bound of the whole train(): a step has {inside:.2f} s of forward and backward and {outside:.2f} s of "
            f"clipping, AdamW and loading: {inside + outside:.2f} against {least:.2f}: {(inside + outside) / least:.2f}"
        )
    return lines


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    from training_speed import SETTINGS
    from turns import differences, run_in_turns, summary, with_best, write_report

    if not (options.output_dir / "decoder").exists():
        write_model(options.output_dir / "decoder")
    passed = [f"--{name}={getattr(options, name)}" for name in ("prefix", "num_steps", "precision", "output_dir")]
    commands = {side: [sys.executable, __file__, f"--side={side}", *passed] for side in options.sides}
    results = run_in_turns(commands, options.num_rounds)
    base, compared = options.sides[0], with_best(results, "st-", "sentence-transformers at its best", "seconds")
    table = summary(compared, "seconds", base=base, also=("forward_backward", "tokens"))
    for row, inside in zip(table, summary(compared, "forward_backward", base=base), strict=True):
        row["ratio_forward_backward"] = inside["ratio"]
    name, label = f"decoder-{options.prefix}-{options.precision}", f"time of train() against {base} (1.0)"
    unshared = {side: runs for side, runs in results.items() if side != "shared"}
    notes = [*bounds(options, results), *differences(unshared, ("tokens",)), *differences(results, SETTINGS)]
    write_report(options.output_dir, name, label, vars(options), results, table, notes=notes)


if __name__ == "__main__":
    main()
