"""Image folders that somebody has filled with other things: nothing is waited for, run, or unfolded without a bound."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bllpipe.config.schema import DataConfig
from bllpipe.data.decoding import MAX_BYTES
from bllpipe.data.image_folder import FolderImages, folder_labels
from bllpipe.errors import DataError
from tests.support.memory import little_memory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image in each of two classes and splits; train/cat/0.png is the first."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / split / name / "0.png")
    return tmp_path


def first(root: Path) -> torch.Tensor:
    data = DataConfig(name="imagefolder", path=str(root), image_size=8)
    return next(FolderImages(data).batches([("train", torch.tensor([0]))]))


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A greyscale PNG that says it has this size, and holds these rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_pipe_is_not_waited_for(root: Path) -> None:
    (root / "train" / "cat" / "0.png").unlink()
    os.mkfifo(root / "train" / "cat" / "0.png")
    with pytest.raises(
        DataError, match=r"cat/0\.png cannot be read as an image: it is a folder, a pipe or a device; re"
    ):
        first(root)


def test_links_in_a_circle(root: Path) -> None:
    (root / "train" / "cat" / "0.png").unlink()
    (root / "train" / "cat" / "0.png").symlink_to("0.png")
    with pytest.raises(
        DataError, match=r"cat/0\.png cannot be read as an image: .*symbolic links.*; remove or replace"
    ):
        first(root)


def test_splits_may_lie_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "train").rename(elsewhere / "images")
    (root / "train").symlink_to(elsewhere / "images")
    assert first(root).shape == (1, 3, 8, 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's limit is above ours
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (20_000, 20_000), (12_000, 8_000), (2**31 - 1, 1)])
def test_a_bomb_is_not_unfolded(root: Path, width: int, height: int) -> None:
    """Pillow alone refuses the first, warns of the second, and unfolds the others."""
    (root / "train" / "cat" / "0.png").write_bytes(png(width, height))
    with (
        little_memory(),
        pytest.raises(
            DataError, match=r"cat/0\.png (cannot be read as an image: .*pixels|has \d+ x \d+ pixels; at mo)"
        ),
    ):
        first(root)


def test_a_file_without_an_end_is_not_read(root: Path) -> None:
    """Of some formats Pillow reads all that there is before it looks at it."""
    path = root / "train" / "cat" / "0.png"
    path.write_bytes(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
    os.truncate(path, 10**10)
    with (
        little_memory(),
        pytest.raises(
            DataError, match=rf"cat/0\.png has 10,000,000,000 bytes; at most {MAX_BYTES:,} are read; make it"
        ),
    ):
        first(root)


def test_a_program_in_disguise_is_not_run(root: Path) -> None:
    """Pillow would hand EPS to Ghostscript, whatever the file is called."""
    (root / "train" / "cat" / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read as an image: cannot identify image file"):
        first(root)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # half a TIFF has half of its tags
@pytest.mark.parametrize(
    "content",
    [
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0),
        b"II*\0" + struct.pack("<IH", 8, 65535) + b"\xff" * 40,
        b"P6 4294967296 4294967296 255\n",
        b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b"," + b"\xff" * 8 + b"\0",
        b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9) + b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\0\0\0",
        png(8, 8),
    ],
    ids=["bmp", "tiff", "ppm", "gif", "jpeg", "png"],
)
def test_half_an_image_is_none(root: Path, content: bytes) -> None:
    (root / "train" / "cat" / "0.png").write_bytes(content)
    with pytest.raises(DataError, match=r"cat/0\.png (cannot be read as an image|has \d+ x \d+ pixels; at most)"):
        first(root)


def test_a_folder_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="train cannot be read: Permission denied; expected a folder of images"):
        folder_labels(DataConfig(name="imagefolder", path=str(root)))


def test_more_classes_than_any_network_tells_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bllpipe.data.catalog.MAX_CLASSES", 2)
    assert first(root).dtype == torch.uint8
    (root / "train" / "emu").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "train" / "emu" / "0.png")
    with pytest.raises(DataError, match="training label 2; expected classes numbered from 0, at most 2$"):
        folder_labels(DataConfig(name="imagefolder", path=str(root)))
