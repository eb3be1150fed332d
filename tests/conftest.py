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
if root := quick.root_in_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", root)
for variable in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):  # of ``make test ARGS=...``
    os.environ.pop(variable, None)  # tests call make too, without those arguments

# The longest first, as measured on two cores. The order changes how long the tests take, and no result.
LONGEST = (
    *("ranks/test_gpu_scripts", "ranks/test_replicas", "ranks/test_rank_processes", "ranks/test_restarts"),
    *("ranks/test_synchronous", "ranks/test_methods", "unit/cli/test_runs_at_terminals", "ranks/test_stopping"),
    *("ranks/test_launcher", "unit/cli/test_odd_paths", "ranks/test_same_bits", "unit/engines/test_compiled"),
    *("unit/engines/test_putting_back", "unit/data/test_augment_recipes", "docs/test_running", "ranks/test_resume"),
    *("docker/test_image", "unit/cli/test_plan", "ranks/test_resume_otherwise", "unit/tools/monitoring/test_tracking"),
    *("unit/models/test_tracing", "unit/tools/monitoring/test_trackers", "unit/benchmarks/test_gpu"),
    *("unit/tools/analysis/test_heads_file", "unit/benchmarks/test_chaos_files", "unit/engines/test_streams_graph"),
    *("unit/benchmarks/test_gpu_accuracy", "ranks/test_kill", "unit/engines/test_no_waiting"),
    *(
        "unit/engines/test_seats",
        "ranks/test_seats",
        "unit/api/test_tour",
        "ranks/test_chaos",
        "unit/learn/test_balanced_cut",
    ),
    *("unit/engines/test_streams", "unit/training/test_suspension", "ranks/test_full_disks", "ranks/test_draws"),
    *("ranks/test_unchanged_bits", "ranks/test_wheel", "ranks/test_ensemble", "ranks/test_hanging"),
    *("unit/benchmarks/test_table", "unit/benchmarks/test_throughput", "unit/api/test_examples"),
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
