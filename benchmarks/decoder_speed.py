"""Decoder speed: one group of 16 passages behind a long query, with the shared prefix, without it, and beside
sentence-transformers.

A decoder of Qwen3's shape made from its config (vocabulary 151,936, 6 layers, 512 wide) with a score head and random
weights: speed does not depend on their values. Words are tokens, so lengths are exact.

    python benchmarks/decoder_speed.py --prefix 90
    python benchmarks/decoder_speed.py --prefix 300
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

VOCABULARY, NUM_PASSAGES, PASSAGE_LENGTH = 151_936, 16, 120
SIDES = ("shared", "whole", "st-None", "st-4", "st-16")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", type=int, default=90, help="tokens of the query")
    parser.add_argument("--num_steps", type=int, default=4, help="timed steps of one group, after one of warm-up")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--sides", nargs="+", default=SIDES)
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
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = Qwen3Config(
        vocab_size=VOCABULARY, num_key_value_heads=4, head_dim=64, num_labels=1, pad_token_id=VOCABULARY - 1, **shape
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
        for _ in range(options.num_steps + 1)
    ]


def run_side(options: argparse.Namespace) -> None:
    import datasets
    from training_speed import arguments, stopwatch

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
                args=Arguments(**settings),
                train_dataset=data.rename_columns({"passages": "docs"}),
                loss=losses.ListNetLoss(cross_encoder, mini_batch_size=None if size == "None" else int(size)),
                callbacks=[watch],
            ).train()
        else:
            from rerank_trainer import ContrastiveRerankTrainer, RerankTrainingArguments

            args = RerankTrainingArguments(
                **settings, passages_per_query=NUM_PASSAGES, share_prefix=options.side == "shared"
            )
            ContrastiveRerankTrainer(model, args, train_dataset=data, callbacks=[watch]).train()
    print(json.dumps({"seconds": watch.seconds}))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    from turns import run_in_turns, summary, write_report

    if not (options.output_dir / "decoder").exists():
        write_model(options.output_dir / "decoder")
    passed = [f"--{name}={getattr(options, name)}" for name in ("prefix", "num_steps", "precision", "output_dir")]
    commands = {side: [sys.executable, __file__, f"--side={side}", *passed] for side in options.sides}
    results = run_in_turns(commands, options.num_rounds)
    label = "time against the shared prefix (1.0)"
    name = f"decoder-{options.prefix}-{options.precision}"
    write_report(options.output_dir, name, label, vars(options), results, summary(results, "seconds", base="shared"))


if __name__ == "__main__":
    main()
