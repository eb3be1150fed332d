"""Whether fp32 products and convolutions on a GPU are computed as such, or in TF32.

torch has this twice: by its old switches (``allow_tf32``) and by names (``fp32_precision``). Setting an old switch sets
the names too, but not the other way round, and whatever reads an old switch that does not fit raises RuntimeError:
``cudnn.flags()``, ``torch.get_float32_matmul_precision()``, and the compiler by way of these. So both are set, the old
switches first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRODUCTS: Any = torch.backends.cuda.matmul
CONVOLUTIONS: Any = torch.backends.cudnn  # an object in place of a module: torch's types do not know all of it


def set_precision(tf32: bool) -> None:
    """TF32 or IEEE for both; torch's own choice differs between the two. The CPU's are left alone."""
    name = "tf32" if tf32 else "ieee"
    _set(tf32, tf32, name, name)


def precision_now() -> Callable[[], None]:
    """What sets the precision to what it is now, if it is another one then."""
    before = _now()

    def restore() -> None:
        if _now() != before:
            _set(*before)

    return restore


def _now() -> tuple[bool, bool, str, str]:
    products, convolutions = PRODUCTS.fp32_precision, CONVOLUTIONS.conv.fp32_precision
    return _switch(PRODUCTS, products), _switch(CONVOLUTIONS, convolutions), products, convolutions


def _switch(owner: Any, name: str) -> bool:
    """The old switch; where a script has used the names alone, what fits to them."""
    try:
        with _quiet():
            return bool(owner.allow_tf32)
    except RuntimeError:
        return name == "tf32"


def _set(products: bool, convolutions: bool, name_of_products: str, name_of_convolutions: str) -> None:
    with _quiet():
        PRODUCTS.allow_tf32, CONVOLUTIONS.allow_tf32 = products, convolutions
    PRODUCTS.fp32_precision, CONVOLUTIONS.conv.fp32_precision = name_of_products, name_of_convolutions


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns of the old switches, whose readers are its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*")
        yield
