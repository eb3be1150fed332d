"""Hostile image folders: bombs, halves of images, other things that look like one, and ways out of the folder."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from benchmarks.chaos.cases import Families, MakeCase
from benchmarks.chaos.hostile import (
    disguised,
    file_case,
    mutated,
    no_file,
    noise,
    of_kinds,
    plain_pickle,
    sparse,
    unharmed,
)
from benchmarks.chaos.tensors import pickle_by_torch, pickle_in_a_zip
from benchmarks.chaos.texts import written
from bllpipe.config.schema import DataConfig
from bllpipe.data.decoding import FORMATS, MAX_BYTES
from bllpipe.data.image_folder import FolderImages

OTHERS = ("TGA", "PCX", "SGI", "PDF", "EPS", "DDS", "IM", "ICO")  # what else Pillow writes and reads
MAGICS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"GIF89a", b"II*\0", b"MM\0*", b"P6 800 800 255\n", b"P3 9"),
    *(b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBPVP8X", b"%!PS-Adobe", b"\0\0\1\0", b"8BPS", b"<svg>", b"MZ", b""),
)
SIZES = ((65_535, 65_535), (65_535, 1_100), (1_100, 65_535), (20_000, 20_000), (12_000, 8_000))
MEBIBYTE = 1 << 20


def image_families() -> Families:
    Image.init()  # all that Pillow knows, not counted as memory of the first image
    return {"image folders": _images()}


def _images() -> MakeCase:
    case = partial(file_case, "0.png", read=unharmed(_read))
    return of_kinds(
        {
            "a bomb": case(write=written(_bomb)),
            "a bomb of text": case(write=written(_text_bomb)),
            "another format": case(write=written(_other)),
            "no file": case(write=no_file),
            "a file without end": case(write=_endless),
            "a way out": case(write=_way_out),
            "random bytes": case(write=noise(*MAGICS)),
            "a pickle": case(write=disguised(plain_pickle, pickle_by_torch, pickle_in_a_zip)),
            "a good one, changed": case(write=mutated(_good), may_pass=True),
        }
    )


def _read(path: Path) -> None:
    """As the first block reads it: the first image of a set of two classes is the hostile one."""
    root = path.parent / "set"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / split / name / "1.png")
    if os.path.lexists(path):
        path.rename(root / "train" / "cat" / "0.png")
    else:
        (root / "train" / "cat" / "1.png").unlink()
    data = DataConfig(name="imagefolder", path=str(root), image_size=8)
    next(FolderImages(data).batches([("train", torch.tensor([0]))]))


def _image(draws: random.Random, format: str, mode: str = "RGB") -> bytes:
    file, size = BytesIO(), (draws.randrange(1, 40), draws.randrange(1, 40))
    channels = len(mode)
    Image.frombytes(mode, size, draws.randbytes(size[0] * size[1] * channels)).save(file, format)
    return file.getvalue()


def _good(draws: random.Random) -> bytes:
    return _image(draws, draws.choice(FORMATS), draws.choice(["RGB", "L"]))


def _other(draws: random.Random) -> bytes:
    return _image(draws, draws.choice(OTHERS))


def _bomb(draws: random.Random) -> bytes:
    """A small image that says it is a large one."""
    format = draws.choice(sorted(ENLARGE))
    return ENLARGE[format](bytearray(_image(draws, format)), *draws.choice(SIZES))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _large_png(content: bytearray, width: int, height: int) -> bytes:
    head = struct.pack(">II", width, height) + content[24:29]
    return bytes(content[:8]) + _chunk(b"IHDR", head) + bytes(content[33:])


def _large_gif(content: bytearray, width: int, height: int) -> bytes:
    struct.pack_into("<HH", content, 6, width, height)
    return bytes(content)


def _large_bmp(content: bytearray, width: int, height: int) -> bytes:
    struct.pack_into("<ii", content, 18, width, height)
    return bytes(content)


def _large_ppm(content: bytearray, width: int, height: int) -> bytes:
    return f"P6 {width} {height} 255\n".encode() + bytes(content[-50:])


def _large_jpeg(content: bytearray, width: int, height: int) -> bytes:
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    return bytes(content)


def _large_tiff(content: bytearray, width: int, height: int) -> bytes:
    """Tags 256 and 257 of the first directory."""
    start = struct.unpack_from("<I", content, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        tag = struct.unpack_from("<H", content, entry)[0]
        if tag in (256, 257):
            struct.pack_into("<HHII", content, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(content)


def _large_webp(content: bytearray, width: int, height: int) -> bytes:
    """As large as the format allows; its decoder asks for all the memory before anybody else sees the size."""
    struct.pack_into("<HH", content, content.index(b"\x9d\x01\x2a") + 3, min(width, 16_383), 16_383)
    return bytes(content)


ENLARGE: dict[str, Callable[[bytearray, int, int], bytes]] = {
    "PNG": _large_png,
    "GIF": _large_gif,
    "BMP": _large_bmp,
    "PPM": _large_ppm,
    "JPEG": _large_jpeg,
    "TIFF": _large_tiff,
    "WEBP": _large_webp,
}


def _text_bomb(draws: random.Random) -> bytes:
    """A PNG with a packed text, or colour profile, of hundreds of megabytes."""
    content, packer = _image(draws, "PNG"), zlib.compressobj(level=1)
    packed = b"".join(packer.compress(bytes(MEBIBYTE)) for _ in range(draws.randrange(320, 400))) + packer.flush()
    kind = draws.choice([b"zTXt", b"iTXt"])
    head = b"a\0\0" if kind == b"zTXt" else b"a\0\1\0\0\0"
    return content[:33] + _chunk(kind, head + packed) + content[33:]


def _endless(draws: random.Random, path: Path) -> str:
    return sparse(draws.choice(MAGICS), least=MAX_BYTES + 1)(draws, path)


def _way_out(draws: random.Random, path: Path) -> str:
    """A link to a file that is not of this data set, whatever it is."""
    secret = path.parent / "secret.png"
    secret.write_bytes(_good(draws))
    target = draws.choice([secret, Path("/etc/passwd"), Path("/proc/self/mem"), Path("/dev/random"), Path("/")])
    path.symlink_to(target)
    return f"a link to {target.name or '/'}"
