"""For all tests: what lives to the end of the process, such as torch and the tests themselves, is nothing for the
garbage collector.

There are half a million such objects, and every run calls the collector twice: to look at them took longer than a
short run. A run leaves objects as they are that were frozen before it; tests of that unfreeze them.
"""

from __future__ import annotations

import gc

gc.disable()  # while tests are collected


def pytest_runtest_setup() -> None:
    if gc.get_freeze_count() == 0:
        gc.enable()
        gc.collect()
        gc.freeze()
