"""For all tests: what takes longer than a short run, and is of use to none, is left out of all of them.

There are half a million objects that live to the end of the process, those of torch and the tests themselves. Every run
calls the garbage collector twice, which looked at all of them. A run leaves objects as they are that were frozen before
it; tests of that unfreeze them.

For every seed torch writes down the whole stack, once for each kind of device that may be initialized later.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from types import SimpleNamespace

import pytest
import torch

from tests.support import garbage

for device in (torch.cuda, torch.xpu, torch.mtia):
    setattr(device, "traceback", SimpleNamespace(format_stack=list))  # noqa: B010  # not for type checkers


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and made while tests are collected stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        garbage.freeze()
