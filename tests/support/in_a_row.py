"""Runs examples for two epochs each, one after another in this process: NAME=RUN_DIR ..."""

from __future__ import annotations

import runpy
import sys

from tests.support.jobs import REPOSITORY

for word in sys.argv[1:]:
    name, _, run_dir = word.partition("=")
    script = str(REPOSITORY / "docs" / "examples" / f"{name}.py")
    sys.argv = [script, "--run-dir", run_dir, "--epochs", "2"]
    runpy.run_path(script, run_name="__main__")
