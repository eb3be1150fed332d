"""Recipes: torchvision's own transforms, a pure function of seed, epoch and image, in any number of processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

import bllpipe
from bllpipe.api.datasets import TensorData
from bllpipe.config import parse_config
from bllpipe.config.running import GpuConfig
from bllpipe.config.schema import AugmentConfig, Config, DataConfig
from bllpipe.data.base import Arrays, ImageSet
from bllpipe.data.decoded_images import ArrayImages
from bllpipe.data.decoding import in_mode, reduced
from bllpipe.data.image_folder import FolderImages
from bllpipe.data.loader import ImageSource, normalise, stays_on_device
from bllpipe.data.recipes import Recipe
from bllpipe.data.registry import load_images
from bllpipe.errors import ConfigError
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.utils.tensors import derived_seed

SIZE, SEED = 32, 3
RECIPES: list[Any] = ["cifar", "imagenet", "trivial"]
MEAN = [0.2, 0.4, 0.6]


def photograph(number: int, width: int = 60, height: int = 40) -> Image.Image:
    """Coarse noise, which survives JPEG."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four test photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(12):
        split, name = ("train", "test")[number >= 8], ("cat", "dog")[number % 2]
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        photograph(number).save(folder / split / name / f"{number:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def configured(root: Path, recipe: Any, workers: int = 0) -> DataConfig:
    return DataConfig(
        name="imagefolder",
        path=str(root),
        image_size=SIZE,
        workers=workers,
        mean=MEAN,
        std=[0.5] * 3,
        augment=AugmentConfig(recipe=recipe),
    )


def train(images: ImageSet, *numbers: int) -> Tensor:
    """uint8 [B, C, H, W]"""
    return next(images.batches([("train", torch.tensor(numbers))]))


def composed(recipe: str) -> Any:
    """The transforms as torchvision's users write them."""
    crop = [v2.Resize(SIZE), v2.CenterCrop(SIZE), v2.RandomCrop(SIZE, padding=SIZE // 8)]
    if recipe != "cifar":
        crop = [v2.RandomResizedCrop(SIZE)]
    steps = [*crop, v2.RandomHorizontalFlip()]
    if recipe == "trivial":
        steps.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    steps.append(v2.PILToTensor())
    if recipe == "trivial":
        steps.append(v2.RandomErasing(p=0.1, value=[round(255 * value) for value in MEAN]))
    return v2.Compose(steps)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_equals_torchvisions_transforms_under_the_same_seed(root: Path, recipe: Any) -> None:
    numbers = [number for epoch in range(5) for number in (8 * epoch + 7, 8 * epoch)]
    found = train(FolderImages(configured(root, recipe), SEED), *numbers)
    for image_CHW, number in zip(found, numbers, strict=True):
        epoch, index = divmod(number, 8)
        torch.manual_seed(derived_seed(SEED, "recipe", epoch, index))
        source = photograph(2 * index if index < 4 else 2 * index - 7)  # the folder is sorted by class
        assert torch.equal(image_CHW, composed(recipe)(source))
    assert len({image.numpy().tobytes() for image in found}) > 5


@pytest.mark.parametrize("recipe", RECIPES)
def test_neither_workers_nor_batches_nor_the_order_matter(root: Path, recipe: Any) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    together = train(FolderImages(configured(root, recipe), SEED), *range(16))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    wanted: list[Any] = [("train", torch.tensor(numbers)) for numbers in ([9, 2], [1], [15, 0, 7])]
    for batch, (_, index_B) in zip(
        FolderImages(configured(root, recipe, workers=2), SEED).batches(wanted), wanted, strict=True
    ):
        assert torch.equal(batch, together[index_B])
    assert not torch.equal(together[:8], together[8:]), "epochs differ"
    assert not torch.equal(train(FolderImages(configured(root, recipe), SEED + 1), *range(16)), together)


@pytest.mark.parametrize("recipe", ["none", *RECIPES])
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_test_images_are_resized_and_cropped_at_the_centre(tmp_path: Path, recipe: Any, extension: str) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            photograph(0, 300, 240).save(tmp_path / split / name / f"0.{extension}", quality=95)
    found = next(FolderImages(configured(tmp_path, recipe), SEED).batches([("test", torch.tensor([0]))]))[0]
    resize = SIZE if recipe in ("none", "cifar") else round(SIZE * 256 / 224)
    with Image.open(tmp_path / "test" / "cat" / f"0.{extension}") as image:
        expected = v2.Compose([v2.Resize(resize), v2.CenterCrop(SIZE), v2.PILToTensor()])(image.convert("RGB"))
    if extension == "png" or recipe == "none":
        assert torch.equal(found, expected)
    else:  # JPEG was decoded at a quarter of its size
        assert (found.float() - expected.float()).abs().mean() < 3


@pytest.mark.parametrize("size", [(640, 480), (481, 333), (64, 64)])
def test_a_large_jpeg_is_decoded_smaller_but_not_below_what_is_needed(tmp_path: Path, size: tuple[int, int]) -> None:
    path, box = tmp_path / "0.jpg", (size[0] // 5, size[1] // 4, size[0] - 7, size[1] - 11)
    photograph(1, *size).save(path, quality=95)
    factor = min((box[2] - box[0]) // SIZE, (box[3] - box[1]) // SIZE)
    with Image.open(path) as image:
        small = reduced(image, box, factor)
        assert (image.size != size) == (factor > 1)
        assert small[2] - small[0] >= SIZE and small[3] - small[1] >= SIZE
        part = image.crop(small).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    with Image.open(path) as image:
        whole = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.abs(np.array(part, dtype=float) - np.array(whole, dtype=float)).mean() < 3


def test_a_thin_image_stays_in_its_bounds(tmp_path: Path) -> None:
    path = tmp_path / "0.jpg"
    photograph(1, 400, 9).save(path)
    with Image.open(path) as image:
        box = reduced(image, (399, 8, 400, 9), 8)
        assert image.size == (100, 3)
        assert image.crop(box).size == (1, 1) and 0 <= box[0] < box[2] <= image.width and box[3] <= image.height


def test_an_image_of_the_right_mode_is_not_copied() -> None:
    image = photograph(0)
    assert in_mode(image, "RGB") is image and in_mode(image, "L").mode == "L"


def arrays(channels: int) -> Arrays:
    pixels = torch.randint(0, 256, (8, channels, 12, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(8) % 2
    return Arrays(pixels, labels, pixels[:4], labels[:4], 2)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_have_recipes_too(recipe: Any, channels: int) -> None:
    data = DataConfig(name="given", augment=AugmentConfig(recipe=recipe))
    images = TensorData(arrays(channels)).images(data, SEED)
    assert isinstance(images, ArrayImages) and images.spec.image_shape == (channels, 12, 16)
    train_BCHW, test_BCHW = images.batches([("train", torch.arange(12, 16)), ("test", torch.arange(4))])
    assert torch.equal(test_BCHW, arrays(channels).test_NCHW)
    pixels = arrays(channels).train_NCHW[5].permute(1, 2, 0).squeeze(2).numpy()
    expected = Recipe(recipe, 12, 16, images.mean)(Image.fromarray(pixels), derived_seed(SEED, "recipe", 1, 5))
    assert train_BCHW.dtype == torch.uint8 and torch.equal(train_BCHW[1], expected)
    with pytest.raises(ConfigError, match="gpu.images is device, but .*recipes run in processes; use --set gpu.images"):
        stays_on_device(images, GpuConfig(images="device"), 2**40)


def test_arrays_of_other_channels_are_refused() -> None:
    data = DataConfig(name="given", augment=AugmentConfig(recipe="cifar"))
    with pytest.raises(
        ConfigError, match="recipe is cifar, but the images have 2 channels; expected 1 or 3; use --set"
    ):
        TensorData(arrays(2)).images(data, SEED)


def test_the_first_block_gets_the_images_of_its_epoch(root: Path) -> None:
    data = configured(root, "trivial")
    images = load_images(data, SEED)
    schedule = RunSchedule.of(Config(epochs=2, data=DataConfig(batch_size=4)), 8, 4)
    source = ImageSource(images, schedule.rounds(), SEED, data.augment)
    from bllpipe.data.loader import batch_index, epoch_order

    for _ in range(6):
        alpha = source.recv()
        entry = alpha.round
        if entry.phase == "train":
            index_B = batch_index(epoch_order(SEED, entry.epoch, 8), entry.batch, 4) + 8 * entry.epoch
            expected = normalise(train(FolderImages(data, SEED), *index_B.tolist()), MEAN, [0.5] * 3)
            assert torch.equal(alpha.alpha_BCHW, expected)


@pytest.mark.parametrize("key", [{"rotation": 5}, {"flip": True}, {"crop_padding": 4}])
def test_a_recipe_stands_in_place_of_the_other_keys(key: dict[str, Any]) -> None:
    name = next(iter(key))
    with pytest.raises(
        ConfigError, match=f"{name} is .*, but data.augment.recipe is cifar, which takes its place; lea"
    ):
        parse_config({"data": {"augment": {"recipe": "cifar", **key}}})
    for off in ({}, {"rotation": 0, "crop_padding": 0}):
        assert parse_config({"data": {"augment": {"recipe": "cifar", **off}}}).data.augment.recipe == "cifar"


def test_torchvision_is_imported_for_a_recipe_alone(root: Path) -> None:
    code = (
        "import sys, torch\nfrom bllpipe.config.schema import *\nfrom bllpipe.data.registry import load_images\n"
        f"data = DataConfig(name='imagefolder', path={str(root)!r}, image_size=8)\n"
        "next(load_images(data, 0).batches([('train', torch.tensor([0]))]))\n"
        "assert 'torchvision' not in sys.modules\nimport bllpipe.data.recipes\nassert 'torchvision' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_float_images_refuse_a_recipe() -> None:
    points = (torch.zeros(8, 3), torch.arange(8) % 2)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(ConfigError, match=r"data\.augment would change nothing, as float images are taken as they are"):
        bllpipe.train(model, (points, points), blocks=2, settings={"data.augment.recipe": "cifar"})


def test_a_recipe_trains_to_the_same_bits_with_any_number_of_processes(root: Path, tmp_path: Path) -> None:
    runs = []
    for workers in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Dropout(), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
        settings = {"data.path": str(root), "data.batch_size": 4, "data.image_size": 8, "data.workers": workers}
        settings |= {"data.augment.recipe": "trivial"}
        run_dir = tmp_path / f"{workers} workers"
        runs.append(bllpipe.train(model, "imagefolder", blocks=[3], epochs=2, settings=settings, run_dir=run_dir))
    assert runs[0].state_sha256 == runs[1].state_sha256
