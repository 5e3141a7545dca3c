"""The trainer's card: what a trainer knows of its training, for the model card in every folder that it writes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from rerank_trainer.data.origins import Origin
from rerank_trainer.data.streams import StreamGroups
from rerank_trainer.evaluation.metrics import ranking_metrics
from rerank_trainer.model_card import TASK, Evaluation, Training, base_of, is_ranking_metric, reranker_card, save_card
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.serving import serving_commands
from rerank_trainer.teachers.check import stand_at_one_end
from rerank_trainer.teachers.teacher import RerankerTeacher
from rerank_trainer.trainers.card_facts import training_facts
from rerank_trainer.trainers.metrics import GroupMetrics
from rerank_trainer.trainers.sources import TrainSource, is_several

if TYPE_CHECKING:
    from rerank_trainer.trainers.base import RerankTrainer

# Figures of an evaluation that say nothing of the ranking.
_NOT_SHOWN = re.compile(r"runtime|.*_per_second|loss|truncated|score_std|tie_share|.*_time|epoch")
_SET_AND_METRIC = re.compile(r"(?P<set>.+)_(?P<metric>[a-z]+(@\d+)?)")  # as evaluators of sentence-transformers name
_NUM_EXAMPLE_PASSAGES = 2


class TrainingCard:
    """Writes the model cards of one trainer.

    Args:
        reranker: The student.
        train_dataset: The training rows, as the trainer was given them: afterwards nobody knows where they came from.
        eval_dataset: The evaluation rows, as given.

    Attributes:
        parity: The optimizer step at which a folder was last verified, and the differences that were found.
        measured: The groups of the last evaluation under each prefix; None where they are no groups.
    """

    def __init__(self, reranker: Reranker, train_dataset: Any, eval_dataset: Any) -> None:
        self.base = base_of(reranker)
        self.data = [_named(origin, name) for name, origin in _origins(train_dataset).items()]
        self.eval_data = _origins(eval_dataset)
        self.parity: tuple[int, dict[str, float]] = (-1, {})
        self.measured: dict[str, Any] = {}
        self._references: dict[str, tuple[Any, dict[str, float], dict[str, float]]] = {}  # by prefix, with the rows

    def write(
        self,
        trainer: RerankTrainer,
        folder: str | Path,
        *,
        is_merged: bool = False,
        files: str | Path | None = None,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of a folder, in the main process; what a person wrote stays, see :func:`save_card`.

        Args:
            trainer: The trainer, at this point of its training.
            folder: A saved student.
            is_merged: Whether the folder holds full weights into which an adapter was merged.
            files: Where the student's files stand already, if not in the folder.
            language: Code of the language, or several.
            license: Its identifier.
            tags: More tags.
            model_name: The title; by default the repository's or the folder's name.
            finetuned_from: Hub id of the base, where the trainer does not know it.
            tasks: Task identifiers under which the Hub lists the metrics; by default "text-ranking".
            dataset_tags: Hub ids of the training sets.
            dataset: What they are called, in the same order.
            dataset_args: What is to be said of them, such as a configuration, in the same order.
        """
        if not trainer.is_world_process_zero():
            return
        tags_and_names = itertools.zip_longest(*map(_listed, (dataset_tags, dataset, dataset_args)))
        data = [Origin(_with(name or tag, about), tag) for tag, name, about in tags_and_names]
        repo_id, name = _names(trainer, Path(folder))
        card = reranker_card(
            trainer.reranker,
            name=model_name or name,
            repo_id=repo_id,
            is_merged=is_merged,
            base=self.base if finetuned_from is None else Origin.of_name(finetuned_from),
            training=self._training(trainer, data or self.data),
            evaluations=self._evaluations(trainer),
            parity=self.parity[1] if self.parity[0] == trainer.state.global_step else None,
            examples=_examples(trainer),
            serving=_serving(Path(files or folder), called=repo_id or name),
            tasks=_listed(tasks) or (TASK,),
            language=language,
            license=license,
            tags=_listed(tags),
        )
        save_card(card, folder)

    def _training(self, trainer: RerankTrainer, data: Sequence[Origin]) -> Training:
        objective = trainer.objective
        method = "distillation" if objective.needs_teacher else "contrastive" if objective.needs_labels else ""
        teacher = _teacher(getattr(trainer, "teacher", None)) if objective.needs_teacher else None
        return Training(method, objective, data=data, teacher=teacher, facts=training_facts(trainer))

    def _evaluations(self, trainer: RerankTrainer) -> list[Evaluation]:
        """The figures of the model that is in memory, of each set, as the trainer's log has them."""
        best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        history = trainer.state.log_history
        before = {prefix: entry for prefix, entry in _evaluation_entries(history) if entry["step"] == 0}
        evaluations = []
        for prefix, entry in _of_model(history, best).items():
            name = prefix.removeprefix("eval").removeprefix("_")
            groups = self.measured.get(prefix)
            is_own = groups is not None and groups is _groups(trainer, name)
            own, others = _figures(trainer, prefix, entry)
            first_stage, teacher = self._references_of(trainer, prefix, own)
            earlier = before.get(prefix, entry)
            if own:
                evaluations.append(
                    Evaluation(
                        name,
                        own,
                        first_stage=first_stage,
                        teacher=teacher,
                        before={} if earlier is entry else _figures(trainer, prefix, earlier)[0],
                        step=entry["step"],
                        num_queries=None if groups is None else len(groups),
                        origin=self.eval_data.get(name, Origin("")) if is_own else Origin(""),
                    )
                )
            evaluations += _by_evaluators(trainer, others, entry["step"])
        return evaluations

    def _references_of(
        self, trainer: RerankTrainer, prefix: str, own: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The figures of the passages as they stand and of the teacher, where the evaluation rows tell them."""
        groups = self.measured.get(prefix)
        metrics = [metric for metric in own if is_ranking_metric(metric)]
        if groups is None or not metrics or not isinstance(trainer.compute_metrics, GroupMetrics):
            return {}, {}
        if prefix not in self._references or self._references[prefix][0] is not groups:
            self._references[prefix] = (groups, *_reference_figures(groups, metrics))
        return self._references[prefix][1:]


def _reference_figures(groups: Any, metrics: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    labels = groups["labels"][:]
    missed = groups["missed_gains"][:] if "missed_gains" in groups.column_names else None
    first_stage: dict[str, float] = {}
    teacher: dict[str, float] = {}
    telling = [values for values in labels if len(set(values)) > 1]
    if telling and not stand_at_one_end(telling):  # else the order was made from the labels
        places = [[-float(place) for place in range(len(values))] for values in labels]
        first_stage = ranking_metrics(places, labels, missed, metrics=metrics)
    if "teacher_scores" in groups.column_names:
        teacher = ranking_metrics(groups["teacher_scores"][:], labels, missed, metrics=metrics)
    return first_stage, teacher


def _evaluation_entries(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of the log that are evaluations, one a set, and the prefix of their figures' names."""
    for entry in history:
        for key in entry:
            if key.endswith("_runtime") and key != "train_runtime":
                yield key.removesuffix("_runtime"), entry


def _of_model(history: Sequence[Mapping[str, Any]], best_step: int | None) -> dict[str, Mapping[str, Any]]:
    """The last evaluation of each set that is of the model in memory: of the best one, when training has loaded it."""
    end = max((place for place, entry in enumerate(history) if "train_runtime" in entry), default=None)
    after_end = [] if end is None else history[end + 1 :]
    entries = dict(_evaluation_entries(history))
    if end is not None and best_step is not None:
        entries = dict(_evaluation_entries([entry for entry in history[:end] if entry["step"] == best_step]))
    return entries | dict(_evaluation_entries(after_end))


def _figures(
    trainer: RerankTrainer, prefix: str, entry: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of a set in an entry of the log, and those of evaluators that stand beside them, by name."""
    own: dict[str, float] = {}
    others: dict[str, float] = {}
    for key, value in entry.items():
        name = key.removeprefix(f"{prefix}_")
        is_of_set = name != key
        if not is_of_set:
            name = key.removeprefix("eval_")
        if name == key or _NOT_SHOWN.fullmatch(name) or not isinstance(value, int | float):
            continue
        is_measured_here = name in trainer.args.eval_metrics or not isinstance(trainer.compute_metrics, GroupMetrics)
        (own if is_of_set and is_measured_here and not _of_evaluator(name) else others)[name] = float(value)
    return own, others


def _of_evaluator(name: str) -> re.Match[str] | None:
    """The parts of a figure that is named as evaluators of sentence-transformers name theirs."""
    match = _SET_AND_METRIC.fullmatch(name)
    return match if match and is_ranking_metric(match["metric"]) else None


def _by_evaluators(trainer: RerankTrainer, figures: Mapping[str, float], step: int) -> list[Evaluation]:
    """The figures of evaluators: by set where their names show one, in which "base" is the order of the first stage."""
    sets: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        match = _of_evaluator(name)
        place = (match["set"], match["metric"]) if match else (type(trainer.evaluator).__name__, name)
        sets.setdefault(place[0], {})[place[1]] = value
    return [
        Evaluation(name, metrics, first_stage=sets.get(f"{name}_base", {}), step=step)
        for name, metrics in sets.items()
        if name.removesuffix("_base") not in sets or not name.endswith("_base")
    ]


def _groups(trainer: RerankTrainer, name: str) -> Any:
    """The trainer's own evaluation rows of a name; None where it does not hold such."""
    dataset: Any = trainer.eval_dataset
    if isinstance(dataset, dict):
        dataset = dataset.get(name)
    elif name:
        dataset = None
    return getattr(dataset, "groups", None)


def _origins(rows: Any) -> dict[str, Origin]:
    """Where rows came from, by name; of a single data set by the name ""."""
    if not is_several(rows):
        return {} if rows is None else {"": Origin.of_rows(rows)}
    parts = {name: part.rows if isinstance(part, TrainSource) else part for name, part in rows.items()}
    return {name: Origin.of_rows(part) for name, part in parts.items()}


def _named(origin: Origin, name: str) -> Origin:
    return origin if origin.name else Origin(name)


def _teacher(teacher: Any) -> Origin:
    """Where a teacher came from: a name, a reranker, or an object of one's own, of which only the class is known."""
    if teacher is None:
        return Origin("")
    reranker = teacher.reranker if isinstance(teacher, RerankerTeacher) else teacher
    if isinstance(reranker, Reranker):
        name = reranker.model.name_or_path
        return Origin.of_name(name) if name else Origin(type(reranker.model).__name__)
    return Origin.of_name(teacher) if isinstance(teacher, str | Path) else Origin(type(teacher).__name__)


def _names(trainer: RerankTrainer, folder: Path) -> tuple[str, str]:
    """What snippets open, and the title: the repository of the output folder, or the name of another folder."""
    output = Path(trainer.args.output_dir or ".").resolve()
    is_checkpoint = folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
    repo_id = getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id
    if repo_id is not None and (folder.resolve() == output or is_checkpoint):
        return repo_id, repo_id.split("/")[-1]
    return folder.resolve().name, output.name if is_checkpoint else folder.resolve().name


def _serving(folder: Path, *, called: str) -> str | None:
    """How servers start the saved student; None where the folder holds none yet."""
    if not any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
        return None
    return "\n\n".join(serving.markdown() for serving in serving_commands(folder, called=called))


def _examples(trainer: RerankTrainer) -> list[dict[str, Any]]:
    """The first training groups, as many as the arguments ask for, each with its first passages."""
    dataset: Any = trainer.train_dataset
    groups = dataset if isinstance(dataset, StreamGroups) else getattr(dataset, "groups", ())
    columns = ("passages", "labels", "teacher_scores")
    return [
        {"query": group["query"]}
        | {name: group[name][:_NUM_EXAMPLE_PASSAGES] for name in columns if group.get(name) is not None}
        for group in itertools.islice(groups, getattr(trainer.args, "card_examples", 0))
    ]


def _listed(values: str | list[str] | None) -> list[str]:
    return [] if values is None else [values] if isinstance(values, str) else list(values)


def _with(name: str | None, about: str | None) -> str:
    return f"{name or ''}{f' ({about})' if about else ''}".strip()
