"""The plan: what a recipe prepares, trains and judges, where each part of it lies, and what is finished.

Nothing here imports PyTorch: the driver asks what is left to do in a moment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CONTRASTIVE, DISTILLED = "contrastive", "distilled"
METHODS = (CONTRASTIVE, DISTILLED)


@dataclass(frozen=True)
class Run:
    """One model trained by one method."""

    model: str
    method: str

    def __str__(self) -> str:
        return f"{self.model}-{self.method}"


def recipe_and_run(description: str | None, arguments: list[str] | None) -> tuple[Recipe, Run]:
    """What a script for one model by one method is told on its command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--model", required=True, help="a file in configs/, without .yaml")
    parser.add_argument("--method", required=True, choices=METHODS)
    options = parser.parse_args(arguments)
    return Recipe.read(options.recipe), Run(options.model, options.method)


@dataclass(frozen=True)
class Recipe:
    """A recipe, as its YAML file has it.

    Attributes:
        folder: Where the file lies; names in it are relative to here.
        work_dir: Where everything is written, relative to where one works; machines must share it.
        seed: Of the choice of negatives, of fresh heads, of the order of groups.
        train: Which rows are trained on, see ``prepare.py``.
        evaluate: What is judged on, see ``prepare.py`` and ``judge.py``.
        teacher: The model that is trained contrastively and teaches; the name of a file in ``configs``.
        students: The models that are trained by both methods; one may be the teacher's own.
        arguments: What every training is given, see ``train.py``; the files in ``configs`` add their own.
        launch: A file of accelerate: how many processes, on which machines.
        configs: The folder of the models' files.
    """

    folder: Path
    work_dir: Path
    seed: int
    train: dict[str, Any]
    evaluate: dict[str, Any]
    teacher: str
    students: list[str]
    arguments: dict[str, Any] = field(default_factory=dict)
    launch: str = "accelerate/multi_gpu.yaml"
    configs: str = "configs"

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a file.

        Raises:
            ValueError: If something in it is not known, or missing.
        """
        given = {**read_yaml(path), "folder": Path(path).resolve().parent}
        names = [each.name for each in dataclasses.fields(cls)]
        needed = [each.name for each in dataclasses.fields(cls) if _has_no_default(each)]
        unknown, missing = sorted(set(given) - set(names)), sorted(set(needed) - set(given))
        if unknown or missing:
            raise ValueError(f"{path}: not known {unknown}, missing {missing}; a recipe has {names[1:]}")
        recipe = cls(**{**given, "work_dir": Path(given["work_dir"]).resolve()})
        for model in (recipe.teacher, *recipe.students):
            recipe.settings(model)  # a name without a file is refused before any work
        return recipe

    def path(self, name: str) -> Path:
        """Of a file beside the recipe."""
        return self.folder / name

    def beside(self, name: str) -> str:
        """The path of what lies beside the recipe, else the name as it is: an id on the Hub."""
        return str(self.path(name)) if self.path(name).exists() else name

    def settings(self, model: str) -> dict[str, Any]:
        """What the file of a model says, over what the recipe says of every training.

        Raises:
            ValueError: If there is no such file.
        """
        file = self.path(self.configs) / f"{model}.yaml"
        if not file.is_file():
            found = sorted(path.stem for path in file.parent.glob("*.yaml"))
            raise ValueError(f"model {model!r}: {file} is not there; the folder has {found}")
        return {**self.arguments, **read_yaml(file)}

    @property
    def teacher_run(self) -> Run:
        """The teacher's own training."""
        return Run(self.teacher, CONTRASTIVE)

    @property
    def student_runs(self) -> list[Run]:
        """Every student by both methods, without the training that is the teacher's."""
        runs = [Run(model, method) for model in self.students for method in METHODS]
        return [run for run in runs if run != self.teacher_run]

    @property
    def runs(self) -> list[Run]:
        """All trainings, the teacher's first."""
        return [self.teacher_run, *self.student_runs]

    @property
    def train_file(self) -> Path:
        """The groups that all are trained on."""
        return self.work_dir / "data" / "train.parquet"

    def eval_file(self, name: str) -> Path:
        """The groups of an evaluation set."""
        return self.work_dir / "data" / "evaluate" / f"{name}.parquet"

    @property
    def scores_dir(self) -> Path:
        """The groups with the teacher's scores, as ``rerank_trainer.annotate`` writes them."""
        return self.work_dir / "teacher_scores"

    def model_dir(self, run: Run) -> Path:
        """A trained model, and the checkpoints on its way."""
        return self.work_dir / "models" / str(run)

    def result_files(self, run: Run, name: str) -> tuple[Path, Path]:
        """The figures of a model on an evaluation set, and those of each query."""
        folder = self.work_dir / "results" / str(run)
        return folder / f"{name}.json", folder / f"{name}.parquet"

    def refuse_other_settings(self, *, keep: bool = True) -> None:
        """Refuse a work folder that was begun with other settings.

        Args:
            keep: Whether to keep these settings there, beside the data and trainings that they decide.

        Raises:
            ValueError: Naming what differs.
        """
        own: dict[str, Any] = {"seed": self.seed, "train": self.train, "teacher": self.teacher}
        own["evaluate"] = {name: value for name, value in self.evaluate.items() if name != "sets"}
        own |= {f"set {name}": options for name, options in self.evaluate["sets"].items()}
        own |= {model: self.settings(model) for model in dict.fromkeys([self.teacher, *self.students])}
        file = self.work_dir / "settings.json"
        begun = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for name in sorted(begun.keys() & own.keys()):
            if begun[name] != own[name]:
                raise ValueError(
                    f"{self.work_dir} was begun with {name}: {begun[name]}, and the recipe says {own[name]}. Give "
                    "another work_dir, or delete what has to be made again and the line in settings.json."
                )
        if keep and not own.keys() <= begun.keys():  # students and sets may join later
            write_json(file, {**begun, **own})


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A file of YAML that holds a mapping.

    Raises:
        ValueError: If it holds something else.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping from names to values, found a {type(content).__name__}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # several processes may write the same
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _has_no_default(each: dataclasses.Field[Any]) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
