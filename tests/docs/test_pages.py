"""What the pages say is there: files, headings, modules, keys, and commands that can work."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bllpipe.config import parse_config
from bllpipe.config.loader import known_keys
from bllpipe.config.schema import Config
from bllpipe.config.validation import field_types
from tests.docs.commands import check, check_mention
from tests.docs.pages import OURS_AT_TOP, REPOSITORY, Page, all_pages, broken_links
from tests.docs.shell import calls, make_place

PAGES = pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(bllpipe|make|torchrun|sbatch|python -m|pip install|(launch|benchmarks)/\S+\.sh)(?=[ /]|$).*"
)
MENTIONED = ("bllpipe ", "python -m ", "torchrun ", "make ")  # of which a sentence may leave something out
EXAMPLE = re.compile(r"(my|your)\w*/|NAME|FILE|\bDIR\b|<|…|\.\.\.|PATH")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("reader") / "repository")


@PAGES
def test_links_lead_somewhere(page: Page) -> None:
    assert list(broken_links(page)) == []


@PAGES
def test_files_and_modules_that_are_named_exist(page: Page) -> None:
    assert [code for code in page.inline if is_missing(code, page.path.parent)] == []


@PAGES
def test_keys_that_are_named_exist(page: Page) -> None:
    assert [code for code in page.inline if names_no_key(code)] == []


@PAGES
def test_commands_can_work(page: Page, place: Path) -> None:
    for block in page.blocks:
        if block.kind == "commands":
            check_commands(block.text, place, f"{page.name}, line {block.line}")


@PAGES
def test_commands_within_a_sentence_can_work(page: Page, place: Path) -> None:
    for code in filter(is_command, page.inline):
        try:
            check_commands(code, place, f"{page.name}: {code}")
        except AssertionError:
            if not code.startswith(MENTIONED):
                raise
            check_mention(*calls(code, place))


@PAGES
def test_configs_can_be_read(page: Page) -> None:
    for block in page.blocks:
        if block.kind == "yaml" and set(found := yaml.safe_load(block.text)) & set(field_types(Config)):
            parse_config(found)


def check_commands(text: str, place: Path, where: str) -> None:
    """Raises an AssertionError that says where, for the first command that cannot work."""
    try:
        for call in calls(text, place):
            check(call, place)
    except Exception as error:
        raise AssertionError(f"{where}: {error}") from error


def is_command(code: str) -> bool:
    """Whether it is a command with words, and not the name of a program alone."""
    return bool(COMMAND.fullmatch(code)) and " " in code and code != "python -m"


def is_missing(code: str, folder: Path) -> bool:
    """Whether ``code`` names a file or module of ours that does not exist."""
    return any(not _exists(path, folder) for path in _paths(code)) or any(map(_is_no_module, _modules(code)))


def _paths(code: str) -> Iterator[str]:
    """Paths under the folders of the repository, and those that a sentence begins in a part of the package."""
    if re.fullmatch(r"[\w./*{},:-]+", code) and not EXAMPLE.search(code):
        path = code.split("::")[0]
        if OURS_AT_TOP.match(path) or re.fullmatch(r"\w+/[\w/]+\.(py|sh|md|yaml)", path):
            yield path


def _exists(path: str, folder: Path) -> bool:
    roots = (
        REPOSITORY,
        REPOSITORY / "bllpipe",
        folder,
        REPOSITORY / "configs",
        REPOSITORY / "benchmarks" / "questions",
    )
    return any((root / path).exists() or any(root.glob(path)) for root in roots)


def _modules(code: str) -> Iterator[str]:
    if found := re.match(r"((?:bllpipe|benchmarks)(?:\.\w+)+(?::\w+)?)(?=\(|$)", code):
        yield found[1].replace(":", ".")


def _is_no_module(name: str) -> bool:
    """Whether ``name`` is neither a module nor what a module holds."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return True
            found = getattr(found, attribute)
        return False
    return True


def names_no_key(code: str) -> bool:
    """Whether ``code`` looks like ``section.key`` or ``section.key=value`` of a config, and is none."""
    section, *_ = code.split(".")
    if (
        not re.fullmatch(r"(\w+\.)+\w+(=.*)?", code)
        or section not in field_types(Config)
        or code.startswith("model.args.")
    ):
        return False
    key = code.partition("=")[0]
    return (
        key not in known_keys() and not any(known.startswith(f"{key}.") for known in known_keys()) and not _is_file(key)
    )


def _is_file(name: str) -> bool:
    return name.endswith((".json", ".jsonl", ".yaml", ".py", ".sh"))
