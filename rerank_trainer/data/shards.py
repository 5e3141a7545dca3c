"""Shards: groups in parquet files of one folder, under a manifest of how they were made and which bytes they have.

    manifest.json           the settings; once all shards are there, also a line for each
    train-00000.parquet     the groups of a shard
    .unfinished/00000.json  the line of a shard that is there, until the manifest has it

A file is written whole or not at all, and a shard counts once its line is there. So the folder may lose its writers at
any moment, and several processes may fill it, each its own shards, without asking each other. Nothing here needs
PyTorch.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_trainer.data.whole_files import write_whole

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
FORMAT = "groups in shards, 1"


@dataclass(frozen=True)
class Shard:
    """The line of one shard.

    Attributes:
        num_groups: Its groups.
        num_pairs: Their passages.
        made_from: A digest of the groups as they came in.
        sha256: That of the file.
    """

    num_groups: int
    num_pairs: int
    made_from: str
    sha256: str


def shard_name(number: int) -> str:
    """The file of a shard; by this name `datasets` and the Hub take it for a part of the split train.

    >>> shard_name(7)
    'train-00007.parquet'
    """
    return f"train-{number:05d}.parquet"


def is_shard_folder(path: Path) -> bool:
    """Whether a folder holds shards, all of them or not yet."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        return False
    try:
        content = json.loads(manifest.read_bytes())
    except ValueError:
        return (path / shard_name(0)).is_file()  # ours, and damaged: whoever opens it is told
    return isinstance(content, dict) and content.get("format") == FORMAT


def shard_files(path: Path, *, read_all: bool = True) -> list[Path]:
    """The files of a folder whose shards are all there, as they were written.

    Args:
        path: The folder.
        read_all: Read every file and compare its digest; otherwise only look whether it is there.

    Raises:
        ValueError: If shards are missing or damaged, with the file and the remedy.
    """
    folder = ShardFolder(path)
    shards = folder.finished()
    if shards is None:
        raise ValueError(
            f"{path}: its shards are not all there yet. Run annotate with the same output_dir again: it makes what is "
            "missing."
        )
    for number, shard in enumerate(shards):
        if not folder.file(number).is_file():
            raise ValueError(f"{folder.file(number)} is missing. Run annotate with the same output_dir: it makes it.")
        if read_all:
            folder.check_bytes(number, shard)
    return [folder.file(number) for number in range(len(shards))]


class ShardFolder:
    """A folder of shards that is being filled or read.

    Args:
        path: The folder; :meth:`begin` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = path / UNFINISHED
        self._finished: list[Shard] | None = None

    def file(self, number: int) -> Path:
        """The file of a shard, whether it is there or not."""
        return self.path / shard_name(number)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Begin the folder, or go on with it; for one process to do. A shard whose file was deleted is open again.

        Args:
            settings: What decides the scores, of JSON's types.

        Raises:
            ValueError: If the folder has other files, or was begun with other settings; see :meth:`compare`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.has_begun():
            found = sorted(entry.name for entry in self.path.iterdir() if entry.name != UNFINISHED)
            if found:
                raise ValueError(
                    f"{self.path}: expected an empty folder, or one that annotate began, found {found[:5]} in it. Give "
                    "another output_dir."
                )
            self._write_manifest({"format": FORMAT, "settings": dict(settings)})
        self.compare(settings)
        shards = self.finished()
        if shards is not None and not all(self.file(number).is_file() for number in range(len(shards))):
            for number, shard in enumerate(shards):
                if self.file(number).is_file() and not self._line(number).exists():
                    self._write_line(number, shard)
            self._write_manifest({"format": FORMAT, "settings": self._manifest()["settings"]})
            self._finished = None

    def has_begun(self) -> bool:
        """Whether the manifest is there."""
        return (self.path / MANIFEST).exists()

    def compare(self, settings: Mapping[str, Any]) -> None:
        """Compare the settings with those that the folder was begun with; a None is not known and agrees with anything.

        Raises:
            ValueError: If they differ: which, and both values.
        """
        content = self._manifest()
        if content.get("format") != FORMAT:
            raise ValueError(f"{self.path / MANIFEST} is no manifest of shards. Give another output_dir.")
        there = content["settings"]
        values = {name: (there.get(name), settings.get(name)) for name in dict.fromkeys([*there, *settings])}
        unlike = [
            f"{name} is {a!r} there and {b!r} here" for name, (a, b) in values.items() if a != b and None not in (a, b)
        ]
        if unlike:
            raise ValueError(
                f"{self.path} was begun with other settings: {'; '.join(unlike)}. Give the same, or another output_dir."
            )

    def shard(self, number: int) -> Shard | None:
        """The line of a shard; None for one that is not there.

        Raises:
            ValueError: If the line is damaged, or the folder is complete and has fewer shards.
        """
        line = self._line(number)
        try:
            shard = Shard(**json.loads(line.read_bytes()))
        except FileNotFoundError:
            # read after the line: whoever finishes writes the manifest before it removes the lines
            shards = self.finished()
            if shards is None:
                return None
            if number >= len(shards):
                raise self._of_other_groups(
                    f"is complete with {len(shards)} shards, and this data set has more"
                ) from None
            shard = shards[number]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{line} is damaged ({error}). Delete it: the shard is made again.") from error
        return shard if self.file(number).is_file() else None

    def check(self, number: int, shard: Shard, *, made_from: str, first_group: int) -> None:
        """Compare a shard that is there with the groups it should be of, and with its own digest.

        Raises:
            ValueError: If it was made from other groups, or its file is damaged.
        """
        if shard.made_from != made_from:
            last = first_group + shard.num_groups - 1
            raise self._of_other_groups(f"has other groups {first_group} to {last}, in {shard_name(number)}")
        self.check_bytes(number, shard)

    def check_bytes(self, number: int, shard: Shard) -> None:
        """Read the file of a shard and compare its digest.

        Raises:
            ValueError: If it is damaged.
        """
        with self.file(number).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise ValueError(
                f"{self.file(number)} is damaged: its sha256 is {found}, expected {shard.sha256}. Delete the file and "
                "run annotate with the same output_dir: it makes this shard again."
            )

    def write(self, number: int, table: pa.Table, *, num_pairs: int, made_from: str) -> None:
        """Write a shard, then its line. The bytes follow from the table's values alone."""
        buffer = io.BytesIO()
        plain = table.replace_schema_metadata(None).combine_chunks()  # how rows came in chunks must not show
        pq.write_table(plain, buffer, compression="zstd")
        content = buffer.getvalue()
        self._parts.mkdir(exist_ok=True)
        write_whole(self.file(number), content, beside=self._parts)
        self._write_line(number, Shard(len(table), num_pairs, made_from, hashlib.sha256(content).hexdigest()))

    def finish(self, num_shards: int) -> None:
        """Write the lines of all shards into the manifest, once they are there; for one process to do.

        Raises:
            ValueError: If there are more shards than the data set has.
        """
        numbers = [*range(len(self.finished() or ())), *(int(line.stem) for line in self._parts.glob("*.json"))]
        if max(numbers) >= num_shards:
            raise self._of_other_groups(f"has {max(numbers) + 1} shards, and this data set {num_shards}")
        if self.finished() is None:
            shards = [shard for number in range(num_shards) if (shard := self.shard(number)) is not None]
            assert len(shards) == num_shards
            settings = self._manifest()["settings"] | {"num_groups": sum(shard.num_groups for shard in shards)}
            num_pairs = sum(shard.num_pairs for shard in shards)
            lines = [{"file": shard_name(number), **asdict(shard)} for number, shard in enumerate(shards)]
            self._write_manifest({"format": FORMAT, "settings": settings, "num_pairs": num_pairs, "shards": lines})
        shutil.rmtree(self._parts, ignore_errors=True)

    def finished(self) -> list[Shard] | None:
        """The lines of all shards; None while some are missing."""
        if self._finished is None:
            lines = self._manifest().get("shards")
            if lines is None:
                return None
            # the files' names follow from their numbers: a manifest of others cannot send a reader elsewhere
            self._finished = [Shard(**{key: value for key, value in line.items() if key != "file"}) for line in lines]
        return self._finished

    def _of_other_groups(self, difference: str) -> ValueError:
        return ValueError(
            f"{self.path} is of another data set: it {difference}. Give the one that it was made from, or another "
            "output_dir."
        )

    def _line(self, number: int) -> Path:
        return self._parts / f"{number:05d}.json"

    def _write_line(self, number: int, shard: Shard) -> None:
        self._parts.mkdir(exist_ok=True)
        write_whole(self._line(number), json.dumps(asdict(shard)).encode())

    def _write_manifest(self, content: Mapping[str, Any]) -> None:
        self._parts.mkdir(exist_ok=True)
        write_whole(self.path / MANIFEST, (json.dumps(content, indent=1) + "\n").encode(), beside=self._parts)

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}). Make the folder anew, or restore the file.") from error
        return content
