"""``bllpipe data``: fetches published sets, and reads all of a set to see whether it can be trained on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bllpipe.config.schema import DataConfig
from bllpipe.data.catalog import DEFAULT_PATH, DOWNLOADS, DataSpec, listing
from bllpipe.errors import DataError
from bllpipe.utils.console import show

if TYPE_CHECKING:
    pass

SHOWN = 20  # damaged files that are named


def add_data(commands: Any) -> None:
    """The commands ``data fetch`` and ``data verify``."""
    data = commands.add_parser("data", help="data sets").add_subparsers(required=True, metavar="COMMAND")
    fetch = data.add_parser("fetch", help="download and verify a data set")
    fetch.add_argument("name", choices=sorted(DOWNLOADS))
    fetch.add_argument("--path", default=DEFAULT_PATH, metavar="FOLDER")
    fetch.set_defaults(run=_fetch)

    verify = data.add_parser("verify", help="read all of a data set: counts, classes, shapes, damaged files")
    verify.add_argument(
        "name", metavar="NAME|PATH", help=f"{', '.join(sorted(DOWNLOADS))}, an .npz, or an image folder"
    )
    verify.add_argument("--path", default=DEFAULT_PATH, metavar="FOLDER", help="where a published set lies")
    verify.add_argument("--image-size", type=int, default=32, metavar="N", help="image folders: as data.image_size")
    verify.set_defaults(run=_verify)


def _fetch(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.data.registry import fetch

    fetch(options.name, options.path)
    show(f"{options.name} is complete in {options.path}")
    return 0


def _verify(options: argparse.Namespace, words: Sequence[str]) -> int:
    known = options.name in DOWNLOADS
    if not known and not Path(options.name).exists():
        raise DataError(
            f"{options.name} is neither a file or folder nor one of {', '.join(sorted(DOWNLOADS))}; "
            f"needed is an .npz, an image folder, or one of these"
        )
    if known:
        show(verify_published(options.name, options.path))
    elif Path(options.name).is_dir():
        show(verify_folder(options.name, options.image_size))
    else:
        show(verify_archive(options.name))
    return 0


def verify_published(name: str, path: str) -> str:
    """The words for a set whose files have the right digests; DataError when they are missing or damaged."""
    from bllpipe.data.registry import stored

    spec = stored(name, path)
    return f"{path}: {name} is complete and undamaged: {_words(spec)}"


def verify_archive(path: str) -> str:
    """The words for an archive whose every value was read; DataError says which array is wrong."""
    from bllpipe.data.registry import read_arrays

    arrays = read_arrays(path)
    shape = tuple(arrays.train_NCHW.shape[1:])
    sizes = (len(arrays.train_N), len(arrays.test_N))
    return f"{path}: {_words(DataSpec(*sizes, (shape[0], shape[1], shape[2]), arrays.num_classes))}"


def verify_folder(path: str, image_size: int) -> str:
    """The words for a folder whose every image was decoded; DataError names those that cannot be."""
    from bllpipe.data.image_folder import FolderImages

    images = FolderImages(DataConfig(name="imagefolder", path=path, image_size=image_size))
    files = [str(file) for samples in listing(path).values() for _, file in samples]
    damaged = list(filter(None, (_damage(file, image_size) for file in files)))
    if damaged:
        more = f"\n  and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        lines = "".join(f"\n  {text}" for text in islice(damaged, SHOWN))
        raise DataError(f"{path}: {len(damaged)} of {len(files)} images are damaged:{lines}{more}")
    return f"{path}: {_words(images.spec)}"


def _damage(file: str, image_size: int) -> str | None:
    from bllpipe.data.image_folder import image

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
