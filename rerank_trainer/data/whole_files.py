"""Whole files: a file has all of its bytes or is not there, whenever the process or the machine stops."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes, *, beside: Path | None = None) -> None:
    """Write a file under another name, wait until the disk has it, and rename it.

    Args:
        path: The file; one that is there is replaced.
        content: All of its bytes.
        beside: The folder of the other name, on the same disk; None takes the file's own.
    """
    part = (beside or path.parent) / f"{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the name is in the folder, which the disk must have, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
