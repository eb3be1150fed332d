"""What makes a directory a checkpoint: a manifest with the size and SHA-256 of every file, and of itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bllpipe.errors import CheckpointError

NAME = "manifest.json"
FORMAT = 1
MAX_BYTES = 16 << 20
CHUNK = 4 << 20
_DIRECTORY = re.compile(r"step-([0-9]{8,})")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The step, the number of ranks, and the files: exactly one pair a rank."""

    step: int
    world_size: int
    files: Mapping[str, FileEntry]

    def to_json(self) -> str:
        body = self._body()
        return json.dumps({**body, "sha256": _digest_of(body)}, indent=1) + "\n"

    @classmethod
    def parse(cls, path: Path) -> Manifest:
        """Reads and checks the manifest itself; CheckpointError names what is wrong with it."""
        record = _read_json(path)
        seal = record.pop("sha256", None)
        if seal != _digest_of(record):
            raise CheckpointError(f"{path} was changed: its own SHA-256 does not match")
        if record.get("format") != FORMAT:
            raise CheckpointError(f"{path} has format {record.get('format')!r}; this version reads format {FORMAT}")
        files = {name: FileEntry(entry["bytes"], entry["sha256"]) for name, entry in record["files"].items()}
        manifest = cls(record["step"], record["world_size"], files)
        if set(files) != set(file_names(manifest.world_size)):
            raise CheckpointError(f"{path} does not list one pair of files for each of {manifest.world_size} ranks")
        return manifest

    def verify(self, directory: Path) -> None:
        """Raises CheckpointError naming the first file that is missing or not what it was."""
        if step_of(directory) != self.step:
            raise CheckpointError(f"{directory} holds step {self.step}; its name says another")
        for name, entry in self.files.items():
            _verify_file(directory / name, entry)

    def _body(self) -> dict[str, Any]:
        files = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in sorted(self.files.items())}
        return {"format": FORMAT, "step": self.step, "world_size": self.world_size, "files": files}


def file_names(world_size: int) -> list[str]:
    """The pair of every rank."""
    return [f"rank-{rank}.{suffix}" for rank in range(world_size) for suffix in ("safetensors", "json")]


def directory_name(step: int) -> str:
    return f"step-{step:08}"


def step_of(directory: Path) -> int | None:
    """The step that a checkpoint directory is named after; None for any other name."""
    match = _DIRECTORY.fullmatch(directory.name)
    return int(match[1]) if match else None


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file as it is on disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size, digest.hexdigest())


def _verify_file(path: Path, entry: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{path} is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise CheckpointError(f"{path} has {size:,} bytes; the manifest says {entry.bytes:,}")
    if file_entry(path).sha256 != entry.sha256:
        raise CheckpointError(f"{path} is damaged: its SHA-256 does not match the manifest")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes; a manifest has at most {MAX_BYTES:,}")
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} is not a manifest")
    return record


def _digest_of(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
