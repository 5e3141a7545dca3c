"""Start: the process of the cases. huggingface_hub reads ``HF_ENDPOINT`` when it is imported, so that is set before."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from tests import conftest  # which keeps to loopback, and sets what the libraries read at import
from tests.hub.server import HUB, WRITER


def main(folder: Path) -> None:
    """Run all cases in a folder."""
    conftest.pytest_configure(None)  # type: ignore[arg-type]
    HUB.start()
    os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITER}
    from huggingface_hub.utils import _http

    from tests.hub import cases, failures, pushes  # noqa: F401  each adds its cases

    # the client would wait for up to 23 seconds before it gives up
    _http.time = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    cases.run_all(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
