"""The original files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, wherever they lie under a folder. A file may be
compressed or not, and compressed anew: Debian's package dataset-fashion-mnist has other bytes than the publisher's
files, and the same images.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bllpipe.errors import DataError

MAX_DEPTH, MAX_FOLDERS = 6, 10_000  # of the search
MAX_BYTES = 256 << 20  # of one file, uncompressed; the largest, of CIFAR-100, has 154 MB
MAX_MEMBERS = 1_000  # of an archive; those of CIFAR have ten
IDX_PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
IDX_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(?:\.\w+)?")
OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# SHA-256 of the four uncompressed files, in the order of IDX_PARTS.
IDX_SHA256 = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


@dataclass(frozen=True)
class CifarForm:
    """One of the two published forms of a CIFAR set: its files by split, and the bytes, or the key, of its labels."""

    archive: str  # its name without suffixes
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: int | str  # binary: the position of the label's byte; python: its key
    label_bytes: int = 0  # binary: before the pixels of every image

    @property
    def names(self) -> tuple[str, ...]:
        return self.train + self.test


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR_FORMS = {
    "cifar10": (
        CifarForm("cifar-10-binary", tuple(f"{name}.bin" for name in _BATCHES), ("test_batch.bin",), 0, 1),
        CifarForm("cifar-10-python", _BATCHES, ("test_batch",), "labels"),
    ),
    "cifar100": (
        CifarForm("cifar-100-binary", ("train.bin",), ("test.bin",), 1, 2),  # coarse label, then fine label
        CifarForm("cifar-100-python", ("train",), ("test",), "fine_labels"),
    ),
}
ORIGINALS = (*IDX_SHA256, *CIFAR_FORMS)
IdxFiles = Mapping[str, Path]  # by the names of IDX_PARTS


@dataclass(frozen=True)
class CifarFiles:
    """A folder, or an archive, with the files of a form."""

    place: Path
    form: CifarForm

    def contents(self) -> dict[str, bytes]:
        """The bytes of every file, by name; DataError for an archive that is damaged or lacks one."""
        if self.place.is_dir():
            return {name: read_bounded(self.place / name) for name in self.form.names}
        found = _unpacked(self.place, self.form.names)
        if missing := [name for name in self.form.names if name not in found]:
            raise DataError(f"{self.place} lacks {missing[0]}; expected the archive {self.form.archive}.tar.gz")
        return found


def find_idx(path: str) -> list[IdxFiles]:
    """Every folder under ``path`` that holds the four files, each uncompressed if there are both."""
    folders: list[IdxFiles] = []
    for folder, names in _walk(Path(path)):
        files: dict[str, Path] = {}
        for name in sorted(names, key=len):
            if match := IDX_NAME.fullmatch(name):
                files.setdefault(f"{match[1]}-{match[2]}", folder / name)
        if len(files) == len(IDX_PARTS):
            folders.append(files)
    return folders


def find_cifar(name: str, path: str) -> CifarFiles | None:
    """The files of CIFAR under ``path``, which may be the archive itself: unpacked ones first, and the binary form
    before the pickles."""
    forms, place = CIFAR_FORMS[name], Path(path)
    if place.is_file():
        is_binary = "bin" in place.name
        return CifarFiles(place, forms[0] if is_binary else forms[1])
    found: list[tuple[int, CifarFiles]] = []
    for folder, names in _walk(place):
        for number, form in enumerate(forms):
            if set(form.names) <= names:
                found.append((number, CifarFiles(folder, form)))
            archives = sorted(each for each in names if each.startswith((f"{form.archive}.tar", f"{form.archive}.tgz")))
            found += [(number + len(forms), CifarFiles(folder / each, form)) for each in archives]
    return min(found, key=lambda each: each[0])[1] if found else None


def is_there(name: str, path: str) -> bool:
    """Whether the original files of ``name`` are under ``path``, damaged or not."""
    return bool(find_idx(path)) if name in IDX_SHA256 else find_cifar(name, path) is not None


def read_bounded(path: Path) -> bytes:
    """The content of a file, uncompressed; DataError if it is damaged or larger than any of these sets."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
            content: bytes = (opener(file) if opener else file).read(MAX_BYTES + 1)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise damaged(path, str(error)) from error
    if len(content) > MAX_BYTES:
        raise damaged(path, f"it has more than {MAX_BYTES:,} bytes")
    return content


def damaged(path: Path, how: str) -> DataError:
    """The error for a file that is not what was published."""
    return DataError(
        f"{path} is damaged, or of another set: {how:.200}; remove it, or name another folder with data.path"
    )


def _walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders under ``root``, with the names of their files; neither deeper nor more than the bounds."""
    depth = len(root.parts)
    for number, (folder, inner, names) in enumerate(os.walk(root)):
        inner.sort()
        if number >= MAX_FOLDERS or len(Path(folder).parts) - depth >= MAX_DEPTH:
            inner.clear()
        yield Path(folder), set(names)


def _unpacked(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files with these names in a tar file of any compression; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for number, member in enumerate(archive):
                name = member.name.rpartition("/")[2]
                if number >= MAX_MEMBERS or member.size > MAX_BYTES:
                    raise ValueError(f"{member.name:.100} is too much")
                if name in names and member.isfile() and (file := archive.extractfile(member)) is not None:
                    found[name] = file.read()
    except Exception as error:  # a hostile file can provoke nearly any of them
        raise damaged(
            path, str(error).partition("\n")[0].removesuffix(":")
        ) from error  # tarfile goes on about each format
    return found
