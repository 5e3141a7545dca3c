"""The Hub: names of repositories, folders that go there and come from there, and what to do where that fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import create_branch, create_repo, parse_hf_uri, snapshot_download, upload_folder
from huggingface_hub.errors import HfUriError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

HUB_ADDRESS = "hf://"
_TOKEN = "a token with write access, by `hf auth login` or the variable HF_TOKEN"
_REMEDIES = {
    401: f"the Hub does not know the token, or was given none. Give {_TOKEN}.",
    403: f"the token may not do this. Give {_TOKEN}, to that namespace; or choose a repository under your own name.",
    404: f"there is no such repository or branch, or the token may not see it. Look at the name, and give {_TOKEN}.",
    409: "something else changed the repository at the same time. Try again.",
    429: "the Hub was asked too often. Wait some minutes and try again.",
}


def checked_repo_id(repo_id: str, *, what: str = "repo_id") -> str:
    """The name of a repository, unless the Hub would not allow it.

    Args:
        repo_id: A name, or a namespace and a name with a slash between them.
        what: Where the name comes from, for the error.

    Raises:
        ValueError: With what is allowed.

    >>> checked_repo_id("me/my-reranker")
    'me/my-reranker'
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{what}={repo_id!r} is no name of a repository: {error} Give 'name' or 'namespace/name' of letters, "
            "digits, '-', '_' and '.', such as 'me/my-reranker'."
        ) from error
    return repo_id


@contextmanager
def explained(doing: str, *, then: str = "") -> Iterator[None]:
    """In here a failure of the Hub, or of the way to it, is raised as an ``OSError`` that says what to do.

    Args:
        doing: What is tried, such as "the push to 'me/reranker'".
        then: What is there all the same, and how to try again.
    """
    try:
        yield
    except Exception as error:
        reason = hub_failure(error)
        if reason is None:
            raise
        raise OSError(f"{doing} failed: {reason} {then}".rstrip()) from error


def hub_failure(error: BaseException) -> str | None:
    """In words, why the Hub failed and the remedy; None for an error that has nothing to do with the Hub."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError | OfflineModeIsEnabled):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it."
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is None:
        return f"the connection to the Hub broke ({type(cause).__name__}: {cause}). Try again when it is back."
    said = getattr(cause, "server_message", None)
    found = f"{status}: {said}" if said else str(status)
    if status >= 500:
        return f"the Hub itself is in trouble ({found}). Try again later."
    return f"({found}) {_REMEDIES.get(status, 'the Hub refused it.')}"


def make_branch(repo_id: str, revision: str | None, *, token: str | None) -> None:
    """Make sure that a branch is there to be pushed to: the Hub makes none by itself."""
    if revision is not None and not revision.startswith("refs/"):
        create_branch(repo_id, branch=revision, token=token, exist_ok=True)


def folder_from_hub(address: str, *, default: str, token: str | None = None) -> str:
    """A folder of a repository, downloaded into the Hub's cache.

    Args:
        address: ``hf://namespace/name``, with ``@revision`` behind it or without, and then the folder.
        default: The folder of an address without one.
        token: With read access; None takes ``HF_TOKEN`` or the one of ``hf auth login``.

    Raises:
        ValueError: If it is no such address, or the repository has no such folder.
        OSError: If the Hub refuses, or cannot be reached.
    """
    try:
        parts = parse_hf_uri(address)
    except HfUriError as error:
        raise ValueError(
            f"{error} Write the folder of a repository as hf://namespace/name/{default}, of another branch as "
            f"hf://namespace/name@branch/{default}."
        ) from error
    path = parts.path_in_repo or default
    with explained(f"the download of {address}"):
        options = {"revision": parts.revision, "allow_patterns": f"{path}/*", "token": token}
        folder = Path(snapshot_download(parts.id, **options), path)
    if not folder.is_dir():
        raise ValueError(f"{address}: the repository {parts.id} has no folder {path!r} there")
    return str(folder)


def warn_of_local_base(model: PreTrainedModel | PeftModel) -> None:
    """Say that an adapter that is pushed names a base that only this machine has."""
    base = str(model.get_base_model().name_or_path) if isinstance(model, PeftModel) else ""
    if base and Path(base).is_dir():
        logger.warning(
            "the adapter's base is the folder %s, and only this machine has it: nobody else can open what is pushed. "
            "Push the base first, Reranker.from_pretrained(...).push_to_hub(...), and train on it by its Hub id.",
            base,
        )


class PushToHub:
    """What :class:`Reranker` does on the Hub."""

    model: PreTrainedModel | PeftModel
    save_pretrained: Any

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload reranker",
        token: str | None = None,
    ) -> str:
        """Push what ``save_pretrained`` writes; the commit's address comes back.

        Args:
            repo_id: The repository, such as "me/my-reranker"; made if there is none.
            private: Whether a repository that is made is private; None takes the namespace's default.
            revision: The branch, made if there is none; None takes "main".
            commit_message: What the history shows.
            token: With write access; None takes ``HF_TOKEN`` or the one of ``hf auth login``.

        Raises:
            ValueError: If the name is not allowed, or no checkpoint holds the adapter's base as it is.
            OSError: If the Hub refuses, or cannot be reached.

        >>> reranker = Reranker.from_pretrained("out")  # doctest: +SKIP
        >>> reranker.push_to_hub("me/my-reranker", private=True)  # doctest: +SKIP
        'https://huggingface.co/me/my-reranker/commit/...'
        """
        checked_repo_id(repo_id)
        warn_of_local_base(self.model)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            with explained(f"the push to {repo_id!r}"):
                repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
                make_branch(repo_id, revision, token=token)
                where = {"repo_id": repo_id, "folder_path": folder, "revision": revision}
                return str(upload_folder(**where, commit_message=commit_message, token=token).commit_url)
