"""``bllpipe env``: versions, devices and settings for a bug report, without names of users or machines.
``bllpipe completion``: a completion script for the shell, which starts no Python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bllpipe.config.loader import known_keys
from bllpipe.distributed.torchrun import settings
from bllpipe.utils.console import show

PACKAGES = ("torchvision", "numpy", "pillow", "pyyaml", "safetensors", "prometheus-client", "deepspeed")
SHELLS = ("bash", "zsh", "fish")
INSTALLATION = """bash: bllpipe completion bash > ~/.local/share/bash-completion/completions/bllpipe
zsh:  bllpipe completion zsh > a folder of $fpath, as _bllpipe
fish: bllpipe completion fish > ~/.config/fish/completions/bllpipe.fish
"""


def add_env(commands: Any) -> None:
    """Adds the command ``env``."""
    env = commands.add_parser("env", help="print versions and devices, for a bug report")
    env.set_defaults(run=_env)


def _env(options: argparse.Namespace, argv: Sequence[str]) -> int:
    show(json.dumps(describe(), indent=1))
    return 0


def describe() -> dict[str, Any]:
    """The contents of a run's env.json, and versions, backends, threads, memory and environment variables."""
    import torch
    import torch.distributed as dist

    from bllpipe.training.run_directory import environment

    has_nccl = dist.is_available() and dist.is_nccl_available() and torch.cuda.is_available()
    return {
        **environment(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "variables": settings(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The version of the GPU driver, from nvidia-smi; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def add_completion(commands: Any) -> None:
    """Adds the command ``completion``, which describes the parser of all commands."""
    completion = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        epilog=INSTALLATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_completion)


def _completion(options: argparse.Namespace, argv: Sequence[str]) -> int:
    import shtab

    keys = " ".join(known_keys())
    function = f"_bllpipe_keys() {{ compgen -W '{keys}' -- \"$1\"; }}"
    by_shell = {"bash": "_bllpipe_keys", "zsh": f"({keys})", "fish": keys, "preamble": {"bash": function}}
    _complete_keys(options.parser, by_shell)
    show(shtab.complete(options.parser, options.shell))
    return 0


def _complete_keys(parser: argparse.ArgumentParser, keys: Mapping[str, Any]) -> None:
    """Makes shtab complete the config keys after ``--set`` in all commands; ``keys`` holds the completion by shell."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_keys(command, keys)
        elif "--set" in action.option_strings:
            action.complete = keys  # type: ignore[attr-defined]  # read by shtab
