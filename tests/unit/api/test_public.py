"""What ``import bllpipe`` offers, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bllpipe


def test_every_public_name_is_there_and_documented() -> None:
    for name in bllpipe.__all__:
        assert getattr(bllpipe, name).__doc__, name
    assert set(bllpipe.__all__) <= set(dir(bllpipe))


def test_a_type_checker_sees_every_public_name() -> None:
    tree = ast.parse(Path(str(bllpipe.__file__)).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in getattr(node, "names", [])}  # type: ignore[attr-defined]  # an ImportFrom
    assert seen == {name: f"bllpipe.{home}" for name, home in bllpipe._HOMES.items()}
    assert sorted(seen) == bllpipe.__all__


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, bllpipe; bllpipe.ConfigError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_what_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'bllpipe' has no attribute 'trian'; it has .*train"):
        bllpipe.trian  # noqa: B018
