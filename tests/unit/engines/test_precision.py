"""TF32 or IEEE, by torch's old switches and by its new names alike: whatever reads either of them works. The switches
can be set without a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from bllpipe.config import load_config
from bllpipe.engines.devices import precision_now, put_back, set_precision
from bllpipe.learn.cuda_graphs import compile_part, forget_compiled

PRODUCTS: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    restore = precision_now()
    yield
    restore()
    assert torch.get_float32_matmul_precision() == "highest" and CUDNN.allow_tf32


def look() -> tuple[Any, ...]:
    """All that can be read. RuntimeError where old and new do not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = torch.get_float32_matmul_precision(), PRODUCTS.allow_tf32, CUDNN.allow_tf32
    return (*old, PRODUCTS.fp32_precision, CUDNN.conv.fp32_precision)


@pytest.mark.parametrize("before", [None, True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_old_switches_and_new_names_fit(before: bool | None, tf32: bool) -> None:
    """Both of a first setting and of another: with the names alone, either of these readings raised."""
    if before is not None:
        set_precision(before)
    set_precision(tf32)
    name = "tf32" if tf32 else "ieee"
    assert look() == ("high" if tf32 else "highest", tf32, tf32, name, name)


@pytest.mark.parametrize("tf32", [True, False])
def test_flags_of_cudnn_work(tf32: bool) -> None:
    """They read all switches on the way in, and set them again on the way out."""
    set_precision(tf32)
    with CUDNN.flags(enabled=True, deterministic=True, allow_tf32=tf32):
        assert CUDNN.allow_tf32 == tf32
    assert CUDNN.allow_tf32 == tf32 and (CUDNN.conv.fp32_precision == "tf32") == tf32


@pytest.mark.parametrize("tf32", [True, False])
def test_the_compiler_reads_it(tf32: bool) -> None:
    """By ``get_float32_matmul_precision`` where it chooses kernels, in older releases by ``allow_tf32``."""
    set_precision(tf32)
    forget_compiled()
    part = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    compile_part(part, "block 0", "aot_eager")
    part(torch.randn(2, 1, 4, 4)).sum().backward()
    forget_compiled()
    assert look()[1] == tf32


@pytest.mark.parametrize("tf32", [True, False])
def test_a_run_puts_it_back(tf32: bool) -> None:
    before = look()
    with put_back(load_config(None)):
        set_precision(tf32)
        assert look() != before
    assert look() == before


def test_a_script_that_has_set_the_names_alone() -> None:
    """Its own readings of the old switches raise; ours must not."""
    PRODUCTS.fp32_precision = "tf32"
    with put_back(load_config(None)):
        set_precision(False)
        assert look()[0] == "highest"
    assert PRODUCTS.fp32_precision == "tf32"
    PRODUCTS.allow_tf32 = False


def test_the_precision_of_a_cpu_is_left_alone() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]  # set on the module's object
    for tf32 in (True, False):
        set_precision(tf32)
        assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]  # as above


def test_it_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_precision(True)
        set_precision(False)
