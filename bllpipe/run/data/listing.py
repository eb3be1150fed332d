"""Which image files a folder holds: PATH/train/CLASS/* and PATH/test/CLASS/* (or PATH/val). Imports no torch."""

from __future__ import annotations

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
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        _check_inside(group, root)
        for file in sorted(path for path in group.iterdir() if path.suffix.lower() in SUFFIXES):
            _check_inside(file, root)
            samples.append((group.name, file))
    if not samples:
        raise DataError(f"{folder} holds no images; needed are {folder}/CLASS/*.png")
    return samples


def _check_inside(path: Path, root: Path) -> None:
    """Raises DataError for a link that leaves the data set."""
    if path.is_symlink() and root.resolve() not in path.resolve().parents:
        raise DataError(f"{path} is a link to {path.resolve()}, outside of {root}; copy the images instead")
