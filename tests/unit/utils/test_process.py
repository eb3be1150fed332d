"""No process outlives the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.family import marked
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")
REPOSITORY = Path(__file__).parents[3]
CHILD = (
    "import time; from bllpipe.utils.process import end_with_parent; end_with_parent({}); print('on', flush=True); {}"
)
PARENT = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {!r}]).wait())"


def python(code: str, mark: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ORPHANS_TEST": mark}
    return subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True)


def test_a_child_dies_with_its_parent() -> None:
    mark = f"{os.getpid()}-dies"
    parent = python(PARENT.format(CHILD.format("", "time.sleep(3600)")), mark)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "on\n"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    try:
        wait_until(lambda: not marked("ORPHANS_TEST", mark))
    finally:
        for process in marked("ORPHANS_TEST", mark):
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(("parent", "says"), [("", "on\n0\n"), ("__import__('os').getppid()", "on\n0\n"), ("1", "1\n")])
def test_a_parent_that_was_dead_before(parent: str, says: str) -> None:
    """Whoever knows its parent's id sees that it has another one now."""
    process = python(PARENT.format(CHILD.format(parent, "")), f"{os.getpid()}-knows")
    assert process.communicate(timeout=PATIENCE)[0] == says
