"""Whether a data set can be trained on: all of it is read, through the readers that a run uses."""

from __future__ import annotations

from itertools import islice

from bllpipe.config.schema import DataConfig
from bllpipe.errors import DataError
from bllpipe.run.data.folders import FolderImages, image
from bllpipe.run.data.listing import listing
from bllpipe.run.data.npz import read_arrays
from bllpipe.run.data.published import stored
from bllpipe.run.data.spec import DataSpec

SHOWN = 20  # damaged files that are named


def verify_published(name: str, path: str) -> str:
    """The words for a set whose files have the right digests; DataError when they are missing or damaged."""
    spec = stored(name, path)
    return f"{path}: {name} is complete and undamaged: {_words(spec)}"


def verify_archive(path: str) -> str:
    """The words for an archive whose every value was read; DataError says which array is wrong."""
    arrays = read_arrays(path)
    shape = tuple(arrays.train_NCHW.shape[1:])
    sizes = (len(arrays.train_N), len(arrays.test_N))
    return f"{path}: {_words(DataSpec(*sizes, (shape[0], shape[1], shape[2]), arrays.num_classes))}"


def verify_folder(path: str, image_size: int) -> str:
    """The words for a folder whose every image was decoded; DataError names those that cannot be."""
    images = FolderImages(DataConfig(name="imagefolder", path=path, image_size=image_size))
    files = [str(file) for samples in listing(path).values() for _, file in samples]
    damaged = list(filter(None, (_damage(file, image_size) for file in files)))
    if damaged:
        more = f"\n  and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        lines = "".join(f"\n  {text}" for text in islice(damaged, SHOWN))
        raise DataError(f"{path}: {len(damaged)} of {len(files)} images are damaged:{lines}{more}")
    return f"{path}: {_words(images.spec)}"


def _damage(file: str, image_size: int) -> str | None:
    try:
        image(file, image_size)
    except DataError as error:
        return str(error)
    return None


def _words(spec: DataSpec) -> str:
    shape = " x ".join(map(str, spec.image_shape))
    return (
        f"{spec.num_train:,} training and {spec.num_test:,} test images of {shape} (channels, height, width), "
        f"{spec.num_classes} classes"
    )
