"""Judge: a trained model on every evaluation set; what is written already is not scored again.

accelerate launch --config_file accelerate/multi_gpu.yaml judge.py recipe.yaml --model qwen2.5-0.5b --method distilled
"""

from __future__ import annotations

from functools import partial

from accelerate.utils import broadcast_object_list
from plan import Recipe, Run, recipe_and_run, write_json
from processes import joined
from trained import trained

from rerank_trainer import RerankEvaluator, load_groups


def main(arguments: list[str] | None = None) -> None:
    judge(*recipe_and_run(__doc__, arguments))


def judge(recipe: Recipe, run: Run) -> None:
    """Write the figures of a trained model on each set, and those of each query."""
    state = joined()
    left = [[name for name in recipe.evaluate["sets"] if not recipe.result_files(run, name)[0].exists()]]
    if state.num_processes > 1:  # as the first process sees it, which alone writes
        broadcast_object_list(left)
    if not left[0]:
        return
    reranker, dtype = trained(recipe, run)
    predict = partial(reranker.predict, autocast_dtype=dtype)
    for name in left[0]:
        evaluator = RerankEvaluator(
            load_groups(recipe.eval_file(name)),
            metrics=recipe.evaluate["metrics"],
            depths=recipe.evaluate.get("depths"),
            name=name,
        )
        evaluation = evaluator.evaluate(predict)
        if state.is_main_process:
            figures, by_query = recipe.result_files(run, name)
            by_query.parent.mkdir(parents=True, exist_ok=True)
            evaluation.to_parquet(by_query)
            write_json(figures, {"rows": evaluation.rows(), "spread": evaluation.spread()})
            print(f"{run}\n{evaluation}", flush=True)


if __name__ == "__main__":
    main()
