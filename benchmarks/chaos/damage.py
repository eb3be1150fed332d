"""What can happen to the checkpoints of a run: bits that flip, files that are cut, lost, mixed up or edited by hand."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bllpipe.checkpoint.format import MANIFEST
from bllpipe.utils.files import render

Damage = Callable[[random.Random, Path], str]  # to a directory of checkpoints; says what it did


def a_file(draws: random.Random, checkpoints: Path) -> Path:
    """Any file of any checkpoint; each is as likely as the others, however large."""
    return draws.choice(sorted(file for file in checkpoints.glob("step-*/*") if file.is_file()))


def a_step(draws: random.Random, checkpoints: Path) -> Path:
    return draws.choice(sorted(checkpoints.glob("step-*")))


def name_of(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def flip_a_bit(draws: random.Random, checkpoints: Path) -> str:
    file = a_file(draws, checkpoints)
    content = bytearray(file.read_bytes())
    if not content:
        return f"found {name_of(file)} empty"
    bit = draws.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"flipped bit {bit} of {name_of(file)}"


def overwrite(draws: random.Random, checkpoints: Path) -> str:
    """A block of zeros or of noise, as disks leave it behind."""
    file = a_file(draws, checkpoints)
    content = file.read_bytes()
    start, length = draws.randrange(len(content) + 1), draws.choice([1, 64, 512, 4096])
    block = bytes(length) if draws.random() < 0.5 else draws.randbytes(length)
    file.write_bytes((content[:start] + block + content[start + length :])[: len(content)])
    return f"overwrote {length} bytes of {name_of(file)} from {start} on"


def truncate(draws: random.Random, checkpoints: Path) -> str:
    file = a_file(draws, checkpoints)
    size = file.stat().st_size
    left = draws.choice([0, max(0, size - 1), draws.randrange(size + 1)])
    os.truncate(file, left)
    return f"cut {name_of(file)} to {left} of {size} bytes"


def extend(draws: random.Random, checkpoints: Path) -> str:
    file, length = a_file(draws, checkpoints), draws.choice([1, 8, 4096])
    with file.open("ab") as opened:
        opened.write(bytes(length) if draws.random() < 0.5 else draws.randbytes(length))
    return f"added {length} bytes to {name_of(file)}"


def delete(draws: random.Random, checkpoints: Path) -> str:
    file = a_file(draws, checkpoints)
    file.unlink()
    return f"deleted {name_of(file)}"


def replace_by_no_file(draws: random.Random, checkpoints: Path) -> str:
    file = a_file(draws, checkpoints)
    kept = checkpoints.parent / "kept"
    file.replace(kept)
    kind = draws.choice(["directory", "pipe", "link to the same bytes", "link to nothing", "link to itself"])
    match kind:
        case "directory":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case _:
            file.symlink_to({"link to the same bytes": kept, "link to nothing": checkpoints / "none"}.get(kind, file))
    return f"put a {kind} in place of {name_of(file)}"


def swap_files(draws: random.Random, checkpoints: Path) -> str:
    """Two files of one checkpoint."""
    step = a_step(draws, checkpoints)
    one, two = draws.sample(sorted(file for file in step.iterdir() if file.is_file()), 2)
    _swap(one, two)
    return f"swapped {name_of(one)} and {two.name}"


def swap_between_steps(draws: random.Random, checkpoints: Path) -> str:
    """The same file of two checkpoints, or one copied over the other."""
    one, two = draws.sample(sorted(checkpoints.glob("step-*")), 2)
    name = draws.choice(sorted(file.name for file in one.iterdir() if file.is_file()))
    if draws.random() < 0.5:
        _swap(one / name, two / name)
        return f"swapped {name} of {one.name} and {two.name}"
    (two / name).write_bytes((one / name).read_bytes())
    return f"copied {name} of {one.name} to {two.name}"


def rename(draws: random.Random, checkpoints: Path) -> str:
    """A directory to another step, aside, into a part, or to a name of one's own; or two directories swap names."""
    step = a_step(draws, checkpoints)
    others = [other for other in sorted(checkpoints.glob("step-*")) if other != step]
    if draws.random() < 0.3 and others:
        other = draws.choice(others)
        _swap(step, other)
        return f"swapped the names of {step.name} and {other.name}"
    number = draws.randrange(1, 99)
    names = [f"step-{number:08}", f"step-{number}", f"{step.name}.replaced-x", f"{step.name}.partial-x", "backup"]
    target = checkpoints / draws.choice([name for name in names if not (checkpoints / name).exists()])
    step.rename(target)
    return f"renamed {step.name} to {target.name}"


def edit_manifest(draws: random.Random, checkpoints: Path) -> str:
    """One field; half of the time by someone who knows how to seal it again."""
    path = a_step(draws, checkpoints) / MANIFEST
    record = json.loads(path.read_bytes())
    what = draws.choice(sorted(EDITS))
    EDITS[what](draws, record)
    is_sealed = draws.random() < 0.5
    if is_sealed:
        body = {key: value for key, value in record.items() if key != "sha256"}
        record = {**body, "sha256": hashlib.sha256(render(body)).hexdigest()}
    path.write_bytes(render(record))
    return f"edited {what} in {name_of(path)}{' and sealed it' if is_sealed else ''}"


def _an_entry(draws: random.Random, record: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = record["files"][draws.choice(sorted(record["files"]))]
    return entry


def _edit_names(draws: random.Random, record: dict[str, Any]) -> None:
    name = draws.choice(sorted(record["files"]))
    other = draws.choice(["../rank-0.json", "/etc/passwd", "rank-9.json", "rank-00.json", "", "rank-0.json\0"])
    record["files"][other] = record["files"].pop(name)


def _edit_pairs(draws: random.Random, record: dict[str, Any]) -> None:
    one, two = draws.sample(sorted(record["files"]), 2)
    record["files"][one], record["files"][two] = record["files"][two], record["files"][one]


EDITS: dict[str, Callable[[random.Random, dict[str, Any]], object]] = {
    "step": lambda draws, record: record.update(step=record["step"] + draws.choice([-2, -1, 1, 2, 10**18])),
    "step's kind": lambda draws, record: record.update(step=draws.choice([str(record["step"]), 6.0, True, None, []])),
    "world_size": lambda draws, record: record.update(world_size=draws.choice([0, -1, 1, 4, 6, 10**18, "5", 5.0])),
    "format": lambda draws, record: record.update(format=draws.choice([0, 2, "1", None, 1.5])),
    "a digest": lambda draws, record: _an_entry(draws, record).update(sha256=draws.randbytes(32).hex()),
    "a size": lambda draws, record: _an_entry(draws, record).update(bytes=draws.choice([-1, 0, 2**63, "7", 1e400])),
    "a name": _edit_names,
    "two entries": _edit_pairs,
    "another key": lambda draws, record: record.update(more=draws.random()),
    "the list of files": lambda draws, record: record["files"].popitem(),
}


def _swap(one: Path, two: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)


DAMAGES: dict[str, Damage] = {
    "a flipped bit": flip_a_bit,
    "an overwritten block": overwrite,
    "a cut file": truncate,
    "a longer file": extend,
    "a missing file": delete,
    "no file in its place": replace_by_no_file,
    "swapped files": swap_files,
    "files of another step": swap_between_steps,
    "renamed directories": rename,
    "an edited manifest": edit_manifest,
}
