"""Published data sets that have to be downloaded once. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from bllpipe.errors import DataError

DEFAULT_PATH = "data"
SECONDS = 4.0  # a server that says nothing for so long is not there


@dataclass(frozen=True)
class Download:
    """``kind`` is torchvision's class; one of ``traces`` lies in the folder once the set has been there."""

    kind: str
    traces: tuple[str, ...]
    url: str


DOWNLOADS = {
    "cifar10": Download(
        "CIFAR10",
        ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    "cifar100": Download(
        "CIFAR100",
        ("cifar-100-python", "cifar-100-python.tar.gz"),
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    "fashion_mnist": Download(
        "FashionMNIST",
        ("FashionMNIST",),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
    ),
}


def check_obtainable(name: str, path: str) -> None:
    """Raises DataError when ``name`` is not in the folder ``path`` and its server does not answer."""
    if any((Path(path) / trace).exists() for trace in DOWNLOADS[name].traces):
        return
    try:
        urlopen(Request(DOWNLOADS[name].url, method="HEAD"), timeout=SECONDS).close()  # noqa: S310  # one of the above
    except HTTPError:
        return  # it is there; the download itself will say what it minds
    except OSError as error:
        raise missing(name, path, error) from error


def missing(name: str, path: str, error: Exception) -> DataError:
    """What to type when a set is neither here nor to be had."""
    return DataError(
        f"{name} is not in {path} and could not be downloaded ({error}); on a machine with a network type\n"
        f"  bllpipe data fetch {name} --path {path}\n"
        f"and copy that folder here, or name its place with --set data.path=FOLDER; delete it first if it is damaged"
    )
