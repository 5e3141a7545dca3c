"""The store of teacher scores: a shard of groups is scored once and kept under a fingerprint of teacher and texts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rerank_trainer.data.columns import GROUP_FEATURES
from rerank_trainer.data.whole_files import write_whole
from rerank_trainer.models.progress import PairProgress
from rerank_trainer.teachers.answers import checked_scores
from rerank_trainer.teachers.teacher import Teacher, columns_read

logger = logging.getLogger(__name__)

GROUPS_PER_SHARD = 256


def default_cache_dir() -> Path:
    """Where teacher scores are kept: beside the Hub's own cache."""
    return Path(HF_HOME) / "rerank_trainer" / "teacher_scores"


def add_teacher_scores(
    groups: datasets.Dataset,
    teacher: Teacher,
    *,
    cache_dir: str | Path | None = None,
    show_progress_bar: bool | None = None,
) -> datasets.Dataset:
    """The groups with a ``teacher_scores`` column, scored by the teacher or read from the store.

    A run that is killed loses at most one shard; a second run, or a second student, pays nothing. All scores are held
    in memory; :func:`annotate` writes those of any number of groups into a data set of its own.

    Args:
        groups: A data set of groups.
        teacher: Who scores.
        cache_dir: Folder of the store; None takes :func:`default_cache_dir`.
        show_progress_bar: Whether to show pairs scored, pairs a second and time left; None does from a thousand pairs
            on.

    Raises:
        ValueError: If the groups have teacher scores already that the teacher does not read, the teacher returns other
            numbers of scores or a score that is not finite, or a stored file is damaged.

    >>> class LengthTeacher:
    ...     scale, fingerprint = "logit", "the length of the passage"
    ...     def score(self, groups):
    ...         return {"scores": [[float(len(passage)) for passage in group["passages"]] for group in groups]}
    >>> groups = datasets.Dataset.from_dict({"query": ["1 + 1"], "passages": [["two", "eleven"]]})
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     add_teacher_scores(groups, LengthTeacher(), cache_dir=folder)["teacher_scores"][0]
    [3.0, 6.0]
    """
    if "teacher_scores" in groups.column_names and "teacher_scores" not in columns_read(teacher):
        raise ValueError(
            "the groups have a column teacher_scores already and a teacher is given: which one counts? Pass "
            'teacher=None to use the column, or drop it: dataset.remove_columns("teacher_scores").'
        )
    scores = stored_scores(groups, teacher, cache_dir=cache_dir, show_progress_bar=show_progress_bar)
    others = groups.select_columns([name for name in groups.column_names if name != "teacher_scores"])
    return others.add_column("teacher_scores", scores, feature=GROUP_FEATURES["teacher_scores"])


def stored_scores(
    groups: datasets.Dataset,
    teacher: Teacher,
    *,
    cache_dir: str | Path | None = None,
    show_progress_bar: bool | None = None,
) -> list[list[float]]:
    """The teacher's scores of the groups, scored or read from the store; arguments as in :func:`add_teacher_scores`.

    Raises:
        ValueError: As there, but for groups that have teacher scores.
    """
    if members := getattr(teacher, "members", None):
        options: dict[str, Any] = {"cache_dir": cache_dir, "show_progress_bar": show_progress_bar}
        combined: list[list[float]] = cast(Any, teacher).combine([stored_scores(groups, m, **options) for m in members])
        return combined
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    given = groups.select_columns([name for name in columns_read(teacher) if name in groups.column_names])
    num_pairs = sum(len(passages) for passages in given["passages"])
    scores: list[list[float]] = []
    num_scored = 0
    with PairProgress(num_pairs, show=show_progress_bar, description="Teacher scores") as progress:
        for shard in _shards(given):
            shard_size = sum(len(group["passages"]) for group in shard)
            path = folder / f"{_fingerprint(teacher, shard)}.safetensors"
            if path.exists():
                shard_scores = _read(path, shard)
                progress.skip(shard_size)
            else:
                progress.begin(shard_size)
                shard_scores = checked_scores(teacher.score(shard), shard, first_group=len(scores))
                _write(path, shard_scores)
                progress.end()
                num_scored += shard_size
            scores.extend(shard_scores)
    logger.info("teacher scores: %d pairs scored, %d read from %s", num_scored, num_pairs - num_scored, folder)
    return scores


def _shards(groups: datasets.Dataset) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(groups), GROUPS_PER_SHARD):
        yield groups.select(range(start, min(start + GROUPS_PER_SHARD, len(groups)))).to_list()


def _fingerprint(teacher: Teacher, shard: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(teacher.fingerprint.encode())
    digest.update(json.dumps(shard, sort_keys=True).encode())
    return digest.hexdigest()


def _write(path: Path, scores: list[list[float]]) -> None:
    tensors = {
        "scores": torch.tensor([score for group in scores for score in group], dtype=torch.float32),
        "lengths": torch.tensor([len(group) for group in scores], dtype=torch.int64),
    }
    write_whole(path, save(tensors))  # a killed run leaves no half shard


def _read(path: Path, shard: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    try:
        tensors = load_file(path)
        lengths = tensors["lengths"].tolist()
        groups = [part.tolist() for part in tensors["scores"].split(lengths)]
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise ValueError(
            f"the stored teacher scores {path} are damaged ({error}). Delete the file: it is made again."
        ) from error
    if lengths != [len(group["passages"]) for group in shard]:
        raise ValueError(f"the stored teacher scores {path} belong to other groups. Delete the file: it is made again.")
    return groups
