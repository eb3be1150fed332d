"""Data sets by name: images for the first block, labels alone for the feedback rank."""

from __future__ import annotations

from collections.abc import Callable

from bllpipe.config.schema import DataConfig
from bllpipe.run.data.downloads import DEFAULT_PATH
from bllpipe.run.data.sets import Arrays, ImageSet, LabelSet, MemoryImages
from bllpipe.run.data.spec import check_given


def load_images(data: DataConfig, seed: int) -> ImageSet:
    """The images of ``data.name``; DataError when they are missing or not what they have to be."""
    if data.given is not None:
        images: ImageSet = data.given.images(data)
        return images
    if data.name == "imagefolder":
        from bllpipe.run.data.folders import FolderImages

        return FolderImages(data)
    return MemoryImages(load_arrays(data, seed), data)


def load_labels(data: DataConfig, seed: int) -> LabelSet:
    """The labels of ``data.name``, without keeping any image."""
    if data.given is not None:
        labels: LabelSet = data.given.labels()
        return labels
    if data.name == "imagefolder":
        from bllpipe.run.data.folders import folder_labels

        return folder_labels(data)
    if data.name == "npz":
        from bllpipe.run.data.npz import read_labels

        return read_labels(str(data.path))
    arrays = load_arrays(data, seed)
    return LabelSet(arrays.train_N, arrays.test_N, arrays.num_classes)


def load_arrays(data: DataConfig, seed: int) -> Arrays:
    """A set that fits into memory."""
    check_given(data)
    return _loader(data.name)(data, seed)


def _loader(name: str) -> Callable[[DataConfig, int], Arrays]:
    from bllpipe.run.data.generated import synthetic
    from bllpipe.run.data.npz import read_arrays
    from bllpipe.run.data.published import digits, torchvision_set

    loaders: dict[str, Callable[[DataConfig, int], Arrays]] = {
        "digits": lambda data, seed: digits(),
        "synthetic": synthetic,
        "npz": lambda data, seed: read_arrays(str(data.path)),
    }
    return loaders.get(name, lambda data, seed: torchvision_set(name, data.path or DEFAULT_PATH))
