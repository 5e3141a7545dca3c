"""The flags of every command, which are also the keys of its YAML file; named as the arguments of the functions called.

A data set is a path or Hub id, or a mapping of the arguments of ``load_groups``, ``load_beir``, ``load_trec`` or
``load_ir_dataset``. A teacher is a folder or Hub id, or a mapping of the arguments of ``EndpointTeacher``. On a command
line, a mapping is written as JSON. ``HfArgumentParser`` makes flags of the fields.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

_DATA = (
    "path, Hub id, or a mapping of the arguments of load_groups (source), load_beir (folder), load_trec (qrels) or "
    "load_ir_dataset (name)"
)
_NAMED_DATA = f"{_DATA}; or a mapping from name to such"
_TEACHER = "folder or Hub id, or a mapping of the arguments of EndpointTeacher (url, api, model, api_key_env, ...)"


def _flag(help: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TrainOptions:
    """What is trained, on what, by which method."""

    model: str = _flag("folder or Hub id of what is trained: a backbone, a reranker or an adapter")
    train_dataset: str = _flag(f"{_NAMED_DATA} or to the arguments of a TrainSource (rows, weight, ...)")
    eval_dataset: str | None = _flag(f"what evaluations judge on: {_NAMED_DATA}", None)
    method: Literal["contrastive", "distill"] | None = _flag(
        "learn from labels, or from teacher scores; distill if there is a teacher, else contrastive", None
    )
    teacher: str | None = _flag(f"{_TEACHER}; without one, distilling takes the rows' own teacher_scores", None)
    lora: bool = _flag("train a LoRA adapter with the defaults for the architecture", False)
    peft_config: str | None = _flag("the same as you say: a mapping of the arguments of LoraConfig", None)
    load_in_4bit: bool = _flag("hold the frozen weights in 4 bits; needs an adapter", False)


@dataclass
class AnnotateOptions:
    """What is scored, by whom, and where to."""

    dataset: str = _flag(_DATA)
    teacher: str = _flag(_TEACHER)
    output_dir: str = _flag("folder of the scored groups; the same command goes on after an interruption")
    column: str = _flag("column of the scores", "teacher_scores")
    shard_size: int = _flag("groups of a file, which are held in memory", 1024)
    batch_size: int = _flag("groups of one call of the teacher", 256)
    device: str | None = _flag("where a teacher given by name is put", None)


@dataclass
class MineOptions:
    """Where negatives come from, which are taken, and where to."""

    dataset: str = _flag(_DATA)
    output: str = _flag("file that is written, which ends in .parquet, .jsonl or .json")
    corpus: str | None = _flag("file or Hub id of the passages to search; without it, those of all groups", None)
    first_stage: str = _flag("'bm25', or folder or Hub id of an embedding model", "bm25")
    num_negatives: int = _flag("how many a query gets at most", 15)
    range_min: int = _flag("how many of the best candidates are skipped", 10)
    range_max: int = _flag("the last rank that is looked at", 100)
    sampling_strategy: Literal["random", "top"] = _flag("draw from what the filters leave, or take its best", "random")
    max_score: float | None = _flag("filter: the highest first-stage score", None)
    absolute_margin: float | None = _flag("filter: how far below the positive's first-stage score", None)
    relative_margin: float | None = _flag("filter: the same, as a share of that score", None)
    reranker: str | None = _flag("folder or Hub id of a reranker that filters, by one or both of these:", None)
    reranker_threshold: float | None = _flag("the highest probability that it may give a negative", None)
    reranker_margin: float | None = _flag("how many logits below the positive it must put a negative", None)
    keep_negatives: bool = _flag("keep the negatives that the groups have", False)
    keep_empty: bool = _flag("keep queries that got no negative", False)
    seed: int = _flag("decides the draw", 0)


@dataclass
class EvaluateOptions:
    """Who is judged, on what."""

    dataset: str = _flag(_NAMED_DATA)
    model: str | None = _flag("folder or Hub id of a reranker; without it, the first stage alone is judged", None)
    metrics: list[str] = field(
        default_factory=lambda: ["nDCG@10", "RR@10", "AP", "R@10"], metadata={"help": "names of ir_measures"}
    )
    depths: list[int] | None = _flag("how many candidates are reranked; several give a curve", None)
    max_length: int | None = _flag("tokens of a pair; without it, what the checkpoint allows", None)
    device: str | None = _flag("where the model is put; without it, a GPU where there is one", None)
    output_dir: str | None = _flag("folder for TREC runs and the figures of each query", None)
    json: bool = _flag("print the figures as JSON in place of a table", False)


@dataclass
class CompareOptions:
    """Who is trained by which recipes, on what, and who is judged beside them."""

    students: list[str] = field(
        metadata={"help": "folders or Hub ids, or mappings of the arguments of a Student (model, name, arguments, ...)"}
    )
    train: str = _flag(_DATA)
    eval_sets: str = _flag(f"a mapping from name to an evaluation set: {_DATA}; or to a mapping of first stages")
    budget: str = _flag("of each recipe: a mapping of steps, seconds or tokens to how many, such as {steps: 500}")
    output_dir: str = _flag("folder of everything; the same command goes on, and several jobs may share it")
    teacher: str | None = _flag(f"{_TEACHER}; without one, the rows' own teacher_scores", None)
    recipes: list[str] = field(
        default_factory=lambda: ["cl", "kd", "cl+kd", "cl>kd", "kd>cl"],
        metadata={"help": "names, or mappings of the arguments of a Recipe (name, stages)"},
    )
    seeds: int = _flag("how many trainings of each", 3)
    out_of_domain: list[str] | None = _flag("names of the sets that are out of the domain", None)
    metrics: list[str] = field(
        default_factory=lambda: ["nDCG@10", "RR@10"],
        metadata={"help": "names of ir_measures; tests and advice are about the first"},
    )
    depths: list[int] | None = _flag("how many candidates are reranked; several give a curve", None)
    args: str | None = _flag("a mapping of RerankTrainingArguments, the same for all", None)
    show_texts: bool = _flag("show texts of queries in the report", False)
    save_models: bool = _flag("keep the trained models", False)
    retry_failed: bool = _flag("run cells again that failed before", False)


@dataclass
class ExportOptions:
    """What is exported, and where to."""

    model: list[str] = field(metadata={"help": "folder or Hub id; several of one base are merged"})
    output_dir: str = _flag("folder that is written")
    method: Literal["average", "slerp"] = _flag("how several are merged", "average")
    weights: list[float] | None = _flag("the share of each of several; without it, equal shares", None)


@dataclass
class RankOptions:
    """Who ranks, what is asked, and the passages."""

    model: str = _flag("folder or Hub id of a reranker")
    query: str = _flag("the text asked")
    passages: str = _flag(
        "file of passages, one a line: plain text, or JSON (a text, or an object with text or passage); - reads the "
        "standard input",
        "-",
    )
    top_k: int | None = _flag("how many are shown; without it, all", None)
    instruction: str | None = _flag("what the model's prompt says besides", None)
    max_length: int | None = _flag("tokens of a pair; without it, what the checkpoint allows", None)
    device: str | None = _flag("where the model is put; without it, a GPU where there is one", None)
    json: bool = _flag("print one JSON object a passage in place of a table", False)
