"""Shards: the bytes of a file follow from the values of its groups; more stands in ``tests/teachers/annotation``."""

from __future__ import annotations

import pyarrow as pa

from rerank_trainer.data.shards import ShardFolder, shard_name


def test_the_bytes_do_not_depend_on_how_rows_came_in_chunks(tmp_path):
    rows = [["word" * size + str(number) for size in range(0, 500, 25)] for number in range(1000)]
    whole = pa.table({"query": [str(number) for number in range(1000)], "passages": rows})
    parts = pa.concat_tables([whole.slice(start, 137) for start in range(0, 1000, 137)])
    for name, table in (("whole", whole), ("parts", parts.replace_schema_metadata({"made by": "another library"}))):
        (tmp_path / name).mkdir()
        ShardFolder(tmp_path / name).write(0, table, num_pairs=20_000, made_from="")

    assert (tmp_path / "whole" / shard_name(0)).read_bytes() == (tmp_path / "parts" / shard_name(0)).read_bytes()
