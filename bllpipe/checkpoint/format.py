"""The format of a checkpoint: the name of its directory, and a manifest with the size and the SHA-256 of every file and
of itself.

step-00000120                a checkpoint
step-00000120.partial-A      one that attempt A is writing, or was writing when it was killed
step-00000120.replaced-A     one that attempt A renamed before it wrote the same step again
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from bllpipe.errors import CheckpointError
from bllpipe.utils.files import ordinary_size, read_record, render, write_record

FORMAT = 1
CHUNK = 1 << 20
MANIFEST = "manifest.json"
State = Literal["whole", "partial", "replaced"]
_PATTERN = re.compile(r"step-([0-9]{1,18})(?:\.(partial|replaced)-([A-Za-z0-9._-]+))?")


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry of a file on the disk, read in chunks."""
        digest, size, chunk = hashlib.sha256(), 0, memoryview(bytearray(CHUNK))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(chunk):
                digest.update(chunk[:count])
                size += count
        return cls(size, digest.hexdigest())

    def verify(self, path: Path) -> None:
        """Raises CheckpointError if the file is missing, unreadable or differs from the one that was written."""
        self.verify_size(path)
        try:
            if FileEntry.of(path) != self:
                raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in the manifest")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error

    def verify_size(self, path: Path) -> None:
        """Raises CheckpointError if the file is missing, no regular file, or of another size; no byte is read."""
        size = ordinary_size(path)
        if size != self.bytes:
            raise CheckpointError(f"{path} is damaged: it has {size:,} bytes, the manifest says {self.bytes:,}")


@dataclass(frozen=True)
class Manifest:
    """The step, the number of ranks, and exactly one pair of files a rank."""

    step: int
    world_size: int
    files: Mapping[str, FileEntry]

    def to_record(self) -> dict[str, Any]:
        """The manifest as JSON, sealed with the SHA-256 of everything else in it."""
        body = {"format": FORMAT, **asdict(self)}
        return {**body, "sha256": hashlib.sha256(render(body)).hexdigest()}

    def write(self, directory: Path) -> None:
        write_record(directory / MANIFEST, self.to_record())

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads the manifest and checks it against its own SHA-256, byte for byte; raises CheckpointError."""
        path = directory / MANIFEST
        record, content = read_record(path)
        if record.get("format") != FORMAT:
            raise CheckpointError(f"{path} has format {record.get('format')!r:.80}; this version reads format {FORMAT}")
        match record:
            case {"step": int(step), "world_size": int(world_size), "files": dict(entries)}:
                if world_size < 1 or len(entries) != 2 * world_size or set(entries) != file_names(world_size):
                    raise CheckpointError(
                        f"{path} does not list exactly one pair of files for each of {world_size} ranks"
                    )
                files = {name: _entry(entry, path) for name, entry in entries.items()}
                manifest = cls(int(step), int(world_size), files)
            case _:
                raise CheckpointError(f"{path} is damaged: it is not a manifest")
        if content != render(manifest.to_record()):
            raise CheckpointError(f"{path} was changed: its content does not match its own SHA-256")
        return manifest

    def verify(self, directory: Path, sizes_only: bool = False) -> None:
        """Raises CheckpointError for the first file that is missing or differs from what was written, in its size or,
        unless ``sizes_only``, in any byte."""
        if problem := next(self.problems(directory, sizes_only), None):
            raise CheckpointError(problem)

    def problems(self, directory: Path, sizes_only: bool = False) -> Iterator[str]:
        """The problems, file by file. Every byte is read, or with ``sizes_only`` none."""
        name = DirectoryName.parse(directory.name)
        if name is None or name.step != self.step:
            yield f"{directory} holds step {self.step}, but its name says otherwise"
        for file, entry in self.files.items():
            try:
                (entry.verify_size if sizes_only else entry.verify)(directory / file)
            except CheckpointError as error:
                yield str(error)


def _entry(record: object, path: Path) -> FileEntry:
    match record:
        case {"bytes": int(size), "sha256": str(sha256)}:
            return FileEntry(int(size), sha256)
    raise CheckpointError(f"{path} is damaged: {record!r:.80} is not the size and SHA-256 of a file")


@dataclass(frozen=True)
class DirectoryName:
    """The step, state and attempt in the name of a directory."""

    step: int
    state: State = "whole"
    attempt: str = ""

    def __str__(self) -> str:
        return f"step-{self.step:08}" + (f".{self.state}-{self.attempt}" if self.state != "whole" else "")

    @classmethod
    def parse(cls, name: str) -> DirectoryName | None:
        """None for a name that ``str`` would not return."""
        match = _PATTERN.fullmatch(name)
        if match is None:
            return None
        parsed = cls(int(match[1]), cast(State, match[2] or "whole"), match[3] or "")
        return parsed if str(parsed) == name else None


def tensor_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def metadata_file(rank: int) -> str:
    return f"rank-{rank}.json"


def file_names(world_size: int) -> set[str]:
    """The pairs of all ranks: all files of a checkpoint except its manifest."""
    return {name(rank) for rank in range(world_size) for name in (tensor_file, metadata_file)}
