"""What the pages of the docs take for given: the models and data sets they name, as folders below the current one.

A Hub id is also a path, and Transformers, datasets and sentence-transformers look for a folder of that name before
they ask the Hub. So tiny models and small files under those names let every line of a page run as it is printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoModel

from rerank_trainer import Reranker, to_groups
from tests.tiny_language_models import saved_language_model
from tests.tiny_models import KINDS, TEXTS, tiny_model

GROUPS = {
    "query": [f"{TEXTS[0]} {number}" for number in range(6)],
    "passages": [[f"{text} {number}" for text in TEXTS[:4]] for number in range(6)],
    "labels": [[1.0, 0.0, 0.0, 0.0]] * 3 + [[0.0, 2.0, 1.0, 0.0]] * 3,
}


def _encoder(kind: str, **options: Any) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        model, tokenizer = tiny_model(kind, **options)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


def _backbone(kind: str) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        model, tokenizer = tiny_model(kind)
        model.base_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        AutoModel.from_pretrained(folder)  # a backbone without head

    return save


def _language_model(kind: str) -> Callable[[Path], object]:
    return lambda folder: saved_language_model(kind, folder)


def _deep_encoder(folder: Path) -> None:
    kind, tokenizer, options = KINDS["xlm-roberta"]
    KINDS["deep"] = (kind, tokenizer, {**options, "num_hidden_layers": 10, "max_position_embeddings": 600})
    try:
        _encoder("deep")(folder)
    finally:
        del KINDS["deep"]


def _saved_here(folder: Path) -> None:
    Reranker(*tiny_model("bert")).save_pretrained(folder)


MODELS: dict[str, Callable[[Path], object]] = {
    "answerdotai/ModernBERT-base": _backbone("modernbert"),
    "BAAI/bge-reranker-v2-m3": _deep_encoder,
    "castorini/monot5-base-msmarco": _language_model("t5"),
    "cross-encoder/ms-marco-MiniLM-L6-v2": _encoder("bert"),
    "intfloat/e5-base-v2": _backbone("bert"),
    "Qwen/Qwen3-0.6B": _language_model("qwen3"),
    "Qwen/Qwen3-Reranker-0.6B": _language_model("qwen3"),
    "Qwen/Qwen3-Reranker-4B": _language_model("qwen3"),
    "HuggingFaceTB/SmolLM2-360M": _language_model("qwen2"),
    "out": _saved_here,
    "out/checkpoint-400": _saved_here,
    "out/checkpoint-500": _saved_here,
}


def _rows() -> list[dict[str, Any]]:
    return [dict(zip(GROUPS, row, strict=True)) for row in zip(*GROUPS.values(), strict=True)]


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _hub_set(folder: Path, configs: dict[str, list[dict[str, Any]]], split: str = "train") -> None:
    lines = ["---", "configs:"]
    for name, rows in configs.items():
        _write_lines(folder / name / f"{split}.jsonl", rows)
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def _beir(folder: Path) -> None:
    passages = {f"p{number}": text for number, text in enumerate(TEXTS)}
    _write_lines(folder / "corpus.jsonl", [{"_id": key, "title": "", "text": text} for key, text in passages.items()])
    _write_lines(folder / "queries.jsonl", [{"_id": f"q{number}", "text": TEXTS[number]} for number in range(3)])
    (folder / "qrels").mkdir()
    judged = "".join(f"q{number}\tp{number}\t1\n" for number in range(3))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    run = [f"q{query} Q0 {key} {rank} {9 - rank}.0 bm25" for query in range(3) for rank, key in enumerate(passages, 1)]
    for path in (folder / "run.bm25.test.trec", folder.parent / "run.bm25.test.trec"):
        path.write_text("\n".join(run) + "\n")
    (folder.parent / "run.dense.test.trec").write_text("\n".join(run[::-1]) + "\n")


def build(folder: Path) -> None:
    """Write everything that pages name into the folder."""
    for name, save in MODELS.items():
        save(folder / name)
    rows = _rows()
    scored = [row | {"teacher_scores": [3.0, 1.0, 0.5, -2.0]} for row in rows]
    for name in ("my_groups.jsonl", "web.jsonl", "code.jsonl"):
        _write_lines(folder / name, rows)
    datasets.Dataset.from_list(scored).to_parquet(folder / "clicks.parquet")
    flag = {
        "query": TEXTS[0],
        "pos": [TEXTS[1]],
        "neg": TEXTS[2:5],
        "pos_scores": [4.0],
        "neg_scores": [1.0, 0.0, -1.0],
    }
    _write_lines(folder / "train.jsonl", [flag] * 4)
    _hub_set(folder / "sentence-transformers/msmarco", {"labeled-list": rows})
    ids = [{"query_id": f"q{n}", "document_ids": ["d0", "d1", "d2"], "scores": [2.0, 1.0, 0.0]} for n in range(4)]
    texts = [{"document_id": f"d{n}", "text": TEXTS[n]} for n in range(4)]
    queries = [{"query_id": f"q{n}", "text": TEXTS[n]} for n in range(4)]
    _hub_set(folder / "lightonai/ms-marco-en-bge", {"train": ids, "queries": queries, "documents": texts})
    _beir(folder / "scifact")


def given() -> dict[str, Any]:
    """The names that prose introduces: groups, pairs, scores and the like; and every public name of the package."""
    import torch

    import rerank_trainer
    from rerank_trainer import RerankTrainingArguments

    names: dict[str, Any] = {name: getattr(rerank_trainer, name) for name in rerank_trainer.__all__}
    groups = to_groups(datasets.Dataset.from_dict(GROUPS))
    reranker = Reranker.from_pretrained("cross-encoder/ms-marco-MiniLM-L6-v2")
    return names | {
        "torch": torch,
        "args": RerankTrainingArguments("given", use_cpu=True),
        "corpus": list(TEXTS),
        "dev": groups,
        "groups": groups,
        "labels": GROUPS["labels"],
        "missed_gains": [[]] * len(groups),
        "model": "answerdotai/ModernBERT-base",
        "pairs": [(GROUPS["query"][0], passage) for passage in GROUPS["passages"][0]],
        "passages": list(TEXTS),
        "query": TEXTS[0],
        "reranker": reranker,
        "rows": datasets.Dataset.from_dict({"question": GROUPS["query"][:5], "answer": list(TEXTS)}),
        "scores": [[0.1, 0.4, 0.3, 0.2]] * len(groups),
        "student": "answerdotai/ModernBERT-base",
        "train": groups,
    }
