"""The forms in which scripts have images and labels: converted to what a run needs, or refused by name and form."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.masked import masked_tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bllpipe
from bllpipe.api.datasets import ItemData, TensorData, user_data
from bllpipe.data.npz import open_archive

X = torch.randn(8, 3, 4).half().float()
Y = torch.arange(8) % 2
A, B = X.numpy(), Y.numpy()


class Series:
    """As pandas has them: no array, but it knows how to become one."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self._values


class Picture(Tensor):
    """As torchvision's tv_tensors."""


class Obstinate(Tensor):
    """Answers no call of torch."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("not for me")


class Doubling(Tensor):
    """Answers some calls in a way of its own."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return made * 2 if function is Tensor.detach else made


def fake(values: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(values)


def masked(values: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch calls it a prototype
        return masked_tensor(values, values > 0)  # type: ignore[no-any-return,no-untyped-call]  # torch has no types for it


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def made_in_inference_mode(values: Tensor) -> Tensor:
    with torch.inference_mode():
        return values.clone()


def with_a_graph(values: Tensor) -> Tensor:
    return values * torch.ones((), requires_grad=True)


IMAGES = {
    "big endian": A.astype(">f4"),
    "flipped twice": np.ascontiguousarray(A[:, ::-1])[:, ::-1],
    "Fortran order": np.asfortranarray(A),
    "half": A.astype("f2"),
    "double, big endian": A.astype(">f8"),
    "long double": A.astype(np.longdouble),
    "read only": read_only(A),
    "lists": A.tolist(),
    "a list of tensors": list(X),
    "a list of arrays": list(A),
    "an object with __array__": Series(A),
    "a subclass": X.as_subclass(Picture),
    "a subclass that refuses": X.as_subclass(Obstinate),
    "a subclass that doubles": X.as_subclass(Doubling),
    "a graph": with_a_graph(X),
    "inference": made_in_inference_mode(X),
    "bfloat16 of a transposition": X.mT.contiguous().mT,
}
LABELS = {
    **{kind: B.astype(kind) for kind in ("u1", "u2", "u4", "u8", "i1", ">i2", ">u4", ">i8")},
    "tensor of uint16": Y.to(torch.uint16),
    "a list": B.tolist(),
    "a tuple of NumPy's integers": tuple(B),
    "a list of tensors": list(Y),
    "flipped twice": np.ascontiguousarray(B[::-1])[::-1],
    "an object with __array__": Series(B),
    "inference": made_in_inference_mode(Y),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", IMAGES)
def test_images_of_every_form_become_the_same_tensor(form: str) -> None:
    _, given = user_data(((IMAGES[form], Y), (IMAGES[form], Y)))
    assert isinstance(given, TensorData)
    images = given.arrays.train_NCHW
    assert torch.equal(images, X) and type(images) is Tensor and images.dtype == torch.float32
    assert not images.requires_grad and not images.is_inference()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", LABELS)
def test_labels_of_every_form_become_int64(form: str) -> None:
    _, given = user_data(((X, LABELS[form]), (X, Y)))
    assert isinstance(given, TensorData)
    assert torch.equal(given.arrays.train_N, Y) and given.arrays.train_N.dtype == torch.int64


STRINGS = np.array(["a", "b"])[B]
RAGGED = [*A[:7].tolist(), A[0, :2].tolist()]
SPOILED = X.clone()
SPOILED[5, 0, 0] = torch.nan
with warnings.catch_warnings(action="ignore"):  # torch calls one kind deprecated and the other a prototype
    QUANTIZED = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    NESTED = torch.nested.nested_tensor(list(X))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (A, STRINGS, r"the train labels: .* got strings \[8\]; number the classes, .*return_inverse=True"),
        (A, STRINGS.astype(object), "the train labels: expected numbers, got Python objects, the first str 'a'"),
        (A, STRINGS.tolist(), r"the train labels: .* got strings \[8\]"),
        (A, np.eye(2)[B], r"the train labels: .* got float64 \[8, 2\]; use labels.argmax\(1\) if they are one-hot"),
        (A, torch.eye(2)[Y], r"the train labels: .* got float32 \[8, 2\]; use labels.argmax\(1\)"),
        (A, B == 1, r"the train labels: .* got bool \[8\]; convert them to int64"),
        (A, Y == 1, r"the train labels: .* got bool \[8\]"),
        (A, B.astype(complex), r"the train labels: .* got complex128 \[8\]"),
        (A, np.array(3), r"the train labels: .* got int64 \[\]"),
        (A, np.full(8, 2**63, np.uint64), "the train labels has the label 9223372036854775808; expected classes"),
        (A, np.ma.masked_equal(B, 1), "the train labels: expected values everywhere, got a masked array"),
        (A, None, "the train labels are a NoneType; expected"),
        (np.array(["a.png"] * 8), B, "the train images: expected numbers, got <U5; use floats, or uint8"),
        (A.astype(complex), B, "the train images: expected numbers, got complex128"),
        (RAGGED, B, r"the train images: expected an array, got item 7 of shape \[2, 4\], the first one \[3, 4\]"),
        ([*X[:7], X[0, :2]], B, r"the train images: expected items of one form, got torch.float32 \[2, 4\] as item 7"),
        ([None] * 8, B, "the train images: expected numbers, got Python objects, the first NoneType None"),
        (X.to_sparse(), B, "the train images: expected a dense tensor, got a torch.sparse_coo tensor"),
        (X.to("meta"), B, r"the train images: expected a dense tensor, got a tensor without values \(meta\)"),
        (QUANTIZED, B, "the train images: .* got a quantized tensor"),
        (NESTED, B, "the train images: .* got a nested tensor"),
        (fake(X), B, "the train images: expected a dense tensor, got a FakeTensor, which stands for other tensors"),
        (A, fake(Y), "the train labels: expected a dense tensor, got a FakeTensor, which stands for other tensors"),
        (masked(X), B, "the train images: expected a dense tensor, got a MaskedTensor, which stands for other tensors"),
        (nn.UninitializedParameter(), B, r"the train images: expected a dense tensor, got one without a shape \(of a"),
        (A.astype(int), B, r"the train images are int64 \[8, 3, 4\]; expected floats"),
        (SPOILED, B, "the train images holds 1 values that are NaN or Inf, the first in image 5"),
        (A.astype("f8") * 1e300, B, "the train images holds 96 values that are NaN or Inf"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_forms_that_are_refused(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(bllpipe.DataError, match=message):
        user_data(((images, labels), (X, Y)))


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield X[0], 0

    def __len__(self) -> int:
        return 8


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"image": X, "label": Y}, r"is a dict with the keys image, label; .*use the pair \(split\['image'\], split"),
        (Stream(), "is a Stream; .* use a Dataset whose items are read by number"),
        (DataLoader(TensorDataset(X, Y)), "is a DataLoader; .* use its dataset, without batches"),
        ("digits", "is a str; expected"),
        (A, "is a ndarray; expected"),
        ((TensorDataset(X, Y), Y), "the train images are a TensorDataset; expected"),
    ],
)
def test_splits_that_are_refused(split: Any, message: str) -> None:
    with pytest.raises(bllpipe.DataError, match=message):
        user_data((split, (X, Y)))


class Items(Dataset[Any]):
    def __init__(self, items: Any, **known: Any) -> None:
        self.items = items
        vars(self).update(known)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def labelled(*labels: Any) -> Items:
    return Items([(image, label) for image, label in zip(X, labels, strict=False)])


GOOD = labelled(*Y.tolist())


@pytest.mark.parametrize(
    "split",
    [
        labelled(*Y),
        labelled(*Y.unsqueeze(1)),
        labelled(*B),
        labelled(*np.array(B, dtype="u2")),
        labelled(*(np.array(label) for label in B)),
        list(zip(X, Y.tolist(), strict=True)),
        Items(list(zip(A, B, strict=True)), targets=B.astype("u1")),
        Items(list(zip(X, B, strict=True)), targets=["a", "b"] * 4),
        Items(list(zip(X, B, strict=True)), targets=3),
        Items([(with_a_graph(image), label, "more") for image, label in zip(X, B, strict=True)]),
    ],
)
def test_items_of_every_form(split: Any) -> None:
    _, given = user_data((split, GOOD))
    assert isinstance(given, ItemData) and torch.equal(given.labels().train_N, Y) and given.digest()
    batch = next(given.images(None).batches([("train", torch.tensor([3, 1]))]))  # type: ignore[arg-type]  # not asked
    assert torch.equal(batch, X[[3, 1]]) and not batch.requires_grad


class Long(Items):
    """Says that it has two items more."""

    def __init__(self, *labels: int) -> None:
        super().__init__(labelled(*labels).items)

    def __len__(self) -> int:
        return len(self.items) + 2


class Ending(Items):
    """Its last item is the end of an iterator of its own."""

    def __init__(self, *labels: int) -> None:
        super().__init__(labelled(*labels).items)

    def __getitem__(self, number: int) -> Any:
        if number == len(self.items) - 1:
            raise StopIteration
        return super().__getitem__(number)


class OddLength(Items):
    def __init__(self, length: Any) -> None:
        super().__init__(labelled(0, 1).items)
        self.length = length

    def __len__(self) -> int:
        if self.length is None:
            raise NotImplementedError
        return self.length  # type: ignore[no-any-return]  # or something else


class Reversed(Dataset[Any]):
    """A view of another set, which also shows the attributes of that set, ``targets`` among them."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, number: int) -> Any:
        return self.inner[len(self) - 1 - number]

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["inner"], name)


@pytest.mark.parametrize("split", ["train", "test"])
def test_targets_of_another_order_are_found_when_an_item_is_read(split: Any) -> None:
    """The images were trained with the labels of others, without a word."""
    known = Items(GOOD.items, targets=Y.tolist())
    _, given = user_data((Reversed(known), GOOD) if split == "train" else (GOOD, Reversed(known)))
    assert isinstance(given, ItemData)
    message = f"{split} item 1 has the label 0, but the labels of the set said 1 before the run; .*attribute targets"
    with pytest.raises(bllpipe.DataError, match=message):
        list(given.images(None).batches([(split, torch.tensor([1]))]))  # type: ignore[arg-type]  # not asked
    for same in (known, Items([(X[0], "a cat"), (X[1], {"box": 3})], targets=[0, 1])):
        _, given = user_data((same, GOOD))
        assert isinstance(given, ItemData) and list(given.images(None).batches([("train", torch.tensor([1]))]))  # type: ignore[arg-type]


def test_two_items_are_no_pair_and_a_pair_goes_with_a_set() -> None:
    _, given = user_data(([(X[0], 0), (X[1], 1)], (X, Y)))
    assert isinstance(given, ItemData) and given.labels().train_N.tolist() == [0, 1]
    assert torch.equal(given.labels().test_N, Y)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (labelled("a", "b"), "the label of train item 0: expected a whole number, the class from 0, got 'a'"),
        (labelled(0, 1.0), "the label of train item 1: .* got 1.0; number the classes in the set"),
        (labelled(0, True), "the label of train item 1: .* got True"),
        (labelled(0, None), "the label of train item 1: .* got None"),
        (labelled(0, torch.tensor(1.0)), r"the label of train item 1: .* got float32 \[1\]"),
        (labelled(*torch.eye(2)[Y]), r"the label of train item 0: .* got float32 \[2\]; number the classes"),
        (Items([{"image": X[0], "label": 0}]), r"train item 0: expected a pair \(image, label\), got a dict with the"),
        (Items([X[0], X[1]]), r"train item 0: expected a pair .* got float32 \[3, 4\]"),
        (
            Items([(X[0].mean(), 0), (X[1].mean(), 1)]),
            "train item 0 is a single number; expected an image",
        ),
        (Long(0, 1), r"train item 2 cannot be read \(IndexError: list index out of range\), but the length .* is 4"),
        (Ending(0, 1), r"train item 1 cannot be read \(StopIteration: \), but the length of the set is 2"),
        (OddLength(2.0), r"the train split has no length \(TypeError: 'float' .*expected a __len__ that returns the"),
        (OddLength(-1), r"the train split has no length \(ValueError: __len__\(\) should return >= 0\)"),
        (OddLength(None), r"the train split has no length \(NotImplementedError: \)"),
        (Items([]), "the data: the train split has no images"),
        ([], "the data: the train split has no images"),
    ],
)
def test_items_that_are_refused(split: Any, message: str) -> None:
    _, given = user_data((split, GOOD))
    assert isinstance(given, ItemData)
    with pytest.raises(bllpipe.DataError, match=message):
        given.images(None)  # type: ignore[arg-type]  # not asked


def test_an_item_with_nan_is_named() -> None:
    _, given = user_data((Items(list(zip(SPOILED, Y.tolist(), strict=True))), GOOD))
    assert isinstance(given, ItemData)
    with pytest.raises(bllpipe.DataError, match="train item 5 holds values that are NaN or Inf"):
        list(given.images(None).batches([("train", torch.tensor([1, 5]))]))  # type: ignore[arg-type]  # not asked


def test_an_archive_and_a_script_say_the_same(tmp_path: Any) -> None:
    images = np.zeros((8, 4, 4), np.uint8)
    for labels in (STRINGS, np.eye(2)[B], B.astype(float), np.full(8, 2**63, np.uint64)):
        np.savez(tmp_path / "set.npz", train_x=images, train_y=labels, test_x=images, test_y=B)
        with pytest.raises(bllpipe.DataError) as of_archive:
            open_archive(str(tmp_path / "set.npz"))
        with pytest.raises(bllpipe.DataError) as of_script:
            user_data(((X, labels), (X, Y)))
        assert str(of_archive.value).partition("train_y")[2] == str(of_script.value).partition("train labels")[2]
