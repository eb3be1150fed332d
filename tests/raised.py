"""Which ``raise`` of the package does no test run into? ``python -m tests.raised`` runs the tests with coverage, in all
their processes, and lists those; ``python -m tests.raised --report`` lists them again."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import coverage

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "bllpipe"


def main(arguments: Sequence[str]) -> int:
    """1 when there are any."""
    if "--report" not in arguments:
        run = [sys.executable, "-m", "coverage"]
        subprocess.run([*run, "erase"], cwd=REPOSITORY, check=True)
        subprocess.run([*run, "run", "-m", "pytest", "-q", *arguments], cwd=REPOSITORY, check=False)
        subprocess.run([*run, "combine", "--quiet"], cwd=REPOSITORY, check=True)
    missing = [f"{path.relative_to(REPOSITORY)}:{line}" for path, line in never_raised()]
    print("\n".join(missing) or "every raise was run into")
    print(f"{len(missing)} of {sum(1 for path in modules() for _ in raises(path.read_text()))} raises were not")
    return int(bool(missing))


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def raises(source: str) -> Iterator[int]:
    """The lines of the ``raise`` statements that make an error; those that pass one on are none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield node.lineno


def never_raised() -> Iterator[tuple[Path, int]]:
    """Those that the recorded tests did not reach."""
    data = coverage.CoverageData(str(REPOSITORY / ".coverage"))
    data.read()
    for path in modules():
        seen = set(data.lines(str(path)) or ())
        yield from ((path, line) for line in raises(path.read_text()) if line not in seen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
