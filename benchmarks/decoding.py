"""Images/s of one decoding process: bllpipe's recipes beside a torch DataLoader with the same transforms.

The photographs have the size of ImageNet's and of a phone's; the DataLoader reads them with torchvision's ImageFolder.
Both read the same JPEG files with one worker process. All cases run once as warm-up, and then in turn, ``--repeats``
times. A rate is images by second of CPU time of that process, so other processes on the machine disturb it little; the
costs of a process that decodes one batch are taken off. The photographs are parts of the two that come with
scikit-learn.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from benchmarks.report import Spread, table, write
from bllpipe.config.schema import AugmentConfig, DataConfig
from bllpipe.data.image_folder import FolderImages

SIZES = {"500 x 375": (500, 375, 120), "2000 x 1500": (2000, 1500, 20)}  # width, height, images that are timed
CASES = [("imagenet", 224), ("trivial", 224), ("imagenet", 64), ("cifar", 32)]
MEAN = [0.485, 0.456, 0.406]
BATCH = 10
NAMES = ("bllpipe", "DataLoader")


@dataclass(frozen=True)
class Case:
    """One recipe at one size of crops, on the photographs of one size."""

    photographs: str
    recipe: Any
    size: int

    def ours(self, root: Path, count: int) -> Iterable[Tensor]:
        data = DataConfig(
            name="imagefolder",
            path=str(root),
            image_size=self.size,
            workers=1,
            mean=MEAN,
            std=MEAN,
            augment=AugmentConfig(recipe=self.recipe),
        )
        return FolderImages(data).batches([("train", index_B) for index_B in torch.arange(count).split(BATCH)])

    def plain(self, root: Path, count: int) -> Iterable[Any]:
        images = ImageFolder(str(root / "train"), transform=self._transforms())
        batches = [index_B.tolist() for index_B in torch.arange(count).split(BATCH)]
        return DataLoader(images, batch_sampler=batches, num_workers=1)

    def _transforms(self) -> Any:
        size, flip = self.size, v2.RandomHorizontalFlip()
        if self.recipe == "cifar":
            crop = [v2.Resize(size), v2.CenterCrop(size), v2.RandomCrop(size, padding=size // 8)]
            return v2.Compose([*crop, flip, v2.PILToTensor()])
        steps: list[Any] = [v2.RandomResizedCrop(size), flip]
        if self.recipe == "trivial":
            steps.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
        steps.append(v2.PILToTensor())
        if self.recipe == "trivial":
            steps.append(v2.RandomErasing(p=0.1, value=[round(255 * value) for value in MEAN]))
        return v2.Compose(steps)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for every case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = [Case(photographs, *each) for photographs in SIZES for each in CASES]
    with tempfile.TemporaryDirectory() as folder:
        roots = {name: photographs(Path(folder) / name.replace(" ", ""), *size) for name, size in SIZES.items()}
        rates: dict[tuple[Case, str], list[float]] = {}
        for repeat in range(options.repeats + 1):
            for case in cases:
                for name, make in zip(NAMES, (case.ours, case.plain), strict=True):
                    found = rate_of(make, roots[case.photographs], SIZES[case.photographs][2])
                    if repeat > 0:  # the first one is warm-up
                        rates.setdefault((case, name), []).append(found)
    results = [
        {**asdict(case), **{name: Spread.of(rates[case, name]) for name in NAMES}, "ratio": _ratio(case, rates)}
        for case in cases
    ]
    rows = [
        [*astuple(case), *(each[name] for name in NAMES), f"{ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f})"]
        for case, each in zip(cases, results, strict=True)
        for ratio in [each["ratio"]]
    ]
    print(table(["photographs", "recipe", "crop", "bllpipe, images/s", "DataLoader, images/s", "ratio"], rows))
    print(f"median (smallest to largest) of {options.repeats}, by CPU second of one process; ratio of two in a row")
    versions = {"torchvision": torchvision.__version__, "pillow": PIL.__version__}
    write(options.json, str(__doc__).splitlines()[0], {"repeats": options.repeats, **versions}, results)
    return 0


def _ratio(case: Case, rates: Mapping[tuple[Case, str], Sequence[float]]) -> Spread:
    """Of the two rates of every repetition, which were measured one after the other."""
    pairs = zip(*(rates[case, name] for name in NAMES), strict=True)
    return Spread.of([ours / plain for ours, plain in pairs])


def photographs(root: Path, width: int, height: int, count: int) -> Path:
    """A folder of JPEG files: parts of two photographs, enlarged to this size."""
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]  # scikit-learn has no types

    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    draws = np.random.default_rng(0)
    for split, number_of in (("train", count + BATCH), ("test", 2)):
        for number in range(number_of):
            source = sources[number % 2]
            left, top = (int(draws.integers(0, side - 300)) for side in source.size)
            part = source.crop((left, top, left + 400, top + 300)).resize((width, height), Image.Resampling.BICUBIC)
            noise = draws.normal(0, 4, (height, width, 3))  # of a sensor, which JPEG has to encode
            path = root / split / ("cat", "dog")[number % 2] / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (np.asarray(part) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, quality=92)
    return root


def rate_of(make: Callable[[Path, int], Iterable[Any]], root: Path, count: int) -> float:
    """Images by CPU second, of ``count`` images after those of a first batch."""
    first, whole = (_cpu_seconds(make, root, number) for number in (BATCH, count + BATCH))
    return count / max(whole - first, 1e-9)


def _cpu_seconds(make: Callable[[Path, int], Iterable[Any]], root: Path, count: int) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in make(root, count):
        pass
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # the process has ended with its last batch
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
