"""Saving: what becomes of a folder that training writes, beside what Transformers does: one model in it, no token."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch import nn
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from rerank_trainer.data.streams import StreamGroups
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.verify import verify_checkpoint

if TYPE_CHECKING:
    from rerank_trainer.trainers.hooks import GroupHooks

logger = logging.getLogger(__name__)

NUM_VERIFIED_PAIRS = 8


def final_checkpoint(args: TrainingArguments, state: TrainerState) -> str | None:
    """The folder of the weights that training ends with; None if they were not saved."""
    assert args.output_dir is not None
    last = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    best = state.best_model_checkpoint if args.load_best_model_at_end else None
    folder = Path(best or last)
    return str(folder) if args.should_save and folder.is_dir() else None


def refuse_other_kind(args: TrainingArguments, model: nn.Module) -> None:
    """Refuse an output folder with a saved model where an adapter would be saved beside it, or the other way round.

    Raises:
        ValueError: Since nobody could tell later, here or on the Hub, which of them is meant.
    """
    is_adapter = isinstance(model, PeftModel)
    others = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if is_adapter else (ADAPTER_CONFIG_NAME,)
    found = [name for name in others if Path(args.output_dir or ".", name).is_file()]
    if found:
        here, there = ("an adapter", "a whole model") if is_adapter else ("a whole model", "an adapter")
        raise ValueError(
            f"output_dir={args.output_dir!r} holds {there}, {found[0]}, and {here} saved beside it would make a folder "
            "that does not open. Give another output_dir."
        )


def verify_folder(trainer: GroupHooks, folder: str | None) -> None:
    """Open the folder in other loaders and compare some scores, if the trainer's arguments allow it."""
    if folder is None or trainer.args.verify_checkpoints == "never":
        return
    evaluation = trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, dict) else [trainer.eval_dataset]
    pairs = some_pairs([trainer.train_dataset, *evaluation], NUM_VERIFIED_PAIRS)
    if not pairs:
        logger.warning("%s: the trainer holds no groups, so only token ids of made-up texts are compared", folder)
    # sharded weights score in all processes or none, and only the main one is here: its folder speaks for them
    reranker = Reranker.from_pretrained(folder, device="cpu") if trainer.is_fsdp_enabled else trainer.reranker
    trainer.card.parity = (trainer.state.global_step, verify_checkpoint(folder, reranker, pairs))


def some_pairs(datasets: Iterable[Any], num_pairs: int) -> list[tuple[str, str]]:
    """At most ``num_pairs`` (query, passage) pairs, two of a group, from the first data set that has any."""
    for dataset in datasets:
        groups = dataset if isinstance(dataset, StreamGroups) else getattr(dataset, "groups", ())
        pairs: list[tuple[str, str]] = []
        for group in itertools.islice(groups, num_pairs):
            pairs += [(group["query"], passage) for passage in group["passages"][:2]]
        if pairs:
            return pairs[:num_pairs]
    return []


class _HiddenToken(str):
    """A token that is a text everywhere but in a pickle, where it is None."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _HiddenToken:
        return self


def hide_token(args: TrainingArguments) -> None:
    """Keep the Hub token out of ``training_args.bin``, which Transformers pickles, also while it pushes with it."""
    if args.hub_token is not None:
        args.hub_token = _HiddenToken(args.hub_token)
