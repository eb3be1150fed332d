"""Running what a page says: its Python from top to bottom, and its quick commands, shortened."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bllpipe.config.schema import SYNCHRONOUS
from tests.docs.commands import PLACEHOLDER, configuration, read
from tests.docs.pages import REPOSITORY, Page
from tests.docs.shell import Call
from tests.support import forks

OWN = re.compile(r"=\w+(\.\w+)*:\w+$")  # a module of the reader's, which is not here
NAMED = re.compile(r"# (\w+\.py)\n")
READERS = ("report", "timeline", "ckpt", "health", "eval", "export")  # commands that look at a run
OTHERS = ("check", "env", "slurm")
SHORT = ("steps=2", "model.width=4")


@dataclass(frozen=True)
class Code:
    """The Python of a page as one program in which every line has its number of the page, and the files it speaks of:
    a block that begins with ``# name.py`` is also the file of this name."""

    name: str
    program: str
    files: dict[str, str]


def python_of(page: Page) -> Code:
    """All of it; an empty program if there is none."""
    blocks = [block for block in page.blocks if block.kind == "python"]
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    files = {named[1]: block.text for block in blocks if (named := NAMED.match(block.text))}
    return Code(page.path.name, "\n".join(lines), files)


def run_python(code: Code, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs it in ``folder``, in a fork that takes an error's lines from the page."""
    for name, text in code.files.items():
        (folder / name).write_text(text)
    script = folder / code.name
    script.with_suffix(".run").write_text(code.program)
    start = (
        f"import sys; sys.path[0] = ''; text = open({str(script.with_suffix('.run'))!r}).read(); "
        f"sys.modules['__main__'].__dict__.update(__name__='__main__'); exec(compile(text, {str(script)!r}, 'exec'))"
    )
    variables = {**os.environ, "PYTHONPATH": f"{REPOSITORY}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", start]
    return forks.run(command, cwd=folder, env=variables)


def quick(call: Call, folder: Path) -> list[str] | None:
    """The words for ``bllpipe`` with which ``call`` is run here, on the run in ``runs/A`` of ``folder``; None if it is
    not quick, or is about what is not here: a data set, a cluster, a checkpoint to go on from."""
    if call.fault:
        return None
    words = [word for word in call.words if word not in ("...", "…")]
    if words[0] == "bllpipe" and words[1:2] and words[1] in (*READERS, *OTHERS):
        return [_here(word, folder) for word in words[1:]]
    for start in (["bllpipe", "train"], ["python", "-m", "bllpipe.launch"]):
        if words[: len(start)] == start:
            return _shortened(words[len(start) :])
    return None


def _here(word: str, folder: Path) -> str:
    """A run of any name is the run that is here, a config the digits', a file of the reader's any file."""
    if re.fullmatch(r"runs/[\w-]+", word) and not (folder / word).exists():
        shutil.copytree(folder / "runs" / "A", folder / word)
    return {"FILE": "configs/digits.yaml", "RUN": "runs/A", "DIR": "runs/A"}.get(word, word)


def _shortened(words: Sequence[str]) -> list[str] | None:
    """A run of a few steps in this process."""
    options = read("bllpipe.launch", words)
    config = configuration(options)
    if options is None or config is None or options.resume != "never" or options.max_restarts:
        return None
    if config.data.name not in ("digits", "synthetic") or config.engine in SYNCHRONOUS or config.device == "cuda":
        return None
    if (
        any(map(PLACEHOLDER.fullmatch, _values(words)))
        or config.metrics.port is not None
        or config.log.to  # their packages are extras, and their servers others'
        or any(map(OWN.search, words))
    ):
        return None
    engine = ["engine=sequential", "sharding=none"] if config.engine == "ranks" else []
    if "--ranks" in words:  # which one process does not take
        at = words.index("--ranks")
        words = [*words[:at], *words[at + 2 :]]
    return ["train", *words, *(part for setting in (*SHORT, *engine) for part in ("--set", setting))]


def _values(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        yield word.rpartition("=")[2]
