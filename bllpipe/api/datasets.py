"""Data of a script: tensors, which stay in memory, torch Datasets, whose items are read on request, and data sets of
Hugging Face.

Shapes: N images of a split, B of a batch, C channels, H x W positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from bllpipe.api.hugging_face import hub_data
from bllpipe.config.schema import DataConfig
from bllpipe.data.base import Arrays, ImageSet, LabelSet, Split, UserData, labels_sha256
from bllpipe.data.catalog import DataSpec, check_labels
from bllpipe.data.npz import check_finite, check_label_form, label_array, plain_array
from bllpipe.data.registry import array_images
from bllpipe.errors import DataError
from bllpipe.utils.tensors import part_digest

Array = Tensor | np.ndarray[Any, Any] | Sequence[Any]
UserSplit = Dataset[Any] | tuple[Array, Array] | Sequence[tuple[Any, int]]  # one split
Data = tuple[UserSplit, UserSplit] | Mapping[str, Any] | str  # the mapping: a DatasetDict
SPLITS: tuple[Split, Split] = ("train", "test")
MOST_COMPARED = 64  # items of a split whose labels are compared between ranks
EXPECTED = "expected (train, test), each a pair (images, labels) of tensors or a torch Dataset of (image, label)"
NUMBER_KINDS = "fiub"  # of NumPy's types, those that images may have


def user_data(data: Data) -> tuple[str, UserData | None]:
    """``data.name``, and the data passed as objects; DataError for data that cannot be trained on."""
    if isinstance(data, str):
        return data, None
    if (found := hub_data(data)) is not None:
        return "given", found
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise DataError(f"the data are {_kind(data)}; {EXPECTED}")
    pairs = [_pair(split, name) for split, name in zip(data, SPLITS, strict=True)]
    if pairs[0] is not None and pairs[1] is not None:
        return "given", _in_memory(pairs[0], pairs[1])
    sets = [split if pair is None else TensorDataset(*pair) for split, pair in zip(data, pairs, strict=True)]
    for split, name in zip(sets, SPLITS, strict=True):
        _check_set(split, name)
    return "given", ItemData(*sets)


@dataclass(frozen=True)
class TensorData:
    """A data set in memory."""

    arrays: Arrays

    @property
    def is_float(self) -> bool:
        return self.arrays.train_NCHW.dtype != torch.uint8

    def images(self, data: DataConfig, seed: int = 0) -> ImageSet:
        return array_images(self.arrays, data, seed)

    def labels(self) -> LabelSet:
        return LabelSet(self.arrays.train_N, self.arrays.test_N, self.arrays.num_classes)

    def digest(self) -> str:
        """SHA-256 (hex) of all labels."""
        return part_digest({"train": self.arrays.train_N, "test": self.arrays.test_N})


class ItemData:
    """Two torch Datasets of (float32 tensor, label)."""

    is_float = True

    def __init__(self, train: Any, test: Any) -> None:
        self._sets: dict[Split, Any] = {"train": train, "test": test}

    def images(self, data: DataConfig, seed: int = 0) -> ItemImages:
        return ItemImages(self._sets, self._labels)  # these before the first image is read: a set may be empty

    def labels(self) -> LabelSet:
        return self._labels

    @cached_property
    def _labels(self) -> LabelSet:
        """The labels of all items, or the ``targets`` of a set that has them, such as those of torchvision."""
        train_N, test_N = (_targets(self._sets[split], split) for split in SPLITS)
        return LabelSet(train_N, test_N, check_labels(train_N, test_N, "the data"))

    def digest(self) -> str:
        """SHA-256 (hex) of the lengths and of some labels."""
        found: dict[str, Tensor] = {}
        for split, dataset in self._sets.items():
            length = _length(dataset, split)
            numbers = range(0, length, max(1, length // MOST_COMPARED))
            labels = [_label(_parts(dataset, split, number), split, number) for number in numbers]
            found[split] = torch.tensor([length, *labels])
        return part_digest(found)


class ItemImages:
    """An ImageSet that reads items on request."""

    def __init__(self, sets: dict[Split, Any], labels: LabelSet) -> None:
        self._sets = sets
        self._labels: dict[Split, Tensor] = {"train": labels.train_N, "test": labels.test_N}
        self._shape = tuple(_item(_parts(sets["train"], "train", 0), "train", 0).shape)
        if not self._shape:
            raise DataError("train item 0 is a single number; expected an image, or features [F]")
        digest = labels_sha256(labels.train_N, labels.test_N)
        sizes = len(labels.train_N), len(labels.test_N)
        self.spec = DataSpec(*sizes, self._shape, labels.num_classes, digest)
        self.mean, self.std = list[float](), list[float]()

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        for split, index_B in wanted:
            images = torch.stack([self._read(split, number) for number in index_B.tolist()])
            if not images.isfinite().all():
                bad = int(images.isfinite().flatten(1).all(dim=1).logical_not().nonzero()[0])
                raise DataError(
                    f"{split} item {int(index_B[bad])} holds values that are NaN or Inf; remove or replace it"
                )
            yield images

    def _read(self, split: Split, number: int) -> Tensor:
        parts = _parts(self._sets[split], split, number)
        image, known = _item(parts, split, number), int(self._labels[split][number])
        if _is_number(parts[1]) and (label := _label(parts, split, number)) != known:
            raise DataError(
                f"{split} item {number} has the label {label}, but the labels of the set said {known} before the run; "
                f"expected the same; remove its attribute targets if that is of another set, or let labels not change"
            )
        if tuple(image.shape) != self._shape:
            raise DataError(
                f"{split} item {number} has the shape {list(image.shape)}, but the first one {list(self._shape)}; "
                f"expected one shape for all: resize in the set's transform"
            )
        return image


def _parts(dataset: Any, split: Split, number: int) -> Sequence[Any]:
    """Item ``number`` of a set: image, label, and perhaps more."""
    try:
        item = dataset[number]
    except (IndexError, StopIteration) as error:  # StopIteration would end a loop of ours
        raise DataError(
            f"{split} item {number} cannot be read ({type(error).__name__}: {error}), but the length of the set is "
            f"{len(dataset)}; expected an item for every number below it"
        ) from error
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(
            f"{split} item {number}: expected a pair (image, label), got {_kind(item)}; wrap the set in one whose "
            f"items are such pairs"
        )
    return item


def _length(dataset: Any, split: Split) -> int:
    """The number of items of a split."""
    try:
        return len(dataset)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise DataError(
            f"the {split} split has no length ({type(error).__name__}: {error}); expected a __len__ that returns the "
            f"number of its items"
        ) from error


def _item(parts: Sequence[Any], split: Split, number: int) -> Tensor:
    """The image of one item, float32."""
    image = parts[0]
    if isinstance(image, (Tensor, np.ndarray)):
        image = image_tensor(image, f"{split} item {number}")
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise DataError(
            f"{split} item {number} is {_kind(image)}; expected a float tensor: give the set "
            f"transform=torchvision.transforms.ToTensor(), or pass uint8 tensors (images, labels)"
        )
    return image.float()


def _is_number(label: Any) -> bool:
    """Whether it may be a class: other labels, such as boxes, are no business of ours where a set has ``targets``."""
    if isinstance(label, (Tensor, np.ndarray)):
        return prod(label.shape) == 1
    return isinstance(label, (int, np.integer)) and not isinstance(label, bool)


def _label(parts: Sequence[Any], split: Split, number: int) -> int:
    """The class of one item."""
    label, what = parts[1], f"the label of {split} item {number}"
    if _is_number(label):
        return int(label_tensor(label.reshape(1), what)[0]) if is_array(label) else int(label)
    form = _kind(label) if is_array(label) or isinstance(label, Mapping) else repr(label)
    raise DataError(f"{what}: expected a whole number, the class from 0, got {form:.80}; number the classes in the set")


def _targets(dataset: Any, split: Split) -> Tensor:
    """The labels of a split, int64 [N]; ``targets`` of a set may also be something else, such as boxes or names."""
    known, length = getattr(dataset, "targets", None), _length(dataset, split)
    if is_array(known) and getattr(dataset, "target_transform", None) is None:
        with suppress(DataError):
            labels = label_tensor(known, f"the {split} targets")
            if len(labels) == length:
                return labels
    found = [_label(_parts(dataset, split, number), split, number) for number in range(length)]
    return torch.tensor(found, dtype=torch.int64)


def _pair(split: Any, name: Split) -> tuple[Tensor, Tensor] | None:
    """Images and labels of a split that is such a pair; None for a set of items."""
    parts = split.tensors if isinstance(split, TensorDataset) else split
    if not isinstance(parts, (tuple, list)) or len(parts) != 2:
        return None
    if isinstance(parts, list) and all(isinstance(part, (tuple, list)) and len(part) == 2 for part in parts):
        return None  # a list of two items
    for part, kind in zip(parts, ("images", "labels"), strict=True):
        if not is_array(part):
            raise DataError(f"the {name} {kind} are {_kind(part)}; {EXPECTED}")
    return image_tensor(parts[0], f"the {name} images"), label_tensor(parts[1], f"the {name} labels")


def _check_set(split: Any, name: Split) -> None:
    """Raises DataError for a split whose items cannot be read by number."""
    hint = ""
    if isinstance(split, Mapping):
        hint = f"; use the pair (split[{next(iter(split), 'image')!r}], split[...])"
    if isinstance(split, IterableDataset):
        hint = "; use a Dataset whose items are read by number, as their order belongs to the seed"
    if isinstance(split, DataLoader):
        hint = "; use its dataset, without batches: data.batch_size makes them"
    is_set = hasattr(split, "__getitem__") and hasattr(split, "__len__")
    if hint or not is_set or isinstance(split, (Tensor, np.ndarray, str, bytes)):
        raise DataError(f"the {name} split is {_kind(split)}; {EXPECTED}{hint}")


def _in_memory(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> TensorData:
    (train_x, train_N), (test_x, test_N) = train, test
    for name, images, labels in (("train", train_x, train_N), ("test", test_x, test_N)):
        is_pixels = images.dtype == torch.uint8 and images.dim() == 4
        if not is_pixels and not (images.is_floating_point() and images.dim() >= 2):
            raise DataError(
                f"the {name} images are {_kind(images)}; expected floats [N, ...], which are taken as they are, or "
                f"uint8 [N, C, H, W], which are normalised; images without channels become such with "
                f"images.unsqueeze(1)"
            )
        if len(images) != len(labels):
            raise DataError(
                f"the {name} split has {len(images)} images, but {len(labels)} labels; expected one for each"
            )
    if train_x.shape[1:] != test_x.shape[1:] or (train_x.dtype == torch.uint8) != (test_x.dtype == torch.uint8):
        raise DataError(f"the train images are {_kind(train_x)}, the test images {_kind(test_x)}; expected one form")
    num_classes = check_labels(train_N, test_N, "the data")
    train_x, test_x = (x if x.dtype == torch.uint8 else x.float() for x in (train_x, test_x))
    for name, images in (("train", train_x), ("test", test_x)):
        if images.is_floating_point():
            check_finite(images.numpy(), f"the {name} images")
    return TensorData(Arrays(train_x, train_N, test_x, test_N, num_classes))


def _kind(thing: Any) -> str:
    """``a tuple of 3``, ``uint8 [10, 28, 28]``, ``a PILImage``, ``a dict with the keys image, label``."""
    if isinstance(thing, Tensor):
        return f"{str(thing.dtype).removeprefix('torch.')} {list(thing.shape)}"
    if isinstance(thing, Mapping):
        return f"a {type(thing).__name__} with the keys {', '.join(map(str, thing)):.100}"
    length = f" of {len(thing)}" if isinstance(thing, (tuple, list)) else ""
    return f"a {type(thing).__name__}{length}"


def is_array(values: Any) -> bool:
    """Whether it holds the values of many items: a tensor, an array, an object with ``__array__``, or a list."""
    return isinstance(values, (Tensor, np.ndarray, list, tuple)) or hasattr(values, "__array__")


def image_tensor(values: Any, what: str) -> Tensor:
    """The values as a plain tensor without a graph, which shares their memory if possible."""
    if isinstance(values, Tensor):
        return _plain(values, what)
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, Tensor) for value in values):
        items = [_plain(value, what) for value in values]
        for number, item in enumerate(items):
            if (item.shape, item.dtype) != (items[0].shape, items[0].dtype):
                raise DataError(
                    f"{what}: expected items of one form, got {item.dtype} {list(item.shape)} as item {number}, "
                    f"{items[0].dtype} {list(items[0].shape)} as the first one; resize or convert them"
                )
        return torch.stack(items)
    array = plain_array(values, what)
    if array.dtype.kind not in NUMBER_KINDS:
        raise DataError(f"{what}: expected numbers, got {array.dtype}; use floats, or uint8 [N, C, H, W]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of arrays that cannot be written: nothing writes into images
        return torch.from_numpy(array)


def label_tensor(values: Any, what: str) -> Tensor:
    """int64 [N] of a tensor, an array or a list of whole numbers."""
    if isinstance(values, (list, tuple)) and any(isinstance(value, Tensor) for value in values):
        values = [value.tolist() if isinstance(value, Tensor) else value for value in values]
    if isinstance(values, Tensor):
        values = _plain(values, what)
        letter = "f" if values.is_floating_point() else "c" if values.is_complex() else "i"
        check_label_form("b" if values.dtype == torch.bool else letter, tuple(values.shape), _kind(values), what)
        values = values.numpy()
    return torch.from_numpy(label_array(values, what))


def _plain(values: Tensor, what: str) -> Tensor:
    """A dense CPU tensor of class Tensor, without a graph, and not an inference tensor. ``__torch_function__`` of a
    subclass is not called; one that stands for other tensors is refused."""
    with torch._C.DisableTorchFunctionSubclass():
        if problem := _without_values(values):
            raise DataError(f"{what}: expected a dense tensor, got {problem}")
        if values.layout != torch.strided or values.is_nested or values.is_quantized:
            kind = "a nested" if values.is_nested else "a quantized" if values.is_quantized else f"a {values.layout}"
            raise DataError(f"{what}: expected a dense tensor, got {kind} tensor; convert it, as with .to_dense()")
        plain = values.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg()  # type: ignore[arg-type]  # its own class
        return plain.clone() if plain.is_inference() else plain


def _without_values(values: Tensor) -> str | None:
    """What is wrong with a tensor whose memory is not that of its values."""
    if is_lazy(values):
        return "one without a shape (of a lazy layer); run one batch through the layer first"
    if values.is_meta:
        return "a tensor without values (meta); use one on the CPU"
    if torch._C._dispatch_keys(values).has(torch._C.DispatchKey.Python) and not values.is_nested:  # DTensor, fakes
        return f"a {type(values).__name__}, which stands for other tensors; convert it, as with .to_local()"
    return None
