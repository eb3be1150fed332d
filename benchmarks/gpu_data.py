"""Data sets for a machine without a network, as an .npz that data.name=npz reads: from files that were brought along.

  python -m benchmarks.gpu_data fashion_mnist FOLDER OUT.npz     the four IDX files, or Debian's dataset-fashion-mnist
  python -m benchmarks.gpu_data cifar10 FOLDER OUT.npz           grids of images, labels.npz and meta.json
  python -m benchmarks.gpu_data cifar10 FOLDER --keep PLACE      keeps these grids in PLACE, for a later call
  python -m benchmarks.gpu_data cifar10 FOLDER PLACE OUT.npz     takes the grids of both

Every file is checked by the SHA-256 of what it holds: Debian's IDX files were compressed anew. Training grids may be
missing, and the set is then smaller, which is said; a test set may not. It needs numpy, and pillow for the grids.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bllpipe.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes of an IDX file before its values
IDX_DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
GRID_DIGESTS = {  # of the pixels, image by image
    "test_0": "95fb5be1ed51040abfda85f8421f7f8ec46c1b29c6823da44d687be642bc5b6d",
    "train_0": "e23a585c3ec128b684a12cfba832e16ca9ecd293a591b17e3ebbd87d1e900462",
    "train_1": "6835db870a7fe05aa295197eb80902a508dd3966fdd41c3fe0ff9d3936486c3e",
    "train_2": "500489399e8bc2c2e4a3d432696f2c78c3c9ffbc5521928b8ce9a7341aae3bfb",
    "train_3": "21dfff55edd7e2557b0b8eec3c3098c08f95a74a0a13f1810c23406797866e9d",
    "train_4": "8da2c789ca97fae60bb82b2037b32aeb7d1786d470bee5d799f78d2e25862641",
}
GRID_SIDE, IMAGE_SIDE = 100, 32  # images a row and column of a grid, pixels of an image


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=["fashion_mnist", "cifar10"])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folders, and last the .npz to write")
    parser.add_argument("--keep", type=Path, metavar="PLACE", help="copy the files there and write nothing else")
    options = parser.parse_args(arguments)
    try:
        if options.keep is not None:
            print(f"kept in {options.keep}: {', '.join(keep(options.paths, options.keep)) or 'nothing'}")
        else:
            *folders, out = options.paths
            print(make(options.set, folders, out))
    except (ConfigError, OSError) as error:
        print(f"gpu_data: {error}", file=sys.stderr)
        return 2
    return 0


def make(name: str, folders: Sequence[Path], out: Path) -> str:
    """Writes ``out`` from the files in ``folders``; returns a description."""
    arrays = fashion_mnist(folders) if name == "fashion_mnist" else cifar10(folders)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, allow_pickle=False, **arrays)
    sizes = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
    whole = 60000 if name == "fashion_mnist" else 50000
    missing = whole - len(arrays["train_y"])
    return f"{name}: {sizes}" + (
        f"; {missing} of {whole} training images are missing: a smaller set" if missing else ""
    )


def keep(folders: Sequence[Path], place: Path) -> list[str]:
    """Copies the files of the grids to ``place``; their names."""
    place.mkdir(parents=True, exist_ok=True)
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".webp", ".npz")]
    for path in files:
        shutil.copyfile(path, place / path.name)
    return [path.name for path in files]


def fashion_mnist(folders: Sequence[Path]) -> dict[str, Array]:
    """Images [N, 28, 28] and labels of both splits, from .gz files or a Debian package anywhere in ``folders``."""
    contents = dict(_idx_files(folders))
    missing = [name for name in IDX_DIGESTS if name not in contents]
    if missing:
        raise ConfigError(
            f"expected {missing[0]}.gz, or dataset-fashion-mnist_*.deb, in {_listed(folders)}; "
            f"get it with: apt-get download dataset-fashion-mnist"
        )
    for name, digest in IDX_DIGESTS.items():
        _check(name, contents[name], digest)
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = np.frombuffer(contents[f"{prefix}-images-idx3-ubyte"], np.uint8, offset=IMAGE_HEADER)
        labels = np.frombuffer(contents[f"{prefix}-labels-idx1-ubyte"], np.uint8, offset=LABEL_HEADER)
        arrays[f"{split}_x"] = pixels.reshape(len(labels), 28, 28)
        arrays[f"{split}_y"] = labels.astype(np.int64)
    return arrays


def _idx_files(folders: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.gz")):
            yield path.stem, gzip.decompress(path.read_bytes())
        for path in sorted(folder.rglob("dataset-fashion-mnist_*.deb")):
            with tarfile.open(fileobj=io.BytesIO(data_of_package(path)), mode="r:*") as archive:
                for member in archive:
                    if member.name.endswith("-ubyte.gz") and (file := archive.extractfile(member)):
                        yield Path(member.name).stem, gzip.decompress(file.read())


def data_of_package(path: Path) -> bytes:
    """The archive data.tar.* of a Debian package, which is an archive of ar(1)."""
    package = path.read_bytes()
    position = len(b"!<arch>\n")
    while position + 60 <= len(package):  # a header is 60 bytes: the name in 16, the size in 10 from byte 48
        name = package[position : position + 16].decode().strip().rstrip("/")
        size = int(package[position + 48 : position + 58])
        if name.startswith("data.tar"):
            return package[position + 60 : position + 60 + size]
        position += 60 + size + size % 2
    raise ConfigError(
        f"expected a Debian package with data.tar.* in {path}, got {len(package)} bytes without; get it again"
    )


def cifar10(folders: Sequence[Path]) -> dict[str, Array]:
    """Images [N, 32, 32, 3] and labels of both splits, from the grids that lie in ``folders``."""
    grids = {path.stem: path for folder in folders if folder.exists() for path in folder.glob("*_?.webp")}
    labels = next((path for folder in folders for path in folder.glob("labels.npz")), None)
    if labels is None or "test_0" not in grids or not any(name.startswith("train") for name in grids):
        raise ConfigError(
            f"expected labels.npz, test_0.webp and at least one of train_0.webp to train_4.webp in {_listed(folders)}, "
            f"got {', '.join(sorted(grids)) or 'none of them'}; bring the others, or --keep them in an earlier call"
        )
    all_labels, arrays = np.load(labels), {}
    for split in ("train", "test"):
        names = [name for name in sorted(GRID_DIGESTS) if name.startswith(split) and name in grids]
        arrays[f"{split}_x"] = np.concatenate([read_grid(grids[name]) for name in names])
        each = GRID_SIDE**2
        parts = [all_labels[split][int(name[-1]) * each : (int(name[-1]) + 1) * each] for name in names]
        arrays[f"{split}_y"] = np.concatenate(parts).astype(np.int64)
    return arrays


def read_grid(path: Path) -> Array:
    """The images of one grid, uint8 [10000, 32, 32, 3]."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    tiles = pixels.reshape(GRID_SIDE, IMAGE_SIDE, GRID_SIDE, IMAGE_SIDE, 3).transpose(0, 2, 1, 3, 4)
    images = np.ascontiguousarray(tiles).reshape(-1, IMAGE_SIDE, IMAGE_SIDE, 3)
    _check(path.name, images.tobytes(), GRID_DIGESTS[path.stem])
    return images


def _check(name: str, content: bytes, digest: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ConfigError(f"expected {name} to hold content with SHA-256 {digest}, got {found}; get the file again")


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders)) or "no folder"


if __name__ == "__main__":
    sys.exit(main())
