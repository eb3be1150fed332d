"""Inputs made by someone who means harm: each must end in one of bllpipe's own errors, in little time and memory."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.chaos.cases import BrokenPromise, Case, MakeCase
from bllpipe.errors import BllpipeError

LONGEST_MESSAGE = 3000
Write = Callable[[random.Random, Path], str]  # writes a hostile file, or what stands in its place, and says what it is


def refused(what: str, run: Callable[[], object], may_pass: bool = False) -> Case:
    """A case that must end in a BllpipeError; what was made by chance out of something good may also pass."""

    def attempt() -> None:
        try:
            run()
        except BllpipeError as error:
            if not 0 < len(str(error)) < LONGEST_MESSAGE:
                raise BrokenPromise(f"the message has {len(str(error)):,} characters") from error
            return
        if not may_pass:
            raise BrokenPromise("was accepted")

    return Case(what, attempt)


def of_kinds(kinds: Mapping[str, MakeCase]) -> MakeCase:
    """A family that draws one of ``kinds`` for every case."""

    def make(draws: random.Random, folder: Path) -> Case:
        kind = draws.choice(sorted(kinds))
        case = kinds[kind](draws, folder)
        return Case(f"{kind}: {case.what}", case.run)

    return make


def file_case(name: str, write: Write, read: Callable[[Path], object], may_pass: bool = False) -> MakeCase:
    """Cases of a file called ``name`` that is written, and then read by whoever reads such files."""

    def make(draws: random.Random, folder: Path) -> Case:
        what = write(draws, folder / name)
        return refused(what, lambda: read(folder / name), may_pass)

    return make


def no_file(draws: random.Random, path: Path) -> str:
    """Something that is no file, or none that can be read."""
    kind = draws.choice(["nothing", "a directory", "a pipe", "/dev/zero", "a link in a circle", "a link to nothing"])
    match kind:
        case "a directory":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "/dev/zero":
            path.symlink_to("/dev/zero")
        case "a link in a circle":
            path.symlink_to(path.name)
        case "a link to nothing":
            path.symlink_to("none")
    return kind


def sparse(start: bytes, least: int = 1 << 28, most: int = 1 << 40) -> Write:
    """A file that begins with ``start`` and goes on with zeros that lie on no disk."""

    def write(draws: random.Random, path: Path) -> str:
        size = draws.randrange(least, most)
        path.write_bytes(start)
        os.truncate(path, size)
        return f"{size:,} bytes"

    return write


def noise(*starts: bytes) -> Write:
    """Random bytes behind one of ``starts``."""

    def write(draws: random.Random, path: Path) -> str:
        start, length = draws.choice(starts), draws.choice([0, 1, 7, 8, 100, 5000])
        path.write_bytes(start + draws.randbytes(length))
        return f"{length} random bytes behind {start[:16]!r}"

    return write


def mutated(good: Callable[[random.Random], bytes]) -> Write:
    """Something good of which some bytes were changed, cut out, doubled, or lost at the end."""

    def write(draws: random.Random, path: Path) -> str:
        content = bytearray(good(draws))
        done = [_mutate(draws, content) for _ in range(draws.randint(1, 4))]
        path.write_bytes(content)
        return ", ".join(done)

    return write


def _mutate(draws: random.Random, content: bytearray) -> str:
    at, length = draws.randrange(len(content) + 1), draws.choice([1, 2, 8, 50])
    match draws.choice(["flip", "noise", "cut", "double", "end"]):
        case "flip" if at < len(content):
            content[at] ^= 1 << draws.randrange(8)
            return f"flipped a bit at {at}"
        case "noise":
            content[at : at + length] = draws.randbytes(length)
            return f"{length} random bytes at {at}"
        case "cut":
            del content[at : at + length]
            return f"cut {length} bytes at {at}"
        case "double":
            content[at:at] = content[at : at + length]
            return f"doubled {length} bytes at {at}"
        case _:
            del content[at:]
            return f"ended at {at}"


class Harm:
    """A pickle of this makes a directory when it is loaded."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._place),)


def disguised(*wrap: Callable[[Harm, Path], None]) -> Write:
    """A pickle under the name of something else."""

    def write(draws: random.Random, path: Path) -> str:
        harm, chosen = Harm(path.parent / "harm"), draws.choice(wrap)
        chosen(harm, path)
        return f"a pickle, by {chosen.__name__}"

    return write


def plain_pickle(harm: Harm, path: Path) -> None:
    path.write_bytes(pickle.dumps(harm))


def unharmed(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """``read``, and a look whether a pickle was run."""

    def reading(path: Path) -> object:
        try:
            return read(path)
        finally:
            if (path.parent / "harm").exists():
                raise BrokenPromise("a pickle was loaded")

    return reading
