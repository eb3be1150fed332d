"""What is never written in tests: a limit that a busy machine reaches.

No test compares a duration with a number. A wait in which something is to come lasts a minute or more; one in which
nothing is to come lasts a second at most.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.quick import root_in_memory

TESTS = Path(__file__).parents[1]
CLOCKS = {"monotonic", "perf_counter", "time", "process_time", "thread_time"}
CLOCKS |= {f"{clock}_ns" for clock in CLOCKS}
WAITS = {"wait", "join", "result", "communicate", "timeout", "wait_until"}
NOTHING_COMES, SOMETHING_COMES = 1.0, 60.0  # seconds


class Clocks:
    """What of a file comes from a clock: names for its times, and for differences of them."""

    def __init__(self, tree: ast.AST) -> None:
        self._times, self._durations = set[str](), set[str]()
        for _ in range(3):  # a name for what a function returns as a name
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign):
                    self._note(node.value, *node.targets)
                elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                    self._note(node.value, node.target)
                elif isinstance(node, ast.FunctionDef):
                    for part in ast.walk(node):
                        if isinstance(part, ast.Return) and part.value is not None and self.has_duration(part.value):
                            self._durations.add(node.name)

    def has_duration(self, node: ast.AST) -> bool:
        return any(
            self._has_time(part.left) or self._has_time(part.right)
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub)
            else isinstance(part, ast.Name) and part.id in self._durations
            for part in _parts(node)
        )

    def _has_time(self, node: ast.AST) -> bool:
        return any(is_clock(part) or (isinstance(part, ast.Name) and part.id in self._times) for part in _parts(node))

    def _note(self, value: ast.AST, *targets: ast.AST) -> None:
        names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        self._times |= names if self._has_time(value) else set()
        self._durations |= names if self.has_duration(value) else set()


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and what it is made of, without what is only told in a text."""
    if not isinstance(node, ast.JoinedStr):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _parts(child)


def is_clock(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    return name in CLOCKS and ast.unparse(node.func).removeprefix("time.") in CLOCKS


def compared_durations(source: str) -> list[str]:
    """Every < and > with something that was computed from a difference of clocks."""
    tree = ast.parse(source)
    clocks = Clocks(tree)
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
        and clocks.has_duration(node)
    ]


def short_waits(source: str) -> list[str]:
    """Every wait that is too long for what is not to come, and too short for what is."""
    return [
        f"line {node.lineno}: {ast.unparse(node)} ({seconds:g} s)"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.expr)
        for seconds in limits(node)
        if NOTHING_COMES < seconds < SOMETHING_COMES
    ]


def limits(node: ast.expr) -> Iterator[float]:
    """The seconds for which ``node`` waits, where they are written as a number."""
    found: list[ast.expr] = []
    if isinstance(node, ast.Call):
        found += [word.value for word in node.keywords if word.arg == "timeout"]
        if isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            found += node.args if name in WAITS else []
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and is_clock(node.left):
        found.append(node.right)  # a deadline
    for value in found:
        if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
            yield float(value.value)


def files() -> list[Path]:
    return sorted(TESTS.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_limit_is_one_that_a_busy_machine_reaches(path: Path) -> None:
    assert compared_durations(path.read_text()) == []
    assert short_waits(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "start = time.monotonic()\nf()\nassert time.monotonic() - start < SECONDS",
        "began = perf_counter()\nassert perf_counter() - began < TIMEOUT + 15",
        "def f():\n    now = time.time()\n    return 1, time.time() - now\ntext, seconds = f()\nassert seconds < 10",
        "def f():\n    return time.monotonic() - began\nassert f() <= 1",
        "took = time.monotonic_ns() - start\nhalf = took / 2\nassert half > 3",
        "before = min(time.time(), 1)\nassert 3 > time.time() - before",
    ],
)
def test_a_compared_duration_is_found(source: str) -> None:
    assert len(compared_durations(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "end = time.monotonic() + seconds\nwhile time.monotonic() < end:\n    f()",
        "events = [('began', time.monotonic())]\nassert events[0][1] < events[1][1]",
        "assert len(found) - 1 < 3",
    ],
)
def test_an_order_is_no_duration(source: str) -> None:
    assert compared_durations(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "process.wait(20)",
        "thread.join(5)",
        "subprocess.run(words, timeout=30)",
        "deadline = time.monotonic() + 2",
        "pytest.mark.timeout(20)",
        "job.wait_until(f, 10)",
    ],
)
def test_a_short_wait_is_found(source: str) -> None:
    assert len(short_waits(source)) == 1


def test_waits_for_nothing_are_short_and_for_something_long() -> None:
    assert short_waits("process.wait(0.3)\nprocess.wait(PATIENCE)\nsubprocess.run(words, timeout=60)") == []


def test_files_are_in_memory_where_there_is_room_for_them(tmp_path: Path) -> None:
    assert root_in_memory(tmp_path, room=1) == str(tmp_path)
    assert root_in_memory(tmp_path, room=1 << 60) is None
    assert root_in_memory(tmp_path / "missing", room=1) is None


@pytest.mark.parametrize("flags", [0, getattr(os, "ST_NOEXEC", 8)])
def test_no_files_are_where_no_program_may_be_started(
    flags: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(f_flag=flags, f_bavail=2, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    assert root_in_memory(tmp_path, room=2) == (None if flags else str(tmp_path))
