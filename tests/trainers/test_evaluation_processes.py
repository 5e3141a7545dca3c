"""Two gloo processes find the figures of one: this file is the test, and the script that each process runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

ROOT = Path(__file__).parents[2]


def uneven_groups() -> datasets.Dataset:
    """13 groups, so that two processes of batches of 2 do not divide them; sizes and missed gains fall with the index.

    Each process then pads to a width of its own; two groups have no passages.
    """
    from tests.trainers.conftest import word_groups

    rows = word_groups(13, seed=4, group_size=12).to_list()
    for index, row in enumerate(rows):
        size = 0 if index in (6, 12) else 12 - index
        row.update({name: row[name][:size] for name in ("passages", "labels")})
        row["missed_gains"] = [1.0, 2.0, 1.0, 3.0][: index % 5]
    rows[12]["missed_gains"] = [1.0]
    return datasets.Dataset.from_list(rows)


def figures_of(folder: Path) -> dict[str, float]:
    """Both evaluation sets and an evaluator judged, however many processes there are."""
    from rerank_trainer.trainers.arguments import RerankTrainingArguments
    from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
    from tests.trainers.conftest import small_reranker
    from tests.trainers.test_evaluators import nano_beir_evaluator

    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = RerankTrainingArguments(
        str(folder / "out"),
        use_cpu=True,
        ddp_backend="gloo" if num_processes > 1 else None,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        per_device_eval_batch_size=2,
        per_device_train_batch_size=4 // num_processes,
        passages_per_query=4,
        save_strategy="no",
        eval_strategy="epoch",
        num_train_epochs=1,
        optim="sgd",
        learning_rate=0.01,
        warmup_steps=0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        eval_metrics=["ndcg@10", "ndcg", "mrr@10", "map", "recall@5", "recall@100", "precision@3"],
    )
    groups = uneven_groups()
    trainer = ContrastiveRerankTrainer(
        small_reranker(spread=0.3),
        args,
        train_dataset=groups.select(range(4)).remove_columns("missed_gains"),
        # three groups are fewer than the processes take at once
        eval_dataset={"uneven": groups, "few": groups.select([3, 4, 6])},
        evaluator=nano_beir_evaluator(folder / f"nano-{os.environ.get('RANK', 'alone')}"),
    )
    before = trainer.evaluate()
    trainer.train()
    trained = [entry for entry in trainer.state.log_history if "eval_uneven_map" in entry][-1]
    found = {**before, **{f"trained_{name}": value for name, value in trained.items()}}
    uncompared = ("_runtime", "_per_second", "_time", "epoch", "step")
    kept = {name: value for name, value in found.items() if not name.endswith(uncompared)}
    (folder / f"figures-{num_processes}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(kept))
    return kept


@pytest.mark.slow
def test_two_processes_find_the_figures_of_one(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # the order of a set of texts differs between processes: an evaluator that iterates over one must not care
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launch, __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    one = figures_of(tmp_path)

    for rank in (0, 1):
        two = json.loads((tmp_path / f"figures-2-{rank}.json").read_text())
        assert two == pytest.approx(one, rel=1e-4)
    assert {"eval_few_loss", "eval_uneven_loss", "eval_uneven_ndcg@10", "eval_NanoBEIR_R100_mean_ndcg@10"} <= set(one)
    assert one["trained_eval_uneven_loss"] != one["eval_uneven_loss"]


if __name__ == "__main__":
    figures_of(Path(sys.argv[1]))
