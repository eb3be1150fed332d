"""``bllpipe env``: versions, devices and settings, as a bug report needs them; no names of users or machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any


def add_env(commands: Any) -> None:
    """The command ``env``."""
    env = commands.add_parser("env", help="versions and devices, as a bug report needs them")
    env.set_defaults(run=_env)


def _env(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.terminal.machine import describe  # torch

    print(json.dumps(describe(), indent=1))
    return 0
