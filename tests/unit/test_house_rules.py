"""The rules of the package: which file imports which, how long a file may be, and what is never written.

Imports are counted wherever they stand: at the top, in a function, and for a type checker alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "bllpipe"
MAX_LINES = 400

# From top to bottom. A file imports files of its own part, and of the parts in the rows below its own.
LAYERS = [
    ("cli",),
    ("__init__",),
    ("api", "slurm"),
    ("launch",),
    ("tools",),
    ("engines",),
    ("training",),
    ("learn", "data"),
    ("models", "checkpoint", "distributed"),
    ("config", "utils", "topology"),
    ("messages", "errors", "version"),
]
# What the parts may not import of other packages: the mathematics knows no processes, links know no layers.
NEVER = {
    "learn": {"torch.distributed"},
    "models": {"torch.distributed"},
    "data": {"torch.distributed"},
    "checkpoint": {"torch.distributed"},
    "distributed": {"torch.nn"},
}
NEVER_ANYWHERE = {"benchmarks", "scripts", "tests", "pickle", "dill", "joblib"}
NEVER_CALLED = {"torch.load", "time.sleep", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}
# Modules that a command imports before it knows whether it needs torch, whose import takes seconds.
WITHOUT_TORCH = [
    "bllpipe",
    "bllpipe.cli",
    "bllpipe.cli.check",
    "bllpipe.cli.checkpoints",
    "bllpipe.cli.data",
    "bllpipe.cli.env",
    "bllpipe.cli.plan",
    "bllpipe.cli.results",
    "bllpipe.cli.watch",
    "bllpipe.config.loader",
    "bllpipe.config.data_checks",
    "bllpipe.config.networks",
    "bllpipe.config.schema",
    "bllpipe.config.validation",
    "bllpipe.data.catalog",
    "bllpipe.data.npz",
    "bllpipe.distributed.torchrun",
    "bllpipe.engines",
    "bllpipe.engines.launcher",
    "bllpipe.errors",
    "bllpipe.launch",
    "bllpipe.messages",
    "bllpipe.models.partition",
    "bllpipe.slurm.__main__",
    "bllpipe.slurm.job_script",
    "bllpipe.tools.analysis.tensorboard",
    "bllpipe.tools.analysis.timeline",
    "bllpipe.tools.analysis.timeline_picture",
    "bllpipe.tools.monitoring.live_table",
    "bllpipe.tools.monitoring.progress",
    "bllpipe.tools.monitoring.run_status",
    "bllpipe.tools.monitoring.tracker_process",
    "bllpipe.tools.monitoring.tracking",
    "bllpipe.tools.planning.cluster.clocks",
    "bllpipe.tools.planning.cluster.description",
    "bllpipe.tools.planning.cluster.failures",
    "bllpipe.tools.planning.cluster.layouts",
    "bllpipe.tools.planning.cluster.output",
    "bllpipe.tools.planning.cluster.picture",
    "bllpipe.tools.planning.cluster.predictions",
    "bllpipe.tools.planning.cluster.sums",
    "bllpipe.tools.planning.cluster.synchronous",
    "bllpipe.tools.planning.predict",
    "bllpipe.tools.planning.profile",
    "bllpipe.tools.planning.profile",
    "bllpipe.topology",
    "bllpipe.training.run_schedule",
    "bllpipe.training.stopping",
    "bllpipe.training.tracing",
    "bllpipe.training.watchdog",
    "bllpipe.utils.console",
    "bllpipe.utils.files",
    "bllpipe.utils.files",
    "bllpipe.utils.process",
    "bllpipe.version",
]
DEPTH = {part: depth for depth, layer in enumerate(LAYERS) for part in layer}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """``bllpipe.learn.block`` for bllpipe/learn/block.py, ``bllpipe.learn`` for bllpipe/learn/__init__.py."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def part_of(file: str) -> str:
    """The part of the package that a file belongs to: ``learn`` for learn/block.py."""
    return file.split("/")[0].removesuffix(".py")


@cache
def parsed(source: str) -> ast.Module:
    """Once for all rules."""
    return ast.parse(source)


KNOWN = {name_of(path): str(path.relative_to(PACKAGE)) for path in modules()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports. ``from a import b`` counts as a.b if that is a module of ours, and as both if
    it may be one of others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in KNOWN else str(node.module)
                if not name.startswith("bllpipe."):
                    yield name


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported with the file, not in a function and not for a type checker alone."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield next(imported(node))


def wrong_imports(file: str, source: str) -> list[str]:
    """What ``file`` must not import."""
    found = []
    part = part_of(file)
    never = NEVER_ANYWHERE | NEVER.get(part, set())
    for name in imported(parsed(source)):
        if name in KNOWN:
            other = part_of(KNOWN[name])
            if other != part and DEPTH[other] <= DEPTH[part]:
                found.append(name)
        if any(name == package or name.startswith(f"{package}.") for package in never):
            found.append(name)
    return found


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Files that import each other, directly or through others: the strongly connected components of more than one."""
    reached: dict[str, set[str]] = {}
    for file in arrows:
        found, waiting = set[str](), list(arrows[file])
        while waiting:
            other = waiting.pop()
            if other not in found:
                found.add(other)
                waiting += arrows.get(other, ())
        reached[file] = found
    groups = {
        tuple(sorted(other for other in found if file in reached.get(other, ())))
        for file, found in reached.items()
        if file in found
    }
    return sorted(list(group) for group in groups)


def wrong_statements(source: str) -> list[str]:
    """Calls that are never right here, and handlers that catch everything and go on."""
    found = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in NEVER_CALLED:
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.Call) and "object_list" in ast.unparse(node.func):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        if isinstance(node, ast.Global):
            found.append(f"line {node.lineno}: global")
    return found


def own_output(source: str) -> list[str]:
    """Every use of a standard stream that a closed or odd one would end in an exception: ``print``, and methods that
    write, of ``sys.stdout`` and ``sys.stderr`` under any name that is theirs."""
    found, streams = [], {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}
    tree = parsed(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "sys":
            streams |= {alias.asname or alias.name for alias in node.names if f"sys.{alias.name}" in streams}
        if isinstance(node, ast.Assign) and ast.unparse(node.value) in streams:
            streams |= {ast.unparse(target) for target in node.targets}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        stream, _, method = name.rpartition(".")
        if name in ("print", "builtins.print", "pprint.pprint", "traceback.print_exc", "traceback.print_exception"):
            found.append(f"line {node.lineno}: {name}")
        if stream.removesuffix(".buffer") in streams and method in ("write", "writelines"):
            found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_output_goes_through_the_console(path: Path) -> None:
    """One ``print`` to a closed pipe once changed the exit code of a run that had succeeded."""
    if path != PACKAGE / "utils" / "console.py":
        assert own_output(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "def f():\n    sys.stdout.write('x')",
        "sys.stderr.writelines(['x'])",
        "sys.stdout.buffer.write(b'x')",
        "from sys import stderr as err\nerr.write('x')",
        "out = sys.stdout\nout.write('x')",
        "traceback.print_exc()",
        "sys.__stderr__.write('x')",
    ],
)
def test_output_past_the_console_is_found(source: str) -> None:
    assert len(own_output(source)) == 1


def test_other_writers_are_not_output() -> None:
    assert own_output("file.write('x')\nconsole.print('x')\nsay('x', sys.stdout)\nsys.stdout.flush()") == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    assert wrong_imports(str(path.relative_to(PACKAGE)), path.read_text()) == []


def test_no_imports_go_in_a_circle() -> None:
    arrows = {KNOWN[name_of(path)]: set[str]() for path in modules()}
    for path in modules():
        file = str(path.relative_to(PACKAGE))
        arrows[file] = {KNOWN[name] for name in imported(parsed(path.read_text())) if name in KNOWN} - {file}
    assert circles(arrows) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def test_the_package_itself_imports_almost_nothing_at_once() -> None:
    tree = parsed((PACKAGE / "__init__.py").read_text())
    assert set(imported_at_once(tree)) <= {"__future__", "bllpipe.version", "typing"}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("learn/block.py", "import torch.distributed as dist"),
        ("learn/block.py", "from torch import distributed"),
        ("learn/block.py", "def f():\n    from bllpipe.training.loops import BlockLoop"),
        ("models/units.py", "from bllpipe.learn.block import Block"),
        ("models/units.py", "from bllpipe.checkpoint.reader import Checkpoint"),
        ("distributed/gloo.py", "from torch import nn"),
        ("distributed/gloo.py", "from bllpipe.training import loops"),
        ("training/loops.py", "from bllpipe.engines import job"),
        ("training/loops.py", "if TYPE_CHECKING:\n    from bllpipe.engines.job import Job"),
        ("config/schema.py", "from bllpipe import learn"),
        ("messages.py", "from bllpipe.config import Config"),
        ("topology.py", "from bllpipe.utils.files import read_record"),
        ("engines/ranks.py", "from bllpipe.launch import main"),
        ("engines/ranks.py", "from bllpipe.tools.monitoring.exporter import mark_failed"),
        ("engines/build.py", "from bllpipe.tools.fault_injection import FaultInjection"),
        ("training/stopping.py", "if TYPE_CHECKING:\n    from bllpipe.engines.job import Job"),
        ("training/worker.py", "import bllpipe"),
        ("cli/data.py", "import tests.support.jobs"),
        ("training/worker.py", "import pickle"),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str) -> None:
    assert wrong_imports(file, source) != []


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


def test_every_part_has_its_layer() -> None:
    assert {part_of(str(path.relative_to(PACKAGE))) for path in modules()} == set(DEPTH)


def test_commands_start_without_torch() -> None:
    """All of these in one fresh process, in which a single import of torch would show."""
    for name in WITHOUT_TORCH:
        assert name in KNOWN, f"there is no {name}"
    look = "sys.exit(f'torch came with {name}') if 'torch' in sys.modules else None"
    code = f"import importlib, sys\nfor name in {WITHOUT_TORCH}:\n    importlib.import_module(name)\n    {look}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_one_place_reads_what_torchrun_says() -> None:
    """No environment reads outside the one place that opens the world."""
    readers = {str(path.relative_to(PACKAGE)) for path in modules() if "os.environ" in path.read_text()}
    assert readers == {"distributed/torchrun.py"}


@pytest.mark.parametrize("folder", ["bllpipe", "benchmarks", "scripts", "tests"])
def test_no_file_is_long(folder: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (REPOSITORY / folder).rglob("*.py")}
    assert lengths, f"{folder} holds no Python"
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}
