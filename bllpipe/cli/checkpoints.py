"""``bllpipe ckpt``: list the checkpoints of a run, verify every byte of them, or show the contents of one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bllpipe.errors import CheckpointError
from bllpipe.utils.console import age_text, show, size_text

if TYPE_CHECKING:
    from bllpipe.tools.analysis.checkpoint_inspection import CheckpointInfo

DAMAGED = CheckpointError.exit_code


def add_checkpoints(commands: Any) -> None:
    """Adds the command ``ckpt``."""
    about = "list, verify or show the checkpoints of a run"
    ckpt = commands.add_parser("ckpt", help=about, description=about).add_subparsers(required=True, metavar="COMMAND")

    listing = ckpt.add_parser("ls", help="step, ranks, size, age and state of each, judged by the sizes of its files")
    listing.add_argument("path", metavar="RUN", help="a run directory, such as runs/NAME")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    verify = ckpt.add_parser("verify", help=f"read every byte; exit code {DAMAGED} if a checkpoint is damaged")
    verify.add_argument("path", metavar="RUN-or-CHECKPOINT", help="a run directory, or one of its checkpoints/step-N")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(run=_verify)

    show = ckpt.add_parser("show", help="manifest, config and tensors of a checkpoint; no weight is read")
    show.add_argument(
        "path", metavar="CHECKPOINT", help="checkpoints/step-N, or a run directory for its newest checkpoint"
    )
    show.set_defaults(run=_show)


def _list(options: argparse.Namespace, argv: Sequence[str]) -> int:
    from bllpipe.tools.analysis.checkpoint_inspection import list_checkpoints  # torch

    _print(
        list_checkpoints(Path(options.path), sizes_only=True),
        f"judged by names, manifests and sizes; use bllpipe ckpt verify {options.path} to read every byte",
        options.json,
    )
    return 0


def _verify(options: argparse.Namespace, argv: Sequence[str]) -> int:
    from bllpipe.tools.analysis.checkpoint_inspection import list_checkpoints, next_to_resume  # torch

    found = list_checkpoints(Path(options.path))
    damaged, newest = sum(bool(each.problems) for each in found), next_to_resume(found)
    count = f"{damaged} of {len(found)} damaged" if damaged else "every byte is as it was written"
    resume = f"--resume auto resumes from {newest.name}" if newest else "there is none to resume from"
    _print(found, f"{count}; {resume}", options.json)
    return DAMAGED if damaged else 0


def _show(options: argparse.Namespace, argv: Sequence[str]) -> int:
    from bllpipe.tools.analysis.checkpoint_inspection import describe_checkpoint

    show("\n".join(describe_checkpoint(Path(options.path))))
    return 0


def _print(found: Sequence[CheckpointInfo], conclusion: str, as_json: bool) -> None:
    """JSON, or a table with the problems of a checkpoint below its row, and the conclusion."""
    if as_json:
        show(json.dumps([asdict(each) for each in found], indent=1))
        return
    width = max(len(each.name) for each in found)
    lines = [f"{'step':>10} {'ranks':>6} {'size':>10} {'age':>8}  {'directory':<{width}}  state"]
    for each in found:
        step, ranks = ("-" if number is None else number for number in (each.step, each.num_ranks))
        size, age = size_text(each.bytes), age_text(each.age_seconds)
        lines.append(f"{step:>10} {ranks:>6} {size:>10} {age:>8}  {each.name:<{width}}  {each.state}")
        lines += [f"{'':10} {problem}" for problem in each.problems]
    show("\n".join([*lines, conclusion]))
