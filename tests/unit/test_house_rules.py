"""The house stays in order: who may import whom, how long a file may be, and what is never written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "bllpipe"
MAX_LINES = 400

GROUND = {"version", "errors", "orphans", "randomness", "topology", "ports", "torch_state"}
# Which parts of bllpipe each part may import.
MAY_IMPORT = {
    "version": set(),
    "errors": set(),
    "orphans": set(),
    "randomness": set(),
    "torch_state": set(),
    "topology": {"errors"},
    "ports": set(),
    "config": {"errors"},
    "learn": {"config", *GROUND},
    "wire": {"config", *GROUND},
    "run": {"config", "learn", *GROUND},
    "metrics": {"config", "run", *GROUND},
    "plan": {"config", "learn", "run", *GROUND},
    "terminal": {"config", "metrics", "run", "wire", *GROUND},
    "engines": {"config", "learn", "metrics", "plan", "terminal", "wire", "run", *GROUND},
    "results": {"config", "learn", "run", *GROUND},
    "elastic": {"config", "engines", "run", "wire", *GROUND},
    "launch": {"config", "elastic", "engines", "terminal", "wire", *GROUND},
    "library": {"config", "engines", "launch", "learn", "plan", "results", "run", "wire", *GROUND},
    "slurm": {"config", "engines", "launch", "results", *GROUND},
    "check": {"config", "engines", "learn", "plan", "run", "wire", *GROUND},
    "cli": {"check", "config", "engines", "launch", "metrics", "plan", "results", "run", "slurm", "terminal", *GROUND},
}
# And which packages of others it may not: nobody imports the tests, mathematics knows no processes, wires no layers.
NEVER = {
    "errors": {"torch"},
    "orphans": {"torch"},
    "topology": {"torch"},
    "config": {"torch"},
    "learn": {"torch.distributed"},
    "wire": {"torch.nn"},
    "run": {"torch.distributed"},
}
NEVER_ANYWHERE = {"benchmarks", "tests", "pickle", "dill", "joblib"}
NEVER_CALLED = {"torch.load", "time.sleep", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The part of the house that a file belongs to: ``learn`` for bllpipe/learn/block.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever it does; ``from a import b`` counts as a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """Every module whose import a file does not put off, to be done when it is needed or by a type checker."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield next(imported(node))


def wrong_imports(part: str, source: str) -> list[str]:
    """What ``part`` must not import."""
    found = []
    never = NEVER_ANYWHERE | NEVER.get(part, set())
    for name in imported(ast.parse(source)):
        of_ours = name.split(".")[1] if name.startswith("bllpipe.") else None
        known = of_ours in MAY_IMPORT
        if known and of_ours != part and of_ours not in MAY_IMPORT[part]:
            found.append(name)
        if any(name == package or name.startswith(f"{package}.") for package in never):
            found.append(name)
    return found


def wrong_statements(source: str) -> list[str]:
    """Calls that are never right here, and handlers that catch everything and go on."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in NEVER_CALLED:
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.Call) and "object_list" in ast.unparse(node.func):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        if isinstance(node, ast.Global):
            found.append(f"line {node.lineno}: global")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_in_one_direction(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert set(imported_at_once(ast.parse(path.read_text()))) <= {"__future__", "bllpipe.version", "typing"}
    else:
        assert wrong_imports(part_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("learn", "import torch.distributed as dist"),
        ("learn", "from torch import distributed"),
        ("learn", "def f():\n    from bllpipe.wire.gloo import GlooSender"),
        ("wire", "from torch import nn"),
        ("wire", "from bllpipe.run.loops import BlockLoop"),
        ("run", "from bllpipe.wire.world import World"),
        ("run", "from bllpipe.engines import job"),
        ("config", "from bllpipe import learn"),
        ("ports", "from bllpipe.config import Config"),
        ("topology", "import torch"),
        ("engines", "from bllpipe.launch import main"),
        ("cli", "import tests.ranks.jobs"),
        ("run", "import pickle"),
    ],
)
def test_a_wrong_import_is_found(part: str, source: str) -> None:
    assert wrong_imports(part, source) != []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_forbidden_is_written(path: Path) -> None:
    assert wrong_statements(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')",
        "time.sleep(1)",
        "dist.all_gather_object_list(x)",
        "try:\n    f()\nexcept:\n    pass",
        "def f():\n    global state",
    ],
)
def test_something_forbidden_is_found(source: str) -> None:
    assert wrong_statements(source) != []


def test_the_table_names_every_part() -> None:
    assert {part_of(path) for path in modules()} - {"__init__"} == set(MAY_IMPORT)


def test_only_one_place_reads_what_torchrun_says() -> None:
    """No environment reads outside the one place that opens the world."""
    readers = {str(path.relative_to(PACKAGE)) for path in modules() if "os.environ" in path.read_text()}
    assert readers == {"wire/environment.py", "wire/world.py"}


@pytest.mark.parametrize("folder", ["bllpipe", "benchmarks", "tests"])
def test_no_file_is_long(folder: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (REPOSITORY / folder).rglob("*.py")}
    assert lengths, f"{folder} holds no Python"
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}
