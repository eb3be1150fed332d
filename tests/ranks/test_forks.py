"""Forks that stand for a new python: what they see, print and end with is what it would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forks
from tests.support.forks import ForkedPython
from tests.support.jobs import REPOSITORY
from tests.support.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")]
LOOKS = """
import os, signal, sys
print(sys.argv, os.getcwd(), __name__, len(os.environ), os.environ["SAID"], os.getsid(0) == os.getpid(), flush=True)
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
print(signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN))  # ignored in the background
print("an error", file=sys.stderr)
class Here: pass
import pickle; pickle.loads(pickle.dumps(Here()))
sys.exit(7)
"""


@pytest.mark.parametrize("kind", ["code", "script"])
def test_it_is_what_a_new_python_is(kind: str, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOKS)
    words = ["-c", LOOKS] if kind == "code" else ["look.py"]
    process = ForkedPython([*words, "a", "b c"], {"SAID": "so"}, tmp_path, apart=True)
    name = words[0]
    expected = f"{[name, 'a', 'b c']} {tmp_path} __main__ 1 so True\nTrue\nTrue\n"
    assert process.communicate(PATIENCE) == (expected, "an error\n")
    assert process.returncode == process.wait() == 7


def test_it_is_started_in_the_place_of_subprocess(tmp_path: Path) -> None:
    done = forks.run(["env", "SAID=so", sys.executable, "-c", LOOKS], cwd=tmp_path, env={})
    assert (done.returncode, done.stderr) == (7, "an error\n") and " 1 so True\n" in done.stdout
    with (tmp_path / "log").open("wb") as log:
        process = forks.popen([sys.executable, "-c", LOOKS], env={"SAID": "x"}, stdout=log, stderr=subprocess.STDOUT)
    assert process.wait(PATIENCE) == 7
    assert {"True", "an error"} < set((tmp_path / "log").read_text().splitlines())


def test_an_error_has_a_traceback_and_a_module_is_found() -> None:
    process = ForkedPython(["-c", "1 / 0"], dict(os.environ), REPOSITORY)
    text, _ = process.communicate(PATIENCE)
    assert process.returncode == 1 and text.startswith("Traceback") and text.endswith("division by zero\n")
    process = ForkedPython(["-m", "bllpipe.launch", "--set", "seeed=1"], dict(os.environ), REPOSITORY)
    text, _ = process.communicate(PATIENCE)
    assert process.returncode == 2 and "did you mean 'seed'" in text


def test_a_family_is_all_that_prints_there() -> None:
    code = "import os, time; os.fork() or os.setsid(); print(1, flush=True); time.sleep(3600)"
    process = ForkedPython(["-c", code], dict(os.environ), REPOSITORY)
    wait_until(lambda: len(process.family()) == 2)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    (orphan,) = process.family()
    os.kill(orphan, signal.SIGKILL)
    wait_until(lambda: process.family() == [])
