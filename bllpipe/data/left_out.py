"""What a scan of an image folder does not take, counted: files of other kinds, folders in class folders, images outside
of them, hidden entries, empty class folders. A class that would vanish is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bllpipe.errors import DataError

MOST_NAMED = 5


@dataclass
class LeftOut:
    """Counts over one split."""

    kinds: Counter[str] = field(default_factory=Counter)  # files in class folders, by suffix
    inner_folders: int = 0
    loose_images: int = 0
    hidden: int = 0
    empty_folders: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """``3 files of other kinds (.jfif 2, .txt 1), 1 folder inside a class folder``; empty for nothing."""
        parts = [
            (
                sum(self.kinds.values()),
                "file{s} of other kinds" + _named([f"{k} {n}" for k, n in _ordered(self.kinds)]),
            ),
            (self.inner_folders, "folder{s} inside class folders"),
            (self.loose_images, "image{s} outside of class folders"),
            (self.hidden, "hidden file{s} or folder{s}"),
            (len(self.empty_folders), "empty class folder{s}" + _named(self.empty_folders)),
        ]
        return ", ".join(f"{count} {text.format(s='' if count == 1 else 's')}" for count, text in parts if count)


def _ordered(kinds: Counter[str]) -> list[tuple[str, int]]:
    return sorted(kinds.items(), key=lambda each: (-each[1], each[0]))


def _named(names: Sequence[str]) -> str:
    shown = [name.replace("{", "{{").replace("}", "}}") for name in names[:MOST_NAMED]]
    return f" ({', '.join(shown)}{', ...' if len(names) > MOST_NAMED else ''})"


def is_hidden(path: Path) -> bool:
    """Whether a program has put it there for itself, as .ipynb_checkpoints, ._cat.png and __MACOSX."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def images_of_class(folder: Path, entries: Sequence[Path], suffixes: Sequence[str], left_out: LeftOut) -> list[Path]:
    """The images among ``entries`` of a class folder; adds the rest to ``left_out``. DataError when there are entries
    and no image: the class would vanish."""
    seen = [path for path in entries if not is_hidden(path)]
    images = [path for path in seen if path.suffix.lower() in suffixes]
    others = [path for path in seen if path.suffix.lower() not in suffixes]
    folders = [path for path in others if path.is_dir()]
    kinds = Counter(path.suffix.lower() or "no suffix" for path in others if not path.is_dir())
    if others and not images:
        found = str(LeftOut(kinds, len(folders)))
        raise DataError(
            f"{folder} holds no image, but {found}: the class {folder.name} would be left out; expected images "
            f"directly in the folder, with a suffix of {' '.join(suffixes)}; convert or move them, or remove the folder"
        )
    if not seen:
        left_out.empty_folders.append(folder.name)
    left_out.kinds += kinds
    left_out.inner_folders += len(folders)
    left_out.hidden += len(entries) - len(seen)
    return images
