"""Mean and standard deviation of the pixels of decoded images, measured on a sample and cached.

The sample is 1,000 training images at equal distances in their order, or all of them if there are fewer, each resized
and cropped as a test image. The result is stored in torch's cache directory ($TORCH_HOME, by default ~/.cache/torch) as
``bllpipe/statistics/KEY.json``. The key is a SHA-256 of the bytes of these images, of the sizes of resize and crop, and
of Pillow's version, so other images never get the result, and the same ones do wherever they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bllpipe.data.base import Statistics
from bllpipe.data.decoding import MAX_BYTES, Decoder, Files, Key, decoded
from bllpipe.errors import BllpipeError
from bllpipe.utils.files import read_record, write_record

SAMPLE, BATCH = 1000, 50  # images


def sample_statistics(files: Files, decoder: Decoder, workers: int) -> Statistics:
    """Mean and standard deviation by channel of pixels in 0..1; a channel without variation is divided by 1."""
    count = min(SAMPLE, len(files))
    numbers = [number * len(files) // count for number in range(count)]
    path = cached_file(files, numbers, decoder.key)
    if path is not None and (known := _read(path)) is not None:
        return known
    found = _measured(decoder, numbers, workers)
    if path is not None:
        with suppress(OSError, BllpipeError):  # a full or foreign home: the next run measures again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, {"mean": found[0], "std": found[1], "images": count})
    return found


def cached_file(files: Files, numbers: Sequence[int], sizes: str) -> Path | None:
    """Where the result of a sample is stored; None if an image cannot be read, which its decoder then says."""
    digest = hashlib.sha256(f"1 {sizes} {len(numbers)}".encode())
    for number in numbers:
        name, content = files.file("train", number)
        if content is None:
            try:
                if not Path(name).is_file() or Path(name).stat().st_size > MAX_BYTES:
                    return None
                content = Path(name).read_bytes()
            except OSError:
                return None
        digest.update(hashlib.sha256(content).digest())
    return Path(torch.hub.get_dir()).parent / "bllpipe" / "statistics" / f"{digest.hexdigest()}.json"


def _read(path: Path) -> Statistics | None:
    """What is stored; None for nothing, or for something else."""
    if not path.exists():
        return None
    try:
        record, _ = read_record(path)
    except BllpipeError:
        return None
    mean, std = record.get("mean"), record.get("std")
    for values in (mean, std):
        if not isinstance(values, list) or len(values) != 3 or not all(type(each) is float for each in values):
            return None
    return (mean, std) if all(0 < value <= 1 for value in std) else None  # type: ignore[return-value, union-attr]  # as checked


def _measured(items: Dataset[Tensor], numbers: Sequence[int], workers: int) -> Statistics:
    batches: list[list[Key]] = [
        [("train", number, None) for number in numbers[start : start + BATCH]]
        for start in range(0, len(numbers), BATCH)
    ]
    sums_C, squares_C, pixels = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0
    for images_BCHW in decoded(items, batches, workers, torch.Generator()):
        values = images_BCHW.to(torch.int64)  # sums of whole numbers do not depend on their order
        sums_C += values.sum(dim=(0, 2, 3))
        squares_C += values.square().sum(dim=(0, 2, 3))
        pixels += values.numel() // 3
    mean_C = sums_C.double() / pixels
    std_C = (squares_C.double() / pixels - mean_C.square()).clamp(min=0).sqrt()
    std_C[std_C == 0] = 255
    return (mean_C / 255).tolist(), (std_C / 255).tolist()
