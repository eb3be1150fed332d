"""For all tests: what takes longer than a short run, and is of use to none, is left out of all of them.

There are half a million objects that live to the end of the process, those of torch and the tests themselves. Every run
calls the garbage collector twice, which looked at all of them. A run leaves objects as they are that were frozen before
it; tests of that unfreeze them.

For every seed torch writes down the whole stack, once for each kind of device that may be initialized later.
"""

from __future__ import annotations

import gc
from types import SimpleNamespace

import torch

gc.disable()  # while tests are collected
for device in (torch.cuda, torch.xpu, torch.mtia):
    setattr(device, "traceback", SimpleNamespace(format_stack=list))  # noqa: B010  # not for type checkers


def pytest_collection_finish() -> None:
    gc.enable()
    gc.collect()
    gc.freeze()
