"""For all tests: what takes longer than a short run, and is of use to none, is left out of all of them.

There are half a million objects that live to the end of the process, those of torch and the tests themselves. Every run
calls the garbage collector twice, which looked at all of them. A run leaves objects as they are that were frozen before
it; tests of that unfreeze them.

Files that take a minute or more come first, the longest before the others: at the end of a run no process is left alone
with one of them. Under xdist that needs --no-loadscope-reorder.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support import quick

quick.without_stacks_of_seeds()
for variable in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):  # of ``make test ARGS=...``
    os.environ.pop(variable, None)  # tests call make too, without those arguments

# The longest first, as measured on two cores. The order changes how long the tests take, and no result.
LONGEST = (
    *("ranks/test_gpu_scripts", "ranks/test_methods", "ranks/test_synchronous", "ranks/test_replicas"),
    *("ranks/test_restarts", "ranks/test_chaos", "ranks/test_stopping", "ranks/test_kill", "ranks/test_hanging"),
    *("ranks/test_launcher", "ranks/test_rank_processes", "ranks/test_same_bits", "ranks/test_wheel"),
    *("unit/benchmarks/test_table", "unit/engines/test_putting_back", "unit/cli/test_odd_paths"),
    *("ranks/test_full_disks", "ranks/test_resume_otherwise", "ranks/test_draws", "docs/test_running"),
    *("unit/engines/test_streams_graph", "unit/engines/test_streams", "unit/benchmarks/test_throughput"),
    *("unit/engines/test_compiled", "unit/api/test_examples", "unit/training/test_suspension"),
    *("unit/learn/test_balanced_cut", "unit/tools/analysis/test_heads_file", "unit/benchmarks/test_gpu"),
)


def place_of(item: pytest.Item) -> int:
    """Its file's place among the longest."""
    name = item.path.with_suffix("").as_posix().removeprefix(f"{Path(__file__).parent.as_posix()}/")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place_of)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and made while tests are collected stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        quick.freeze()
