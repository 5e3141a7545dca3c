"""Students of a comparison: a model by name or as an object, how it is trained, and how each cell gets a fresh one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank_trainer.data.origins import Origin
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.teachers.teacher import Teacher, fingerprint_reranker

# Files of a checkpoint up to this size are read for its digest; of larger ones the size counts.
_READ_WHOLE = 2**20


@dataclass(frozen=True, eq=False)
class Student:
    """A model that every recipe trains from the same start.

    Args:
        model: A Hub id or folder, or a :class:`Reranker`, of which each cell trains a copy. A fresh head is drawn from
            the cell's seed, so it is the same under every recipe; that of a ``Reranker`` is the one it has.
        name: In tables; None takes that of the model.
        arguments: Of :class:`RerankTrainingArguments`, for this student alone: ``learning_rate``,
            ``per_device_train_batch_size``, ``model_init_kwargs={"keep_layers": 3}`` and others.
        options: Of the trainer: ``lora``, ``peft_config``, ``load_in_4bit``, ``quantization_config``.

    Raises:
        ValueError: If a model that is an object comes without a name, or an option is not known.
    """

    model: str | Path | Reranker
    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name is None:
            if isinstance(self.model, Reranker):
                raise ValueError("a student that is a Reranker needs a name: Student(reranker, name=...)")
            object.__setattr__(self, "name", Origin.of_name(self.model).name)
        known = {"lora", "peft_config", "load_in_4bit", "quantization_config"}
        if unknown := set(self.options) - known:
            raise ValueError(
                f"student {self.name!r}: options {sorted(unknown)} are not known; expected {sorted(known)}"
            )

    def start(self) -> str | Path | Reranker:
        """What a trainer is given: the name, or a copy of the object."""
        return copy.deepcopy(self.model) if isinstance(self.model, Reranker) else self.model

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as plain values."""
        options = {name: str(value) for name, value in self.options.items()}
        return {"model": model_digest(self.model), "arguments": dict(self.arguments), "options": options}


def as_students(students: Any) -> dict[str, Student]:
    """Students by name, from one or a list of names, rerankers, objects and mappings of the arguments; or a dict.

    Raises:
        ValueError: If there is none, one is none of these, or a name comes twice.
    """
    if isinstance(students, Mapping) and "model" not in students:
        named = [_as_student(value, str(name)) for name, value in students.items()]
    else:
        several = isinstance(students, Sequence) and not isinstance(students, str)
        named = [_as_student(value, None) for value in (students if several else [students])]
    names = [str(student.name) for student in named]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"students {names}: expected one or more with names of their own; Student(..., name=...) sets it"
        )
    return dict(zip(names, named, strict=True))


def _as_student(given: Any, name: str | None) -> Student:
    if isinstance(given, Student):
        return given if name is None else Student(given.model, name, given.arguments, given.options)
    if isinstance(given, str | Path | Reranker):
        return Student(given, name)
    if isinstance(given, Mapping):
        try:
            return Student(**{"name": name, **given})
        except TypeError as error:
            raise ValueError(f"student {dict(given)}: expected model, name, arguments and options ({error})") from error
    raise ValueError(f"student {given!r}: expected a Hub id, a folder, a Reranker, a Student, or a mapping")


def model_digest(model: Any) -> dict[str, str] | None:
    """By what a model is known again, without its path: a name and a digest; of a Hub id its name alone."""
    if model is None:
        return None
    if isinstance(model, Reranker):
        return {"name": type(model.model).__name__, "digest": fingerprint_reranker(model, None)[:16]}
    if not isinstance(model, str | Path):
        assert isinstance(model, Teacher)
        return {"name": type(model).__name__, "digest": hashlib.sha256(model.fingerprint.encode()).hexdigest()[:16]}
    name = Origin.of_name(model).name
    if not Path(model).is_dir():
        return {"name": name}
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(model).rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(model)} {size}".encode())
        if size <= _READ_WHOLE:
            digest.update(path.read_bytes())
    return {"name": name, "digest": digest.hexdigest()[:16]}
