"""``bllpipe data``: fetches published sets, and reads all of a set to see whether it can be trained on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bllpipe.errors import DataError
from bllpipe.run.data.downloads import DEFAULT_PATH, DOWNLOADS


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
    from bllpipe.run.data.published import fetch

    fetch(options.name, options.path)
    print(f"{options.name} is complete in {options.path}")
    return 0


def _verify(options: argparse.Namespace, words: Sequence[str]) -> int:
    known = options.name in DOWNLOADS
    if not known and not Path(options.name).exists():
        raise DataError(
            f"{options.name} is neither a file or folder nor one of {', '.join(sorted(DOWNLOADS))}; "
            f"needed is an .npz, an image folder, or one of these"
        )
    from bllpipe.run.data.verifying import verify_archive, verify_folder, verify_published

    if known:
        print(verify_published(options.name, options.path))
    elif Path(options.name).is_dir():
        print(verify_folder(options.name, options.image_size))
    else:
        print(verify_archive(options.name))
    return 0
