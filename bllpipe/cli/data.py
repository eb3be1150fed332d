"""``bllpipe data``: download published data sets; verify a data set by reading all of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from os.path import expanduser
from pathlib import Path
from typing import Any

from bllpipe.config.schema import DataConfig
from bllpipe.data.catalog import DEFAULT_PATH, DOWNLOADS, DataSpec, listing
from bllpipe.errors import DataError
from bllpipe.utils.console import show

MAX_SHOWN = 20  # damaged files in a message


def add_data(commands: Any) -> None:
    """Adds the commands ``data fetch`` and ``data verify``."""
    data = commands.add_parser("data", help="download or verify data sets").add_subparsers(
        required=True, metavar="COMMAND"
    )
    fetch = data.add_parser("fetch", help="download and verify a data set")
    fetch.add_argument("name", choices=sorted(DOWNLOADS))
    fetch.add_argument("--path", default=DEFAULT_PATH, metavar="FOLDER", type=expanduser)
    fetch.set_defaults(run=_fetch)

    verify = data.add_parser("verify", help="read all of a data set: counts, classes, shapes, damaged files")
    verify.add_argument(
        "name", metavar="NAME|PATH", help=f"{', '.join(sorted(DOWNLOADS))}, an .npz, or an image folder"
    )
    verify.add_argument(
        "--path", default=DEFAULT_PATH, metavar="FOLDER", type=expanduser, help="folder of a published set"
    )
    verify.add_argument(
        "--image-size", type=int, default=32, metavar="N", help="of an image folder: its data.image_size"
    )
    verify.set_defaults(run=_verify)


def _fetch(options: argparse.Namespace, argv: Sequence[str]) -> int:
    from bllpipe.data.registry import fetch  # torch

    fetch(options.name, options.path)
    show(f"{options.name} is complete in {options.path}")
    return 0


def _verify(options: argparse.Namespace, argv: Sequence[str]) -> int:
    name, is_published = options.name, options.name in DOWNLOADS
    if not is_published and not Path(name).exists():
        raise DataError(
            f"{name} is neither a file or folder nor one of {', '.join(sorted(DOWNLOADS))}; "
            f"use the path of an .npz or of an image folder, or one of these names"
        )
    from bllpipe.data.registry import read_arrays, stored  # torch

    if is_published:  # whose files have known digests
        show(f"{options.path}: {name} is complete and undamaged: {_describe(stored(name, options.path))}")
    elif Path(name).is_dir():
        show(f"{name}: {_describe(_verified_folder(name, options.image_size))}")
    else:
        arrays = read_arrays(name)  # every value
        sizes = len(arrays.train_N), len(arrays.test_N)
        show(f"{name}: {_describe(DataSpec(*sizes, tuple(arrays.train_NCHW.shape[1:]), arrays.num_classes))}")
    return 0


def _verified_folder(path: str, image_size: int) -> DataSpec:
    """The sizes of a folder, after decoding every image; DataError names those that cannot be decoded."""
    from bllpipe.data.image_folder import FolderImages, image

    images = FolderImages(DataConfig(name="imagefolder", path=path, image_size=image_size))
    files = [str(file) for samples in listing(path).values() for _, file in samples]
    damaged = []
    for file in files:
        try:
            image(file, image_size)
        except DataError as error:
            damaged.append(str(error))
    if damaged:
        more = f"\n  and {len(damaged) - MAX_SHOWN} more" if len(damaged) > MAX_SHOWN else ""
        lines = "".join(f"\n  {text}" for text in islice(damaged, MAX_SHOWN))
        raise DataError(f"{path}: {len(damaged)} of {len(files)} images are damaged:{lines}{more}")
    return images.spec


def _describe(spec: DataSpec) -> str:
    shape = " x ".join(map(str, spec.image_shape))
    return (
        f"{spec.num_train:,} training and {spec.num_test:,} test images of {shape} (channels, height, width), "
        f"{spec.num_classes} classes"
    )
