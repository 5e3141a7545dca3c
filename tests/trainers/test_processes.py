"""Two gloo processes train as one does: this file is the test, and the script that each process runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def train(folder: Path) -> None:
    """Distil for two epochs of three steps of 8 groups, however many processes there are, and keep what came out."""
    from rerank_trainer.trainers.arguments import RerankTrainingArguments
    from rerank_trainer.trainers.distill import DistillRerankTrainer
    from tests.trainers.conftest import small_reranker, word_groups
    from tests.trainers.test_hooks import ragged_groups

    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = RerankTrainingArguments(
        str(folder / "out"),
        use_cpu=True,
        ddp_backend="gloo" if num_processes > 1 else None,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        passages_per_query=4,
        per_device_train_batch_size=8 // num_processes,
        num_train_epochs=2,
        logging_steps=1,
        label_weight=0.4,
        optim="sgd",
        learning_rate=0.05,
        max_grad_norm=0.0,
        warmup_steps=0,
        lr_scheduler_type="constant",
    )
    reranker = small_reranker(spread=0.3).with_lengths(max_length=9)  # some pairs are cut
    trainer = DistillRerankTrainer(reranker, args, train_dataset=ragged_groups(), eval_dataset=word_groups(13, seed=4))
    trainer.train()
    figures = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(reranker.model.state_dict(), folder / f"weights-{num_processes}.pt")
        lines = [entry for entry in trainer.state.log_history if "loss" in entry]
        kept = {name: value for name, value in figures.items() if "@" in name or name in ("eval_map", "eval_truncated")}
        kept |= {"losses": [line["loss"] for line in lines], "truncated": [line["truncated"] for line in lines]}
        (folder / f"figures-{num_processes}.json").write_text(json.dumps(kept))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_does(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([sys.executable], launch):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = subprocess.run([*command, __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-4000:]

    one, two = (torch.load(tmp_path / f"weights-{number}.pt") for number in (1, 2))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    figures = [json.loads((tmp_path / f"figures-{number}.json").read_text()) for number in (1, 2)]
    assert len(figures[0]["losses"]) == 6 and len(set(figures[0]["losses"])) == 6
    assert figures[1].pop("losses") == pytest.approx(figures[0].pop("losses"), abs=1e-5)
    shares = [run.pop("truncated") for run in figures]
    assert shares[0] == shares[1] and 0 < min(shares[0]) < max(shares[0]) < 1
    assert 0 < figures[0]["eval_truncated"] < 1
    assert figures[0] == pytest.approx(figures[1])


if __name__ == "__main__":
    train(Path(sys.argv[1]))
