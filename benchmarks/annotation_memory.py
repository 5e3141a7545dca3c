"""Memory of annotating: the peak of `annotate` on a million groups against ten thousand, by a cheap teacher.

Every side is a process of its own. Groups are synthetic, of 8 passages of about 100 characters; the teacher scores a
passage by its length. `peak_mb` is the greatest resident memory of the process as the kernel notes it, Python and
libraries included; for rows on disk it counts the pages of the file that the kernel keeps and would give back.
`anonymous_mb` is the greatest of what it cannot give back, looked at ten times a second. The limit is
2048 MB for either.

Sides, a kind of data set and a number of groups:
    stream-10000, stream-1000000  a stream that makes its groups on demand
    disk-10000, disk-1000000      a data set on disk, as `load_groups` reads it from a file

    python benchmarks/annotation_memory.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("stream", "disk")
NUM_PASSAGES = 8


class LengthTeacher:
    """Scores a passage by its length."""

    scale, fingerprint = "logit", "the length of the passage"

    def score(self, groups: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
        return {"scores": [[float(len(passage)) for passage in group["passages"]] for group in groups]}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=10_000, help="groups of the small data set")
    parser.add_argument("--many", type=int, default=1_000_000, help="groups of the large data set")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--num_rounds", type=int, default=1)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def groups_of(num_groups: int) -> Iterator[dict[str, Any]]:
    for number in range(num_groups):
        passages = [
            f"passage {place} of group {number} " + "word " * (10 + number % 17) for place in range(NUM_PASSAGES)
        ]
        yield {"query_id": str(number), "query": f"query {number}", "passages": passages}


class MemoryWatch:
    """The greatest anonymous resident memory of this process while it is watched, in MB."""

    def __enter__(self) -> MemoryWatch:
        self.peak, self._is_over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.1):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, kilobytes / 1024)


def run_side(options: argparse.Namespace) -> None:
    import resource

    import datasets

    from rerank_trainer import annotate

    kind, number = options.side.split("-")
    num_groups = int(number)
    with tempfile.TemporaryDirectory() as folder:
        features = datasets.Features(
            query_id=datasets.Value("string"),
            query=datasets.Value("string"),
            passages=datasets.List(datasets.Value("string")),
        )
        made = {"features": features, "gen_kwargs": {"num_groups": num_groups}}
        if kind == "stream":
            groups = datasets.IterableDataset.from_generator(groups_of, **made)
        else:
            groups = datasets.Dataset.from_generator(groups_of, **made, cache_dir=f"{folder}/cache")
        start = time.perf_counter()
        with MemoryWatch() as watch:
            report = annotate(groups, LengthTeacher(), f"{folder}/scored", show_progress_bar=False)
        seconds = time.perf_counter() - start
    assert report.is_complete and report.num_pairs == num_groups * NUM_PASSAGES
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mb": peak, "anonymous_mb": watch.peak, "groups_per_second": num_groups / seconds}))


def main() -> None:
    options = parse_args()
    if options.side:
        run_side(options)
        return
    from turns import run_in_turns, summary, write_report

    pairs = [tuple(f"{kind}-{number}" for number in (options.few, options.many)) for kind in options.kinds]
    commands = {side: [sys.executable, __file__, f"--side={side}"] for pair in pairs for side in pair}
    results = run_in_turns(commands, options.num_rounds)
    rows, also = [], ("anonymous_mb", "groups_per_second")
    for pair in pairs:
        rows += summary({side: results[side] for side in pair}, "peak_mb", base=pair[0], also=also)
    label = f"peak memory against {options.few} groups (1.0)"
    write_report(options.output_dir, "annotation-memory", label, vars(options), results, rows)


if __name__ == "__main__":
    main()
