"""For all tests: what takes longer than a short run, and is of use to none, is left out of all of them.

There are half a million objects that live to the end of the process, those of torch and the tests themselves. Every run
calls the garbage collector twice, which looked at all of them. A run leaves objects as they are that were frozen before
it; tests of that unfreeze them.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

from tests.support import quick

quick.without_stacks_of_seeds()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and made while tests are collected stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        quick.freeze()
