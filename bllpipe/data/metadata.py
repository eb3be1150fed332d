"""metadata.csv or metadata.jsonl in the folder of a split, as Hugging Face's imagefolder defines them: a line an image,
with its ``file_name`` below the folder, and here its ``label``, the name or the number of its class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from bllpipe.errors import DataError

NAMES = ("metadata.csv", "metadata.jsonl")
MAX_BYTES = 64 << 20
Sample = tuple[str, Path]  # class and file


def metadata_samples(folder: Path, suffixes: Sequence[str]) -> list[Sample] | None:
    """(class, file) of every line, sorted by class and name; None without such a file, or if it has no labels. Numbers
    sort as numbers. DataError for a line without an image or a label, and for an image with two labels."""
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    lines = [] if path is None else _lines(path)
    if path is None or not any("label" in line for line in lines):
        return None
    pairs = [_pair(line, path, number, suffixes) for number, line in enumerate(lines, 1)]
    label_of: dict[Path, int | str] = {}
    for label, file in pairs:
        if label_of.setdefault(file, label) != label:
            raise DataError(
                f"{path}: {file.relative_to(folder)} has the labels {label_of[file]} and {label}; expected one label "
                f"an image"
            )
    if all(isinstance(label, int) or label.isdecimal() for label, _ in pairs):
        pairs = [(f"{int(label):09d}", file) for label, file in pairs]
    return sorted((str(label), file) for label, file in pairs)


def _lines(path: Path) -> list[Mapping[str, Any]]:
    import csv  # which takes milliseconds of every command's start

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(StringIO(text, newline="")))
        found = [_parsed(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error!s:.200}; expected a line an image") from error
    if not all(isinstance(line, dict) for line in found):
        raise DataError(f'{path} holds a line that is no object; expected lines such as {{"file_name": "1.png"}}')
    return found


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # it counts lines within this one
        raise ValueError(f"line {number}: {error!s}".replace("line 1 column", "column")) from error


def _pair(line: Mapping[str, Any], path: Path, number: int, suffixes: Sequence[str]) -> tuple[int | str, Path]:
    name, label = line.get("file_name"), line.get("label")
    where = f"{path}, image {number}"
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise DataError(f"{where}: file_name is {name!r:.100}; expected the path of an image below {path.parent}")
    file = path.parent / name
    if file.suffix.lower() not in suffixes or not file.is_file():
        raise DataError(f"{where}: {name:.200} is no image here; expected a file with a suffix of {' '.join(suffixes)}")
    is_class = (isinstance(label, str) and label) or (type(label) is int and label >= 0)
    if not is_class:
        raise DataError(f"{where}: label is {label!r:.100}; expected the name of a class, or its number from 0")
    return label, file  # type: ignore[return-value]  # as checked
