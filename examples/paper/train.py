"""Train one model of a recipe by one method; a run that was killed goes on from its last checkpoint.

accelerate launch --config_file accelerate/multi_gpu.yaml train.py recipe.yaml --model qwen2.5-0.5b --method distilled

The arguments are those of ``ModelSettings`` and of ``rerank_trainer.RerankTrainingArguments``: what the recipe says of
every training, over it the file of the model, over that its part ``contrastive`` or ``distilled``.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plan import CONTRASTIVE, METHODS, Recipe, Run, recipe_and_run, write_json
from transformers import HfArgumentParser, set_seed

from rerank_trainer import (
    ContrastiveRerankTrainer,
    DistillRerankTrainer,
    Prompt,
    Reranker,
    RerankTrainer,
    RerankTrainingArguments,
)

PATHS = ("deepspeed", "fsdp_config")  # arguments that may name a file beside the recipe


@dataclass
class ModelSettings:
    """What is trained, beside the arguments of the trainer."""

    model: str = field(metadata={"help": "Hub id or folder of the backbone."})
    lora: bool = field(default=False, metadata={"help": "Train LoRA (rank 16, alpha 32) instead of all weights."})
    groups_per_step: int = field(default=64, metadata={"help": "Groups of a step, of all processes together."})
    prompt: str | None = field(
        default=None, metadata={"help": "The text around {query} and {passage}; without it, the tokenizer's own pair."}
    )


def main(arguments: list[str] | None = None) -> None:
    train(*recipe_and_run(__doc__, arguments))


def train(recipe: Recipe, run: Run) -> RerankTrainer | None:
    """The trainer after training, its model saved; None if that is there already."""
    folder = recipe.model_dir(run)
    finished = folder / "finished.json"
    if finished.exists():
        return None
    recipe.refuse_other_settings()
    settings, args = parsed(recipe, run)
    start = time.perf_counter()
    trainer = make_trainer(recipe, run, settings, args)
    output = trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    trainer.save_model()
    if trainer.is_world_process_zero():
        loss = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found = {"steps": output.global_step, "last_loss": loss[-1] if loss else None}
        found |= {"seconds_since_start": round(time.perf_counter() - start, 1), "footprint": str(trainer.footprint)}
        write_json(finished, found)
    return trainer


def parsed(recipe: Recipe, run: Run) -> tuple[ModelSettings, RerankTrainingArguments]:
    """What the recipe says of a training, by Transformers' parser.

    Raises:
        ValueError: If a name is not known, or the processes cannot share the groups of a step evenly.
    """
    given = recipe.settings(run.model)
    by_method = {method: given.pop(method, {}) for method in METHODS}
    given |= {"seed": recipe.seed, "run_name": str(run), **by_method[run.method]}
    for name in PATHS:
        if isinstance(given.get(name), str):
            given[name] = str(recipe.path(given[name]))
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    groups_per_step = given.get("groups_per_step", ModelSettings.groups_per_step)
    per_process, rest = divmod(groups_per_step, num_processes)
    if rest:
        raise ValueError(
            f"groups_per_step={groups_per_step} cannot be shared evenly by {num_processes} processes: give a multiple"
        )
    given |= {"per_device_train_batch_size": per_process, "output_dir": str(recipe.model_dir(run))}
    settings, args = HfArgumentParser((ModelSettings, RerankTrainingArguments)).parse_dict(given)
    return settings, args


def make_trainer(recipe: Recipe, run: Run, settings: ModelSettings, args: RerankTrainingArguments) -> RerankTrainer:
    """The trainer of a run: both methods see the same groups, the one their labels, the other the teacher's scores."""
    model: Any = recipe.beside(settings.model)
    if settings.prompt is not None:
        set_seed(args.seed)  # a fresh head is drawn here
        options = args.model_init_kwargs or {}
        # on the CPU, as of a name: the trainer moves it, or shards it
        how: dict[str, Any] = {"device": "cpu", "max_length": args.max_length, **options}
        model = Reranker.from_pretrained(model, prompt=Prompt(settings.prompt), **how)
    is_contrastive = run.method == CONTRASTIVE
    return (ContrastiveRerankTrainer if is_contrastive else DistillRerankTrainer)(
        model,
        args,
        train_dataset=str(recipe.train_file if is_contrastive else recipe.scores_dir),
        lora=settings.lora,
    )


def last_whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end; the state of the trainer is what is written last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


if __name__ == "__main__":
    main()
