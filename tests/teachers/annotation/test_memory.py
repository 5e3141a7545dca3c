"""Memory: annotating many groups takes what annotating few does; a million: ``benchmarks/annotation_memory.py``."""

from __future__ import annotations

import tracemalloc

import datasets
import pyarrow as pa
import pytest

from rerank_trainer.teachers.annotation.annotate import annotate


class LengthTeacher:
    scale, fingerprint = "logit", "lengths"

    def score(self, groups):
        return {"scores": [[float(len(passage)) for passage in group["passages"]] for group in groups]}


def rows_of(num_groups):
    for number in range(num_groups):
        passages = [f"{place} {number} " + "word " * 20 for place in range(4)]
        yield {"query": f"query {number}", "passages": passages, "labels": [1.0, 0.0, 0.0, 0.0]}


def peak_of(groups, folder):
    """The most bytes at a time, of Python's objects and of Arrow's tables, beside what was there before."""
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        annotate(groups, LengthTeacher(), folder, shard_size=250, show_progress_bar=False)
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stream", "disk"])
def test_memory_does_not_grow_with_the_groups(tmp_path, kind):
    def groups_of(num_groups):
        if kind == "stream":
            return datasets.IterableDataset.from_generator(rows_of, gen_kwargs={"num_groups": num_groups})
        return datasets.Dataset.from_generator(
            rows_of, gen_kwargs={"num_groups": num_groups}, cache_dir=str(tmp_path / "cache")
        )

    peak_of(groups_of(50), tmp_path / "first")  # what is imported late is not what is measured
    few, many = (peak_of(groups_of(number), tmp_path / str(number)) for number in (1100, 3100))

    # `datasets` and the checks take 1,000 rows at a time; 2,000 groups more are 0.9 MB of text
    assert many - few < 300_000
