"""Teachers: the protocol, and the teacher that is a reranker."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from rerank_trainer.models.adapters import adapter_settings
from rerank_trainer.models.chains import chain_settings
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.windows import Windows
from rerank_trainer.teachers.live import LiveTeacher

logger = logging.getLogger(__name__)

# What a config says of where a model comes from and how it is used, not of what it computes.
_NO_COMPUTATION = {"_name_or_path", "architectures", "dtype", "transformers_version", "sentence_transformers"}
_NO_COMPUTATION |= {"rerank_trainer", "use_cache", "return_dict", "problem_type", "id2label", "label2id"}

TEXT_COLUMNS = ("query", "passages", "instruction")  # that every teacher is given, the last where the groups have it


@runtime_checkable
class Teacher(Protocol):
    """Gives scores to groups.

    A teacher that reads more of a group than its texts names these columns in an attribute ``columns``, a tuple; they
    are then part of what its stored scores are known by. One that is made of others names them in ``members`` and has
    ``combine(of_members)``, from the scores of each to its own; the store then keeps those of the members.

    Attributes:
        scale: What the scores are: "logit", "probability" or "rank" (whole numbers); higher is always more relevant.
        fingerprint: A text that changes whenever the scores could: of model, template and settings.
    """

    scale: str
    fingerprint: str

    def score(self, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, list[list[float]]]:
        """A mapping with ``scores``: for each group one score a passage, in the order of its ``passages``.

        Args:
            groups: Rows with ``query`` and ``passages``, and an ``instruction`` where the data set has them.
        """
        ...


def columns_read(teacher: Teacher) -> tuple[str, ...]:
    """The columns of a group that a teacher reads, those that hold its texts first."""
    return (*TEXT_COLUMNS, *(name for name in getattr(teacher, "columns", ()) if name not in TEXT_COLUMNS))


def read_column(group: Mapping[str, Any], column: str, teacher: Teacher) -> Any:
    """What a group has in a column that this teacher cannot do without.

    Raises:
        ValueError: If there is none.
    """
    value = group.get(column)
    if value is None:
        raise ValueError(
            f"a {type(teacher).__name__} reads the column {column!r}, and the group of the query {group['query']!r} "
            f"has only {[*group]}. Add it to the rows."
        )
    return value


class RerankerTeacher:
    """A reranker as teacher; its scores are logits.

    Args:
        reranker: Any reranker with a trained head.
        autocast_dtype: Compute in this type, ``torch.bfloat16`` for instance; None computes in the weights' type.
        windows: Score a passage that does not fit in windows; None cuts it.

    Raises:
        ValueError: If the reranker's head is freshly initialised: its scores would be noise.
    """

    scale = "logit"

    def __init__(
        self, reranker: Reranker, *, autocast_dtype: torch.dtype | None = None, windows: Windows | None = None
    ) -> None:
        require_trained(reranker)
        self.reranker = reranker
        self.autocast_dtype = autocast_dtype
        self.windows = windows
        self.fingerprint = fingerprint_reranker(reranker, autocast_dtype, windows)

    def score(self, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, list[list[float]]]:
        """As :meth:`Teacher.score`: the reranker's logits."""
        pairs = [(group["query"], passage) for group in groups for passage in group["passages"]]
        # whoever asks for many groups shows how far it is, over all of them
        options: Any = {"autocast_dtype": self.autocast_dtype, "windows": self.windows, "show_progress_bar": False}
        if self.reranker.template.takes_instructions:
            options["instruction"] = [group.get("instruction") for group in groups for _ in group["passages"]]
        scores = iter(self.reranker.predict(pairs, **options).tolist())
        return {"scores": [[next(scores) for _ in group["passages"]] for group in groups]}


def require_trained(reranker: Reranker) -> None:
    """Refuse a teacher that nobody has trained.

    Raises:
        ValueError: If its head is freshly initialised.
    """
    if reranker.fresh_parameters:
        raise ValueError(
            f"the teacher's parameters {list(reranker.fresh_parameters)} are freshly initialised, so its scores "
            "are random. Give a trained reranker, or train this one first with ContrastiveRerankTrainer."
        )


def as_teacher(
    teacher: str | Path | Reranker | Teacher,
    *,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> Teacher:
    """A teacher from a Hub id or folder, a reranker, or a teacher.

    Args:
        teacher: The teacher in any of these forms.
        device: Where a teacher given by name is put; by default on a GPU where there is one.
        autocast_dtype: Compute a reranker's scores in this type; None computes in the weights' type.

    Raises:
        ValueError: If it is none of these, or a live teacher.
    """
    if isinstance(teacher, str | Path):
        logger.info("loading the teacher %s", teacher)
        teacher = Reranker.from_pretrained(teacher, dtype="auto", device=device)
    if isinstance(teacher, Reranker):
        return RerankerTeacher(teacher, autocast_dtype=autocast_dtype)
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, LiveTeacher):
        raise ValueError(
            f"{type(teacher).__name__} scores in every step, so its scores cannot be written before a training or be "
            "part of an ensemble. Give it to DistillRerankTrainer(teacher=...) itself, or take CheckpointTeacher."
        )
    raise ValueError(f"teacher={teacher!r}: expected a Hub id, a folder, a Reranker, or an object with a score method")


def fingerprint_reranker(reranker: Reranker, autocast_dtype: torch.dtype | None, windows: Windows | None = None) -> str:
    """A digest of the weights, the config, the tokenizer's template and the settings that scores depend on."""
    digest = hashlib.sha256()
    add_weights(digest, reranker.model)
    template = reranker.template
    settings = (
        type(reranker.model).__name__,
        reranker.head,
        template.max_length,
        template.query_max_length,
        template.frame,
        sorted(reranker.tokenizer.get_vocab().items()),
        autocast_dtype,
        windows,
    )
    digest.update(repr(settings).encode())
    # equal weights score otherwise with other attention heads, positions or windows
    computed = {key: value for key, value in reranker.model.config.to_dict().items() if key not in _NO_COMPUTATION}
    digest.update(json.dumps(computed, sort_keys=True, default=str).encode())
    digest.update(chain_settings(reranker.model).encode())
    digest.update(adapter_settings(reranker.model).encode())
    return digest.hexdigest()


def add_weights(digest: hashlib._Hash, model: nn.Module) -> None:
    """Put all weights of a model that count into a digest, each under its name."""
    for name, value in sorted(model.state_dict().items()):
        if ".original_module." in name:
            continue  # what an adapter has replaced: a head that its base lacks is drawn anew whenever it is opened
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
