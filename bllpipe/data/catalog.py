"""What is known of a data set without loading it: its sizes, its download address, and the files of a folder, with a
count of those that are left out.

A folder holds PATH/train/CLASS/* and PATH/test/CLASS/*, or the images of a split as its metadata file says. The two may
be links to anywhere; links inside them must not leave the data set.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from bllpipe.config.schema import DataConfig
from bllpipe.data.metadata import Sample, metadata_samples
from bllpipe.errors import DataError

MAX_CLASSES = 100_000  # then a last layer of 512 channels has 200 MB
DEFAULT_PATH = "data"
SERVER_TIMEOUT_SECONDS = 4.0
TEST_FOLDERS = ("test", "val", "validation", "valid")  # the first that is there
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")


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
        kinds = [f"{kind} {count}" for kind, count in sorted(self.kinds.items(), key=lambda each: (-each[1], each[0]))]
        parts = [
            (sum(self.kinds.values()), "file{s} of other kinds" + _named(kinds)),
            (self.inner_folders, "folder{s} inside class folders"),
            (self.loose_images, "image{s} outside of class folders"),
            (self.hidden, "hidden file{s} or folder{s}"),
            (len(self.empty_folders), "empty class folder{s}" + _named(self.empty_folders)),
        ]
        return ", ".join(f"{count} {text.format(s='' if count == 1 else 's')}" for count, text in parts if count)


def _named(names: Sequence[str]) -> str:
    shown = [name.replace("{", "{{").replace("}", "}}") for name in names[:5]]
    return f" ({', '.join(shown)}{', ...' if len(names) > 5 else ''})"


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


@dataclass(frozen=True)
class DataSpec:
    """Sizes of a data set: image counts of both splits, the shape of one image, [C, H, W] unless a script gives others,
    and the number of classes. ``labels_sha256`` is there once the labels have been read."""

    num_train: int
    num_test: int
    image_shape: tuple[int, ...]
    num_classes: int
    labels_sha256: str = field(default="", compare=False)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> DataSpec:
        fields = json.loads(text)
        return cls(**{**fields, "image_shape": tuple(fields["image_shape"])})


PUBLISHED = {
    "digits": DataSpec(1442, 355, (1, 8, 8), 10),
    "mnist": DataSpec(60_000, 10_000, (1, 28, 28), 10),
    "fashion_mnist": DataSpec(60_000, 10_000, (1, 28, 28), 10),
    "cifar10": DataSpec(50_000, 10_000, (3, 32, 32), 10),
    "cifar100": DataSpec(50_000, 10_000, (3, 32, 32), 100),
}


def spec_without_files(data: DataConfig) -> DataSpec | None:
    """The sizes of published and of synthetic data; None for data whose sizes depend on files or a script."""
    if data.name != "synthetic":
        return PUBLISHED.get(data.name)
    shape = (3, data.image_size, data.image_size)
    return DataSpec(data.synthetic_images, max(data.synthetic_images // 4, 1), shape, data.synthetic_classes)


def check_user_data(data: DataConfig) -> None:
    """Raises DataError for data that a script passed as an object, unless the script runs."""
    if data.name == "given" and data.user_data is None:
        raise DataError(
            "data.name is given: what a script passed to bllpipe.train as an object, and only that script has it; run "
            "the script, or name a set of your own with --set data.name=npz or imagefolder, and --set data.path=PATH"
        )


def check_labels(train_N: Any, test_N: Any, source: str) -> int:
    """The number of classes; DataError when there are no labels, negative ones, too many classes, or test labels beyond
    the training's.

    The labels may be arrays or tensors of whole numbers, [N].
    """
    for split, labels_N in (("train", train_N), ("test", test_N)):
        if len(labels_N) == 0:
            raise DataError(f"{source}: the {split} split has no images; expected at least one")
        if int(labels_N.min()) < 0:
            raise DataError(f"{source}: {split} label {int(labels_N.min())}; expected classes numbered from 0")
    classes = int(train_N.max()) + 1
    if classes > MAX_CLASSES:
        raise DataError(
            f"{source}: training label {classes - 1}; expected classes numbered from 0, at most {MAX_CLASSES:,}"
        )
    if int(test_N.max()) >= classes:
        raise DataError(
            f"{source}: test label {int(test_N.max())}, but training labels only go up to {classes - 1}; "
            f"expected the same classes in both"
        )
    if classes < 2:
        raise DataError(f"{source}: only one class; expected at least 2")
    return classes


@dataclass(frozen=True)
class Download:
    """``kind`` is torchvision's class, ``url`` a file of the set."""

    kind: str
    url: str


DOWNLOADS = {
    "cifar10": Download("CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    "cifar100": Download("CIFAR100", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
    "mnist": Download("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz"),
    "fashion_mnist": Download(
        "FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz"
    ),
}


def check_obtainable(name: str, path: str) -> None:
    """Raises DataError when the files of ``name`` are not under ``path`` and its server does not answer."""
    from bllpipe.data.original_files import is_there  # and readers of archives, which few commands need

    if is_there(name, path):
        return
    try:
        urlopen(Request(DOWNLOADS[name].url, method="HEAD"), timeout=SERVER_TIMEOUT_SECONDS).close()  # noqa: S310  # one of the above
    except HTTPError:
        return  # the server answers; the download reports its own errors
    except OSError as error:
        raise missing(name, path, error) from error


def missing(name: str, path: str, error: Exception) -> DataError:
    """The error for a set that is neither in ``path`` nor can be downloaded."""
    return DataError(
        f"{name} is not in {path} and could not be downloaded ({error}); on a machine with a network type\n"
        f"  bllpipe data fetch {name} --path {path}\n"
        f"and copy that folder here, or name the place of the original files with --set data.path=FOLDER"
    )


def listing(path: str, warn: Callable[[str], None] = lambda text: None) -> dict[str, list[Sample]]:
    """(class, file) of every image of the splits ``train`` and ``test``, sorted by class and name. Tells ``warn`` what
    is left out. DataError when a class would vanish."""
    root = Path(path)
    return {split: _samples(folder, root, warn) for split, folder in split_folders(path).items()}


def split_folders(path: str) -> dict[str, Path]:
    """The folders of both splits; DataError when there is none."""
    root = Path(path)
    found = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    folders = {"train": root / "train", "test": found[0] if found else root / "test"}
    for folder in folders.values():
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist; expected {root}/train/CLASS/*.png and {root}/test/CLASS/*.png")
    return folders


def _samples(folder: Path, root: Path, warn: Callable[[str], None]) -> list[Sample]:
    if (listed := metadata_samples(folder, SUFFIXES)) is not None:
        for _, file in listed:
            _check_inside(file, root)
        return listed
    samples, left_out = [], LeftOut()
    for group in _entries(folder):
        if is_hidden(group):
            left_out.hidden += 1
        elif group.is_dir():
            _check_inside(group, root)
            for file in images_of_class(group, _entries(group), SUFFIXES, left_out):
                _check_inside(file, root)
                samples.append((group.name, file))
        else:
            left_out.loose_images += group.suffix.lower() in SUFFIXES
    if found := str(left_out):
        warn(f"{folder}: left out {found}; an image counts where it is CLASS/NAME with one of {' '.join(SUFFIXES)}")
    if not samples:
        raise DataError(f"{folder} holds no images; expected {folder}/CLASS/*.png")
    return samples


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; expected a folder of images") from error


def _check_inside(path: Path, root: Path) -> None:
    """Raises DataError for a link that leaves the data set."""
    if not path.is_symlink():
        return
    target = Path(os.path.realpath(path))  # which, unlike Path.resolve, accepts circular links
    if Path(os.path.realpath(root)) not in target.parents:
        raise DataError(f"{path} is a link to {target}, outside of {root}; copy the images instead")
