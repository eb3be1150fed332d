"""Checks of labels and images of any source: a script, the items of a data set, an archive."""

from __future__ import annotations

from typing import Any

import numpy as np

from bllpipe.data.catalog import MAX_CLASSES
from bllpipe.errors import DataError


def check_label_form(kind: str, shape: tuple[int, ...], form: str, what: str) -> None:
    """Raises DataError unless the labels are whole numbers [N]; ``kind`` is NumPy's letter for their dtype, ``form``
    their dtype and shape in messages."""
    if kind in "iu" and len(shape) == 1:
        return
    if kind in "USO":
        hint = "number the classes, for example with numpy.unique(labels, return_inverse=True)[1]"
    elif len(shape) == 2 and shape[1] == 1:
        hint = "use labels.squeeze(1)"
    elif len(shape) == 2:
        hint = "use labels.argmax(1) if they are one-hot"
    else:
        hint = "convert them to int64, one for each image"
    raise DataError(f"{what}: expected whole numbers [N], the classes from 0, got {form}; {hint}")


def label_array(values: Any, what: str) -> Any:
    """int64 [N] of whole numbers of any width, sign and byte order."""
    array = plain_array(values, what)
    check_label_form(array.dtype.kind, array.shape, array_form(array), what)
    if array.size and array.max() >= MAX_CLASSES:
        raise DataError(
            f"{what} has the label {array.max()}; expected classes numbered from 0, at most {MAX_CLASSES:,}"
        )
    return array.astype(np.int64)


def plain_array(values: Any, what: str) -> Any:
    """An array of numbers in native byte order, with strides that torch supports; of an array, a list, or an object
    with ``__array__``. DataError for Python objects, masked values, and lists whose items have several forms."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(f"{what}: expected values everywhere, got a masked array; use its .filled(value)")
    try:
        array = np.asarray(values)
    except Exception as error:  # a user-defined object may raise anything
        raise DataError(f"{what}: expected an array, got {_uneven(values) or error}") from error
    if array.dtype.hasobject and array.size:
        first = array.flat[0]
        raise DataError(
            f"{what}: expected numbers, got Python objects, the first {type(first).__name__} {first!r:.40}; use an "
            f"array of numbers; strings are numbered with numpy.unique(labels, return_inverse=True)[1]"
        )
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array) if any(stride < 0 for stride in array.strides) else array


def _uneven(values: Any) -> str | None:
    """The first item of a list whose shape differs from that of item 0."""
    if not isinstance(values, (list, tuple)) or not values:
        return None
    shapes = [np.shape(value) if not isinstance(value, (list, tuple)) else _outline(value) for value in values]
    other = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
    return None if other is None else f"item {other} of shape {list(shapes[other])}, the first one {list(shapes[0])}"


def _outline(values: Any) -> tuple[int, ...]:
    """The shape of nested lists, by their first items."""
    if not isinstance(values, (list, tuple)):
        return ()
    return (len(values), *(_outline(values[0]) if values else ()))


def check_finite(array: Any, what: str) -> None:
    """Raises DataError for images [N, ...] with NaN or Inf in them."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = int(np.argwhere(bad)[0][0])
        raise DataError(f"{what} holds {int(bad.sum())} values that are NaN or Inf, the first in image {first}")


def array_form(array: Any) -> str:
    """``float64 [10, 3]``, or ``strings [10]``."""
    name = {"U": "strings", "S": "bytes"}.get(array.dtype.kind, str(array.dtype))
    return f"{name} {list(array.shape)}"
