"""From what a script passes as images and labels to tensors of torch's own, in the memory of the CPU.

Shapes: N images, C channels, H x W positions.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bllpipe.errors import DataError
from bllpipe.run.data.arrays import check_label_form, label_array, plain_array

NUMBER_KINDS = "fiub"  # of NumPy's types, those that images may have


def is_array(values: Any) -> bool:
    """Whether it holds values of many items at once: a tensor, an array, what knows how to become one, or a list."""
    return isinstance(values, (Tensor, np.ndarray, list, tuple)) or hasattr(values, "__array__")


def image_tensor(values: Any, what: str) -> Tensor:
    """The values as a plain tensor, without a graph, shared where torch can share them."""
    if isinstance(values, Tensor):
        return _plain(values, what)
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, Tensor) for value in values):
        return _stacked([_plain(value, what) for value in values], what)
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
        form = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
        letter = "f" if values.is_floating_point() else "c" if values.is_complex() else "i"
        check_label_form("b" if values.dtype == torch.bool else letter, tuple(values.shape), form, what)
        values = values.numpy()
    return torch.from_numpy(label_array(values, what))


def _plain(values: Tensor, what: str) -> Tensor:
    """No subclass, no graph, no other device; nor one that only inference mode may use."""
    if values.layout != torch.strided or values.is_nested or values.is_quantized or values.is_meta:
        kind = "a nested" if values.is_nested else "a quantized" if values.is_quantized else f"a {values.layout}"
        found = "a tensor without values (meta)" if values.is_meta else f"{kind} tensor"
        raise DataError(f"{what}: expected a dense tensor, got {found}; convert it first, for example with .to_dense()")
    plain = values.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg()  # type: ignore[arg-type]  # its own class
    return plain.clone() if plain.is_inference() else plain


def _stacked(values: list[Tensor], what: str) -> Tensor:
    first = values[0]
    for number, value in enumerate(values):
        if (value.shape, value.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"{what}: expected items of one form, got {value.dtype} {list(value.shape)} as item {number}, "
                f"{first.dtype} {list(first.shape)} as the first one; resize or convert them"
            )
    return torch.stack(values)
