"""Launch: a function run in processes of its own, one or a gloo group of them, which may be killed on the way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import TCPStore

TIMEOUT = 240  # seconds: a group that waits for itself must not hold up the tests

# One server imports the libraries once, those too that a training imports late; every process is a fork of it, made
# before it computes or joins a group. A library that is not installed is left out.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.trainers.runs", "sentence_transformers", "deepspeed"])


def launch(
    function: Callable[..., None], folder: Path, *, num_processes: int = 1, killed: bool = False, **options: Any
) -> None:
    """Run ``function(folder, **options)`` in each process; with ``killed``, the first must die by SIGKILL.

    Raises:
        AssertionError: If a process fails or takes too long, with the traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = [folder / f"error-{rank}.txt" for rank in range(num_processes)]
    store = _store() if num_processes > 1 else None
    port = None if store is None else store.port
    processes = [
        _CONTEXT.Process(target=_enter, args=(function, folder, options, errors[rank], rank, num_processes, port))
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    try:
        for rank, process in enumerate(processes):
            process.join(TIMEOUT)
            if killed:
                assert process.exitcode == -signal.SIGKILL, f"expected to be killed, got {process.exitcode}"
                break
            text = "\n".join(path.read_text() for path in errors if path.exists())
            assert process.exitcode == 0, f"process {rank} of {num_processes} ended with {process.exitcode}\n{text}"
    finally:
        for process in processes:
            process.kill()
            process.join()


def _enter(
    function: Callable[..., None],
    folder: Path,
    options: dict[str, Any],
    error: Path,
    rank: int,
    num_processes: int,
    port: int | None,
) -> None:
    import torch

    torch.set_num_threads(1)
    if port is not None:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
        os.environ.update({name: str(value) for name, value in group.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is there already: rank 0 makes none
    try:
        function(folder, **options)
    except BaseException:
        error.write_text(traceback.format_exc())
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _store() -> TCPStore:
    """Where a group meets. It listens from here on: a port only found free could be another's once the group starts."""
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
