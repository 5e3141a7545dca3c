"""Annotate: the teacher's scores of all training groups, written once for all students.

accelerate launch --config_file accelerate/multi_gpu.yaml annotate.py recipe.yaml

A process that is killed loses at most one shard; each process holds the whole teacher.
"""

from __future__ import annotations

import argparse

from plan import Recipe
from trained import trained

from rerank_trainer import RerankerTeacher, annotate


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    recipe = Recipe.read(parser.parse_args(arguments).recipe)
    reranker, dtype = trained(recipe, recipe.teacher_run)
    print(annotate(str(recipe.train_file), RerankerTeacher(reranker, autocast_dtype=dtype), recipe.scores_dir))


if __name__ == "__main__":
    main()
