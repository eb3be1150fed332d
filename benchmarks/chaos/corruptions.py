"""The checkpoints of a real run are damaged; every damage must be found and named, and the newest one that is still as
it was written must be taken, bit for bit, or the run refused."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos.cases import BrokenPromise, Case, Families, MakeCase
from benchmarks.chaos.damage import DAMAGES, Damage
from bllpipe.checkpoint import Checkpoint, find_checkpoint
from bllpipe.checkpoint.format import MANIFEST, DirectoryName
from bllpipe.checkpoint.reader import misnamed_checkpoints, newest_first
from bllpipe.errors import CheckpointError
from bllpipe.tools.analysis.checkpoint_inspection import list_checkpoints
from bllpipe.utils.tensors import part_digest

STEPS = (2, 4, 6)
SETTINGS = (
    *("engine=sequential", "model.width=4", "data.batch_size=32", f"steps={STEPS[-1]}"),
    *("checkpoint.every_steps=2", "checkpoint.keep=3"),
)
MOST_AT_ONCE = 5


def make_run(folder: Path) -> None:
    """A short run of four blocks and the feedback, with three checkpoints."""
    overrides = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "bllpipe.launch", *overrides, "--run-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


class Corruptions:
    """Families of damage to copies of the checkpoints in ``checkpoints``."""

    def __init__(self, checkpoints: Path) -> None:
        self._source = checkpoints
        self._files: dict[int, dict[str, bytes]] = {}
        self._digests: dict[int, str] = {}
        for step in STEPS:
            path = checkpoints / str(DirectoryName(step))
            self._files[step] = {file.name: file.read_bytes() for file in path.iterdir()}
            self._digests[step] = part_digest(Checkpoint(path, step, len(self._files[step]) // 2).tensors())

    def families(self) -> Families:
        one = {name: self._maker([damage], 1) for name, damage in DAMAGES.items()}
        return {**one, "several at once": self._maker(list(DAMAGES.values()), MOST_AT_ONCE)}

    def _maker(self, damages: list[Damage], most: int) -> MakeCase:
        def make(draws: random.Random, folder: Path) -> Case:
            checkpoints = folder / "checkpoints"
            shutil.copytree(self._source, checkpoints)
            number = draws.randint(min(2, most), most)
            done = [_damaged(draws.choice(damages), draws, checkpoints) for _ in range(number)]
            return Case("; ".join(done), lambda: self._judge(checkpoints))

        return make

    def _judge(self, checkpoints: Path) -> None:
        """Raises BrokenPromise unless what is taken and what is said are what they have to be."""
        candidates = newest_first(checkpoints)
        intact = [path for path in candidates if not self._touched(path)]
        told: list[str] = []
        try:
            found = find_checkpoint(checkpoints, told.append)
        except CheckpointError as error:
            _expect(not intact, f"refused, though {intact[:1]} is whole: {error}")
            found = None
        else:
            _expect((found.path if found else None) == next(iter(intact), None), f"took {found}, expected {intact[:1]}")
            _expect(found is not None or not candidates, "started over silently")
        passed_over = candidates[: candidates.index(found.path)] if found else candidates
        self._check_told(passed_over, misnamed_checkpoints(checkpoints), told)
        if found is not None:
            digest = part_digest(found.tensors())
            _expect(digest == self._digests[found.step], f"the tensors of {found.path.name} are not those of the run")
        whole = {each.name for each in list_checkpoints(checkpoints) if each.can_be_resumed} if candidates else set()
        _expect(whole == {path.name for path in intact}, f"bllpipe ckpt verify calls {sorted(whole)} whole")

    def _touched(self, path: Path) -> set[str]:
        """The files of a checkpoint that are not those of the step in its name."""
        name = DirectoryName.parse(path.name)
        originals = self._files.get(name.step, {}) if name else {}
        others = {file for file, content in originals.items() if not _holds(path / file, content)}
        return others or (set() if originals else {MANIFEST})

    def _check_told(self, passed_over: list[Path], misnamed: list[Path], told: list[str]) -> None:
        """Raises BrokenPromise unless every damaged checkpoint is named, with a file that is really damaged."""
        for path in passed_over:
            about = [text for text in told if text.startswith(f"skipped the checkpoint {path.name}: ")]
            _expect(len(about) == 1, f"{path.name} is damaged, but nothing is said of it")
            touched = self._touched(path)
            names = any(f"{path.name}/{file} " in about[0] for file in touched)
            lies = MANIFEST in touched or "its name says otherwise" in about[0]  # one word against another
            _expect(names or lies, f"not what is damaged is named: {about[0]}")
        for path in misnamed:
            _expect(any(text.startswith(f"skipped {path.name}: ") for text in told), f"nothing is said of {path.name}")
        _expect(len(told) == len(passed_over) + len(misnamed), f"more is said than there is: {told}")


def _damaged(damage: Damage, draws: random.Random, checkpoints: Path) -> str:
    """What was done; where another damage was before, there may be nothing left to do."""
    try:
        return damage(draws, checkpoints)
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        return f"{damage.__name__} found nothing to damage ({type(error).__name__})"


def _holds(file: Path, content: bytes) -> bool:
    return file.is_file() and not file.is_symlink() and file.read_bytes() == content


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise BrokenPromise(otherwise)
