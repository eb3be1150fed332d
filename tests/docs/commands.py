"""Whether a command of a page can work: its own parser reads it, its keys load, its files and targets are there."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import importlib.util
import io
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from torch.distributed.run import get_args_parser

from bllpipe.config import Config, load_config
from bllpipe.distributed.torchrun import fault_text
from bllpipe.engines import check_ranks
from bllpipe.tools.fault_injection import parse_faults
from tests.docs.pages import REPOSITORY
from tests.docs.shell import FAULTS, Call, calls
from tests.support.waiting import PATIENCE

PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+|[A-Z]")
NUMBERS = re.compile(r"\b(N|MS|SECONDS|STEPS)\b")
OUR_MODULES = ("bllpipe", "benchmarks", "tests")
OURS = re.compile(r"(bllpipe|benchmarks|configs|docker|docs|launch|tests)/[\w./-]+")
WRITTEN = ("--out", "--write", "--json")  # options whose file need not be there


class _Read(Exception):
    """The words of a command line were read as these options."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__("read")
        self.options = options


def read(module: str, words: Sequence[str]) -> argparse.Namespace | None:
    """What the parser of ``python -m module`` makes of ``words``; None if they ask for its help.

    The module is run up to where it has read its command line. AssertionError if it refuses.
    """

    def stop(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> None:
        options, rest = parser.parse_known_args(given)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        raise _Read(options)

    said, known = io.StringIO(), sys.modules.pop(module, None)  # which runpy would warn of
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [module, *words]),
        contextlib.redirect_stderr(said),
    ):
        try:
            runpy.run_module(module, run_name="__main__")
        except _Read as found:
            return found.options
        except SystemExit as end:
            assert end.code == 0, f"{module} {' '.join(words)}: {said.getvalue().strip()}"
            return None
        finally:
            sys.modules |= {module: known} if known else {}
    raise AssertionError(f"{module} reads no command line")


def check_mention(call: Call) -> None:
    """AssertionError when a command of ours that a sentence names, such as ``bllpipe plan --write``, or an option of
    it does not exist; what it needs besides is left out there."""
    program, *words = call.words
    if program == "make":
        _dry_run(words)
        return
    given = words[2:] if program == "python" else words
    module = words[1] if program == "python" else "bllpipe.cli"
    names = [word for word in given if re.fullmatch(r"[a-z]\w*", word)]
    text = get_args_parser().format_help() if program == "torchrun" else _help(module, names)
    unknown = [word for word in given if word.startswith("--") and word.partition("=")[0] not in text]
    assert not unknown, f"{call}: there is no {', '.join(unknown)}"


def _help(module: str, names: Sequence[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert read(module, [*names, "--help"]) is None
    return text.getvalue()


def check(call: Call, place: Path) -> None:
    """AssertionError, or an error of bllpipe, when the command cannot work as it stands."""
    if call.fault:
        parse_faults(fault_text(dict(zip(FAULTS, (call.fault, call.allowed), strict=True))))
    program, *words = (NUMBERS.sub("1", word) for word in _said(call.words))
    missing = [path for path in _own_files(words) if not (REPOSITORY / path).exists()]
    assert not missing, f"{call}: there is no {', '.join(missing)}"
    CHECKS.get(Path(program).name, _nothing)(words, place)


def _said(words: Sequence[str]) -> Iterator[str]:
    """Without the dots that stand for more of them; behind an option they stand for its value."""
    for before, word in zip(("", *words), words, strict=False):
        if word not in ("...", "…") or (before.startswith("--") and "=" not in before):
            yield word


def configuration(options: argparse.Namespace | None) -> Config | None:
    """The config that a command names; None for a command without any."""
    if options is None or not hasattr(options, "overrides"):
        return None
    file = getattr(options, "config", None)
    overrides = [text for text in options.overrides if not text.startswith("key")]  # key.path=value stands for any
    return load_config(None if file is None or PLACEHOLDER.fullmatch(file) else _found(file), overrides)


def _found(file: str) -> str:
    """A config of ours, or one of the reader's: any with this name."""
    return str(REPOSITORY / file) if (REPOSITORY / file).exists() else str(REPOSITORY / "configs" / "digits.yaml")


def _own_files(words: Sequence[str]) -> Iterator[str]:
    for before, word in zip(("", *words), words, strict=False):
        if OURS.fullmatch(word) and before not in WRITTEN:
            yield word


def _nothing(words: Sequence[str], place: Path) -> None:
    """Of programs of others it is not known what they take."""


def _bllpipe(words: Sequence[str], place: Path) -> None:
    configuration(read("bllpipe.cli", words))


def _python(words: Sequence[str], place: Path) -> None:
    if words[:1] == ["-m"]:
        module, *rest = words[1:]
        found = importlib.util.find_spec(module)
        assert found is not None and found.origin is not None, f"there is no module {module}"
        if module.split(".")[0] in OUR_MODULES and "parse_args(" in Path(found.origin).read_text():
            configuration(read(module, rest))


def _torchrun(words: Sequence[str], place: Path) -> None:
    started = [*words, "-m", "bllpipe.launch"] if "-m" not in words else words
    try:
        options = get_args_parser().parse_args(started)
    except SystemExit:
        raise AssertionError(f"torchrun does not understand {' '.join(started)}") from None
    assert options.module and options.training_script == "bllpipe.launch", started
    config = configuration(read("bllpipe.launch", options.training_script_args))
    if config is not None and options.nproc_per_node != "1" and options.nnodes in ("1", "1:1"):
        check_ranks(config, int(options.nproc_per_node))


def _make(words: Sequence[str], place: Path) -> None:
    """What make would type, checked as if it stood in the page."""
    for call in calls(_dry_run(words), place):
        check(call, place)


def _dry_run(words: Sequence[str]) -> str:
    make = shutil.which("make")
    assert make is not None, "there is no make here"
    command = [make, "--dry-run", "--no-print-directory", "--old-file=.venv/.ready", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"make {' '.join(words)}: {done.stderr.strip()}"
    return done.stdout


def _sbatch(words: Sequence[str], place: Path) -> None:
    """What stands behind the script is for bllpipe.launch."""
    scripts = [index for index, word in enumerate(words) if word.endswith(".sh")]
    if scripts:
        configuration(read("bllpipe.launch", words[scripts[0] + 1 :]))


def _local(words: Sequence[str], place: Path) -> None:
    configuration(read("bllpipe.launch", words))


def _pip(words: Sequence[str], place: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    for word in words:
        if extras := re.fullmatch(r"(?:\.|bllpipe)\[([\w,-]+)\]", word):
            unknown = set(extras[1].split(",")) - set(setup["options.extras_require"])
            assert not unknown, f"setup.cfg has no extra {unknown}"


CHECKS: dict[str, Callable[[Sequence[str], Path], None]] = {
    **{"bllpipe": _bllpipe, "python": _python, "python3": _python, "torchrun": _torchrun, "pip": _pip},
    **{"make": _make, "sbatch": _sbatch, "local.sh": _local},
}
