"""Runs a script twice in one process, as one that trains several times: SCRIPT RUN_DIR RUN_DIR WORDS..."""

from __future__ import annotations

import runpy
import sys

script, *directories = sys.argv[1:4]
words = sys.argv[4:]
for directory in directories:
    sys.argv = [script, "--run-dir", directory, *words]
    runpy.run_path(script, run_name="__main__")
