"""Which image files a folder holds: PATH/train/CLASS/* and PATH/test/CLASS/* (or PATH/val). Imports no torch.

The two folders may be links to wherever the images lie; links inside them must not leave the data set.
"""

from __future__ import annotations

import os
from pathlib import Path

from bllpipe.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")

Sample = tuple[str, Path]


def listing(path: str) -> dict[str, list[Sample]]:
    """(class, file) of every image of the splits ``train`` and ``test``, sorted by class and name."""
    root = Path(path)
    return {split: _samples(folder, root) for split, folder in split_folders(path).items()}


def split_folders(path: str) -> dict[str, Path]:
    """The folders of both splits; DataError when there is none."""
    root = Path(path)
    folders = {"train": root / "train", "test": root / "test" if (root / "test").is_dir() else root / "val"}
    for folder in folders.values():
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist; needed are {root}/train/CLASS/*.png and {root}/test/CLASS/*.png")
    return folders


def _samples(folder: Path, root: Path) -> list[Sample]:
    samples = []
    for group in (path for path in _entries(folder) if path.is_dir()):
        _check_inside(group, root)
        for file in (path for path in _entries(group) if path.suffix.lower() in SUFFIXES):
            _check_inside(file, root)
            samples.append((group.name, file))
    if not samples:
        raise DataError(f"{folder} holds no images; needed are {folder}/CLASS/*.png")
    return samples


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; needed is a folder of images") from error


def _check_inside(path: Path, root: Path) -> None:
    """Raises DataError for a link that leaves the data set."""
    if not path.is_symlink():
        return
    target = Path(os.path.realpath(path))  # which, unlike Path.resolve, knows what to do with links in a circle
    if Path(os.path.realpath(root)) not in target.parents:
        raise DataError(f"{path} is a link to {target}, outside of {root}; copy the images instead")
