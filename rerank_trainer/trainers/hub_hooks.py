"""Hub hooks: the methods of the Transformers Trainer that we override to push; and resuming from the Hub."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from rerank_trainer.models.checkpoint import copy_loader_files
from rerank_trainer.models.hub import (
    HUB_ADDRESS,
    checked_repo_id,
    explained,
    folder_from_hub,
    hub_failure,
    make_branch,
    warn_of_local_base,
)
from rerank_trainer.trainers.saving import verify_folder

if TYPE_CHECKING:
    from rerank_trainer.trainers.hooks import GroupHooks

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last-checkpoint"  # Transformers' name for the folder that hub_strategy="checkpoint" pushes


class HubHooks(Trainer):
    """The Transformers Trainer taught to push whole rerankers, one push at a time, and to say what failed."""

    hub_model_id: str | None
    push_in_progress: Any = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in Transformers, which makes the repository; the branch of ``hub_revision`` is made as well.

        Raises:
            ValueError: If the name is not allowed.
            OSError: If the Hub refuses, or cannot be reached; in the constructor nothing is trained yet.
        """
        if not self.is_world_process_zero():
            return
        name = checked_repo_id(repo_name(self.args), what="hub_model_id")
        with explained(f"making the repository {name!r}"):
            super().init_hf_repo(token=token, private=private)
            assert self.hub_model_id is not None
            make_branch(self.hub_model_id, self.args.hub_revision, token=token or self.args.hub_token)
        warn_of_local_base(self.model)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers: the model is saved in ``output_dir``, verified, and what is in that folder is pushed.

        Left out are its ``checkpoint-*`` folders and names that begin with an underscore.

        Raises:
            ValueError: If the folder that was saved scores otherwise than the model.
            OSError: If the Hub refuses, or cannot be reached. The folder is whole then, and may be pushed again.
        """
        self._finish_current_push()  # it may still read the folder that is written now
        if not self.args.push_to_hub or revision is not None:
            self.save_model(_internal_call=True)  # the Hub is asked before the parent saves: nothing may be lost
        with explained(f"the push to {self.hub_model_id or repo_name(self.args)!r}", then=self._how_to_push_again()):
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            if self.hub_model_id is not None:  # in the main process
                make_branch(self.hub_model_id, revision, token=token or self.args.hub_token)
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)

    def _push_from_checkpoint(self: GroupHooks, checkpoint_folder: str) -> None:
        """As in Transformers, which copies only the files it knows: ours are written beside them, and all verified.

        One push reads ``output_dir`` at a time. A checkpoint that is saved meanwhile is left out, or waits where it
        must be pushed (``hub_always_push``), or where ``save_total_limit`` may delete the folder that is being pushed.
        """
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        waits = self.args.hub_always_push or self.args.save_total_limit is not None
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not waits:
            logger.info("%s is not pushed: the push before it has not ended", checkpoint_folder)
            return
        self._finish_current_push()
        copy_loader_files(checkpoint_folder, self.args.output_dir)
        if self.args.verify_checkpoints != "every_save":  # there it is verified already
            verify_folder(self, checkpoint_folder)
        assert self.args.output_dir is not None
        self.card.write(self, self.args.output_dir, files=checkpoint_folder)  # which super() copies there
        super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        """As in Transformers, which leaves a push that failed unsaid; training goes on."""
        super()._finish_current_push()
        for job in self.push_in_progress.jobs if self.push_in_progress is not None else ():
            if (error := job.exception()) is not None:
                reason = hub_failure(error) or f"{type(error).__name__}: {error}."
                logger.warning("a push to %r failed: %s %s", self.hub_model_id, reason, self._how_to_push_again())
        self.push_in_progress = None

    def _how_to_push_again(self) -> str:
        folder = Path(self.args.output_dir or ".").absolute()
        command = ["hf", "upload", self.hub_model_id or repo_name(self.args), str(folder), "."]
        command += ["--exclude", f"{PREFIX_CHECKPOINT_DIR}-*", "--exclude", "_*"]
        if self.args.hub_revision is not None:
            command += ["--revision", self.args.hub_revision]
        again = f"Push it again by trainer.push_to_hub(), or by {shlex.join(command)}"
        return f"What was trained is whole in {folder}. {again}"


def repo_name(args: TrainingArguments) -> str:
    """The repository that a trainer pushes to, as Transformers names it."""
    return args.hub_model_id or Path(args.output_dir or ".").absolute().name


def local_checkpoint(resume_from: str | bool | None, args: TrainingArguments) -> str | bool | None:
    """The checkpoint to resume from, downloaded if it is on the Hub: one process loads it, then all find it.

    Args:
        resume_from: What ``train`` was given; ``hf://namespace/name/folder`` is on the Hub.
        args: Those of the trainer.

    Raises:
        ValueError: If there is no such folder.
        OSError: If the Hub refuses, or cannot be reached.
    """
    if not isinstance(resume_from, str) or not resume_from.startswith(HUB_ADDRESS):
        return resume_from
    with args.main_process_first(local=True, desc="download of the checkpoint"):
        return folder_from_hub(resume_from, default=LAST_CHECKPOINT, token=args.hub_token)
