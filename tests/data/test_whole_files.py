"""Whole files: what fails halfway leaves the file that was there, and nothing else."""

from __future__ import annotations

import os

import pytest

from rerank_trainer.data.whole_files import write_whole


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, call):
    write_whole(tmp_path / "file", b"first")

    def full(*args, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="the disk is full"):
        write_whole(tmp_path / "file", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"first"


def test_a_file_is_replaced_and_readable_by_whom_others_are(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    write_whole(tmp_path / "file", b"first")
    write_whole(tmp_path / "file", b"second")

    assert (tmp_path / "file").read_bytes() == b"second"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
