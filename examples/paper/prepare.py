"""Prepare: the groups that all models are trained on, and those that all are judged on, written once.

Every model is trained on the same groups: one positive and ``num_negatives`` negatives of each query, drawn here by the
recipe's seed, so that methods and sizes differ in nothing but what they are compared by.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from typing import Any

import datasets
from plan import Recipe

from rerank_trainer import load_beir, load_groups, load_ir_dataset

COLUMNS = ("query", "query_id", "passages", "passage_ids", "labels")  # of a training group
SCOREDDOCS = "scoreddocs"  # the run that a collection of ir_datasets brings


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    recipe = Recipe.read(parser.parse_args(arguments).recipe)
    recipe.refuse_other_settings()
    refuse_missing_runs(recipe)
    if not recipe.train_file.exists():
        write(train_groups(recipe), recipe.train_file)
    for name, options in recipe.evaluate["sets"].items():
        if not recipe.eval_file(name).exists():
            write(eval_groups(recipe, **options), recipe.eval_file(name))


def train_groups(recipe: Recipe) -> datasets.Dataset:
    """Groups of one positive and as many negatives as the recipe says, of the queries that have them.

    ``train`` of the recipe holds ``source`` (a Hub id, or a file beside the recipe), ``num_negatives``, optionally
    ``num_queries``, a sample of so many, and anything else that ``load_groups`` takes.
    """
    options = dict(recipe.train)
    source, num_negatives = options.pop("source"), options.pop("num_negatives")
    num_queries = options.pop("num_queries", None)
    groups = load_groups(recipe.beside(source), **options)
    groups = groups.select_columns([name for name in COLUMNS if name in groups.column_names])
    count = len(groups)
    groups = groups.filter(has_enough, fn_kwargs={"num_negatives": num_negatives}, input_columns="labels")
    print(f"train: {count - len(groups)} of {count} groups have no positive or fewer than {num_negatives} negatives")
    if num_queries is not None and num_queries < len(groups):
        groups = groups.select(sorted(random.Random(recipe.seed).sample(range(len(groups)), num_queries)))
    drawn = {"num_negatives": num_negatives, "seed": recipe.seed}
    return groups.map(draw, with_indices=True, fn_kwargs=drawn, features=groups.features)


def eval_groups(
    recipe: Recipe,
    *,
    beir: str | None = None,
    split: str = "test",
    ir_dataset: str | None = None,
    run: str | None = None,
    in_domain: bool = False,
) -> datasets.Dataset:
    """Groups of the judged queries of a set, with the candidates of a first stage in their order.

    Args:
        recipe: Its ``evaluate`` says the depth, and a sample of how many queries.
        beir: A BEIR set on the Hub such as "BeIR/scifact", or a folder beside the recipe.
        split: Of its qrels.
        ir_dataset: Or an id of ir_datasets, such as "msmarco-passage/trec-dl-2019/judged".
        run: A TREC run beside the recipe; "scoreddocs" for the run that a collection of ir_datasets brings; none for
            BM25 over the whole corpus, which memory must hold.
        in_domain: Whether it counts as of the domain of the training.

    Raises:
        ValueError: If it is not one of ``beir`` and ``ir_dataset``.
    """
    if (beir is None) == (ir_dataset is None):
        raise ValueError(f"an evaluation set has beir or ir_dataset, found beir={beir!r}, ir_dataset={ir_dataset!r}")
    options: dict[str, Any] = {"depth": recipe.evaluate["depth"], "num_queries": recipe.evaluate.get("num_queries")}
    options["run"] = run if run in (None, SCOREDDOCS) else recipe.path(run)
    if ir_dataset is not None:
        return load_ir_dataset(ir_dataset, **options)
    return load_beir(recipe.beside(beir), split, **options)


def refuse_missing_runs(recipe: Recipe) -> None:
    """Refuse a recipe whose runs are not all there, before hours of work."""
    named = [options.get("run") for options in recipe.evaluate["sets"].values()]
    missing = [run for run in named if run not in (None, SCOREDDOCS) and not recipe.path(run).is_file()]
    if missing:
        raise ValueError(
            f"these TREC runs are not beside the recipe: {missing}. Write them with an index of your own, or leave "
            "`run` out for BM25, or the set."
        )


def has_enough(labels: list[float], num_negatives: int) -> bool:
    """Whether a group has a positive and so many negatives."""
    return max(labels, default=0) > 0 and sum(label == 0 for label in labels) >= num_negatives


def draw(group: dict[str, Any], index: int, *, num_negatives: int, seed: int) -> dict[str, Any]:
    """One positive and so many negatives of a group, by its index and the seed, in the order in which they stood."""
    chance = random.Random(f"{seed}-{index}")
    places = range(len(group["labels"]))
    positives = [place for place in places if group["labels"][place] > 0]
    negatives = [place for place in places if group["labels"][place] == 0]
    kept = sorted([chance.choice(positives), *chance.sample(negatives, num_negatives)])
    lists = [name for name in ("passages", "labels", "passage_ids") if name in group]
    return {name: [group[name][place] for place in kept] for name in lists}


def write(groups: datasets.Dataset, path: Path) -> None:
    """Write groups as a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    groups.to_parquet(part)
    os.replace(part, path)
    print(f"{len(groups):,} groups, {sum(map(len, groups['passages'])):,} pairs in {path}")


if __name__ == "__main__":
    main()
