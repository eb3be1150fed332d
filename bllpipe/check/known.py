"""What is known of the data without training: published sizes, or those of the files that are there."""

from __future__ import annotations

from pathlib import Path

from bllpipe.config.schema import DataConfig
from bllpipe.run.data.spec import PUBLISHED, DataSpec


def known_spec(data: DataConfig) -> DataSpec | None:
    """The sizes of the data; None where they are not on this machine and nobody has published them.

    Raises DataError for files that are there and cannot be trained on.
    """
    match data.name:
        case "synthetic":
            shape = (3, data.image_size, data.image_size)
            return DataSpec(data.synthetic_images, max(data.synthetic_images // 4, 1), shape, data.synthetic_classes)
        case "npz" | "imagefolder" if data.path is not None and Path(data.path).exists():
            return _spec_of_files(data)
        case name:
            return PUBLISHED.get(name)


def _spec_of_files(data: DataConfig) -> DataSpec:
    """Reads labels and sizes, but no image."""
    if data.name == "npz":
        from bllpipe.run.data.archive import open_archive  # NumPy

        return open_archive(str(data.path)).spec
    from bllpipe.run.data.folders import FolderImages  # torch

    return FolderImages(data).spec
