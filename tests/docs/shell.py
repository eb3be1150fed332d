"""What a real shell makes of the commands of a page: bash runs them, and every program is one that only notes down the
words it was given."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import REPOSITORY
from tests.support.waiting import PATIENCE

FAULTS = ("BLLPIPE_FAULT", "BLLPIPE_ALLOW_FAULTS")
NOTE = f"""#!/bin/sh
{{ printf '%s\\0' {" ".join(f'"${{{name}-}}"' for name in FAULTS)} "$0" "$@"; printf '\\036\\0'; }} >>"$NOTES"
"""
# What a page may tell its reader to type; whatever else it says is not found.
PROGRAMS = (
    *("bllpipe", "python", "python3", "pip", "torchrun", "make", "uv", "sbatch", "scancel", "scontrol", "squeue"),
    *(
        "docker",
        "curl",
        "git",
        "cat",
        "ls",
        "rm",
        "mv",
        "cp",
        "mkdir",
        "id",
        "kill",
        "df",
        "ps",
        "nvidia-smi",
        "py-spy",
    ),
    *("grep", "sed", "expand", "find", "tail", "head", "tensorboard", "cffconvert", "sudo", "apt-get", "ip", "ss"),
)
MADE = ("bllpipe", "python", "pip", "ruff", "mypy")  # in .venv/bin


@dataclass(frozen=True)
class Call:
    """A program and its words; ``fault`` and ``allowed`` are the variables that ask for faults on purpose."""

    fault: str
    allowed: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def make_place(folder: Path) -> Path:
    """A folder that looks like the repository to the commands of a page, in which no program does anything."""
    note = folder / "bin" / "note"
    note.parent.mkdir(parents=True)
    note.write_text(NOTE)
    note.chmod(0o755)
    scripts = [path.relative_to(REPOSITORY) for path in REPOSITORY.glob("*/*.sh")]
    scripts += [path.relative_to(REPOSITORY) for path in REPOSITORY.glob("tests/*/*.sh")]
    tools = [Path("bin") / name for name in PROGRAMS] + [Path(".venv/bin") / name for name in MADE]
    for path in (*scripts, *tools):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(note)
    return folder


def calls(commands: str, place: Path) -> list[Call]:
    """Every program that bash starts for ``commands`` in the folder of ``make_place``; AssertionError if it fails."""
    notes, bash = place / "notes", shutil.which("bash")
    assert bash is not None, "there is no bash here"
    notes.write_bytes(b"")
    variables = {"PATH": str(place / "bin"), "NOTES": str(notes), "HOME": str(place)}
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", commands],
        cwd=place,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"bash says {done.stderr.strip()} of\n{commands}"
    return list(_read(notes.read_bytes().decode(), place))


def _read(notes: str, place: Path) -> Iterator[Call]:
    for note in notes.split("\x1e\0")[:-1]:
        fault, allowed, program, *words = note.removesuffix("\0").split("\0")
        program = program.removeprefix(f"{place}/bin/").removeprefix(f"{place}/")
        yield Call(fault, allowed, (program, *words))
