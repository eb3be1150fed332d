"""Data sets of Hugging Face's library: which columns are read, how images are decoded, and what is refused."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bllpipe
from bllpipe.api.datasets import user_data
from bllpipe.api.hugging_face import HubData, is_hub_dataset
from bllpipe.config.schema import DataConfig
from bllpipe.errors import DataError

datasets = pytest.importorskip("datasets", reason="needs the package datasets: pip install 'bllpipe[datasets]'")
SIZE = 8
NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def pixels(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def encoded(number: int) -> dict[str, Any]:
    file = BytesIO()
    Image.fromarray(pixels(number)).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def split_of(*numbers: int, label: Any = None, names: Any = NAMES, **more: Any) -> Any:
    columns = {"image": [encoded(number) for number in numbers], "label": [number % 2 for number in numbers], **more}
    features = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=names)}
    features |= {name: datasets.Value("string") for name in more}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def both(**kwargs: Any) -> Any:
    return datasets.DatasetDict(train=split_of(*range(8), **kwargs), test=split_of(8, 9, 10, **kwargs))


def configured(**kwargs: Any) -> DataConfig:
    return DataConfig(name="given", image_size=SIZE, **kwargs)


@pytest.mark.parametrize("as_pair", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_images_and_labels_of_a_dataset(as_pair: bool, workers: int) -> None:
    data = both()
    name, found = user_data((data["train"], data["test"]) if as_pair else data)
    assert name == "given" and isinstance(found, HubData)
    labels, images = found.labels(), found.images(configured(workers=workers))
    assert labels.train_N.tolist() == [0, 1] * 4 and labels.test_N.tolist() == [0, 1, 0] and labels.num_classes == 2
    assert images.spec.image_shape == (3, SIZE, SIZE) and (images.spec.num_train, images.spec.num_test) == (8, 3)
    train_BCHW, test_BCHW = images.batches([("train", torch.tensor([5, 0])), ("test", torch.tensor([2]))])
    for image_CHW, number in zip([*train_BCHW, *test_BCHW], (5, 0, 10), strict=True):
        assert np.array_equal(image_CHW.permute(1, 2, 0).numpy(), pixels(number))
    sample = np.stack([pixels(number) for number in range(8)]) / 255
    assert images.mean == pytest.approx(sample.mean((0, 1, 2)), abs=1e-12)


def test_rows_that_were_chosen_or_shuffled() -> None:
    data = both()["train"].shuffle(seed=1).select(range(4))
    found = HubData(data, both()["test"])
    labels = found.labels().train_N.tolist()
    images = next(found.images(configured()).batches([("train", torch.arange(4))]))
    for image_CHW, label in zip(images, labels, strict=True):
        numbers = [number for number in range(8) if np.array_equal(image_CHW.permute(1, 2, 0).numpy(), pixels(number))]
        assert [number % 2 for number in numbers] == [label]


def test_files_beside_the_table(tmp_path: Path) -> None:
    """A set of paths, as imagefolder makes it."""
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        for number in numbers:
            path = tmp_path / split / NAMES[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(number)).save(path)
    data = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    found = HubData(data["train"], data["test"])
    assert sorted(found.labels().train_N.tolist()) == [0, 0, 1, 1]
    assert next(found.images(configured()).batches([("train", torch.arange(4))])).shape == (4, 3, SIZE, SIZE)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read as an image"):
        next(found.images(configured()).batches([("train", torch.arange(4))]))


def test_validation_stands_in_for_test_and_numbers_for_classes() -> None:
    data = both(label=datasets.Value("int32"))
    data["validation"] = data.pop("test")
    _, found = user_data(data)
    assert isinstance(found, HubData) and found.labels().num_classes == 2
    assert found.digest() == HubData(data["train"], data["validation"]).digest()


def test_a_dataset_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    settings = {"data.batch_size": 4, "data.image_size": SIZE}
    run = bllpipe.train(model, both(), blocks=[2], epochs=2, settings=settings, run_dir=tmp_path / "run")
    assert run.summary["steps"] == 4 and 0 <= run.accuracy <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["train"], r"the data are one Dataset; .*data\.train_test_split\(test_size=0\.2, seed=0\)"),
        (
            lambda data: datasets.DatasetDict(train=data["train"]),
            "have the splits train; expected train, and one of te",
        ),
        (
            lambda data: datasets.DatasetDict(test=data["test"]),
            "have the splits test; expected train, and one of test,",
        ),
        (
            lambda data: data.remove_columns("image"),
            r"train split has the columns label \(ClassLabel\); expected one Im",
        ),
        (
            lambda data: data.remove_columns("label"),
            r"the columns image \(Image\); expected one Image and one ClassLabe",
        ),
        (lambda data: data.with_transform(lambda rows: rows), r"has a transform, .*use dataset\.reset_format\(\), and"),
        (
            lambda data: datasets.DatasetDict(train=data["train"], test=split_of(1, 2, names=["dog", "cat"])),
            r"classes are \['cat', 'dog'\] in the train split, and \['dog', 'cat'\] in the test split; expected",
        ),
    ],
)
def test_what_cannot_be_trained_on(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        user_data(change(both()))


def test_text_in_place_of_numbers() -> None:
    data = both(label=datasets.Value("string"))
    with pytest.raises(DataError, match=r"the train column label: expected whole numbers \[N\], .*got strings"):
        HubData(data["train"], data["test"]).labels()


def test_several_columns_of_classes() -> None:
    data = both().map(lambda row: {"coarse": row["label"]})
    data = data.cast_column("coarse", datasets.ClassLabel(names=NAMES))
    with pytest.raises(DataError, match=r"label \(ClassLabel\), coarse \(ClassLabel\); expected one Image and one Cl"):
        user_data(data)
    assert isinstance(user_data(data.select_columns(["image", "label"]))[1], HubData)


def test_a_row_without_an_image_is_named() -> None:
    data = both()
    empty = split_of(0, 1).select_columns(["label"]).add_column("image", [None, None])
    empty = empty.cast_column("image", datasets.Image())
    found = HubData(empty, data["test"])
    with pytest.raises(DataError, match="train image 0 is missing; remove the row"):
        next(found.images(configured()).batches([("train", torch.tensor([0]))]))
    columns = {"image": [{"bytes": b"text", "path": None}] * 2, "label": [0, 1]}
    damaged = datasets.Dataset.from_dict(columns, features=split_of(0).features)
    with pytest.raises(DataError, match="train image 1 cannot be read as an image: cannot identify"):
        next(HubData(damaged, data["test"]).images(configured()).batches([("train", torch.tensor([1]))]))


def test_a_module_of_the_same_name_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("datasets")

    class Dataset(torch.utils.data.Dataset[Any]):
        pass

    module.Dataset = Dataset  # type: ignore[attr-defined]  # as a script's own datasets.py has it
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert not is_hub_dataset(Dataset()) and not is_hub_dataset([])
