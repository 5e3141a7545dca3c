"""Origins: where a model or rows came from, as others may read it: a Hub id, or a local name without its path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from rerank_trainer.data.files import file_of

# where `datasets` keeps from which repository the files of a data set were downloaded
_DOWNLOADED = re.compile(r"hf://datasets/(?P<id>[^@]+)@")


@dataclass(frozen=True)
class Origin:
    """Where something came from.

    Attributes:
        name: What it is called; "" where nothing is known, as of rows made in memory.
        hub_id: Its id on the Hub; None where it is not known to be there.
        config: Of a data set on the Hub: its configuration.
        split: Of a data set on the Hub: its split.
        is_local: Whether it is a path.
    """

    name: str
    hub_id: str | None = None
    config: str | None = None
    split: str | None = None
    is_local: bool = False

    @classmethod
    def of_name(cls, name: str | os.PathLike[str]) -> Origin:
        """That of what a Hub id or a path names; of a path only its last part is kept.

        >>> Origin.of_name("BAAI/bge-reranker-v2-m3").hub_id, Origin.of_name("/somebody/models/mine").name
        ('BAAI/bge-reranker-v2-m3', 'mine')
        """
        path = Path(name)
        if not isinstance(name, os.PathLike) and not path.exists() and _can_be_id(name):
            return cls(name, name)
        return cls(path.name or path.resolve().name, is_local=True)

    @classmethod
    def of_rows(cls, rows: Any) -> Origin:
        """That of rows in any form that a trainer takes: a path, a Hub id, a data set."""
        if isinstance(rows, str | os.PathLike):
            path = file_of(rows)
            return cls.of_name(rows if path is None else path)
        if isinstance(rows, datasets.Dataset | datasets.IterableDataset):
            for source in rows.info.download_checksums or ():
                if match := _DOWNLOADED.match(source):
                    split = None if rows.split is None else str(rows.split)
                    return cls(match["id"], match["id"], rows.info.config_name, split)
        return cls("")


def _can_be_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
