"""docs/configuration.md says what the code does: every key, every variable of the environment, every exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bllpipe import errors
from bllpipe.config import Config
from bllpipe.config.loader import known_keys
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.launch import EXIT_CODES
from scripts.config_reference import BEGIN, END, example, main, renewed, sections, tables

REPOSITORY = Path(__file__).parents[3]
PAGE = REPOSITORY / "docs" / "configuration.md"
DIGITS = REPOSITORY / "configs" / "digits.yaml"
STALE = "is not what the code says: type make docs, and commit what it writes"


def test_the_page_has_the_keys_of_today() -> None:
    assert renewed(PAGE.read_text(), str(PAGE)) == PAGE.read_text(), f"{PAGE} {STALE}"


def test_the_example_has_the_keys_of_today() -> None:
    assert example() == DIGITS.read_text(), f"{DIGITS} {STALE}"


def test_every_key_has_a_row_with_its_default() -> None:
    keys = [key for section in sections() for key in section.keys]
    assert sorted(key.name for key in keys) == sorted(known_keys())
    assert all(key.doc and key.needed for key in keys)
    assert "| `backend.timeout_seconds` | a finite number, at least 0.1 | `600.0` |" in tables()
    assert f"| `seed` | a whole number, at least 0 | `{Config().seed}` |" in tables()


def test_only_what_stands_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main([str(page)]) == 0
    assert page.read_text() == f"before\n{BEGIN}\n\n{tables()}\n{END}\nafter\n"


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ConfigError, match="page.md has no place for the tables; expected the lines"):
        renewed("nothing", "page.md")


def test_without_a_page_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == tables() + "\n"


def variables_read() -> set[str]:
    """Names of the environment that the package and its jobs read or set."""
    found: set[str] = set()
    for path in (REPOSITORY / "bllpipe").rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r"\bBLLPIPE_[A-Z_]+", text))
        if "os.environ" in text:
            found |= set(re.findall(r'"([A-Z][A-Z0-9]*_[A-Z0-9_]+|RANK)"', text))
    scripts = [*(REPOSITORY / "launch").glob("*.sh"), REPOSITORY / "bllpipe" / "slurm" / "job.sh"]
    scripts.append(REPOSITORY / "docker" / "compose.yaml")
    for path in scripts:
        found |= set(re.findall(r"\$\{?([A-Z][A-Z_]+)", path.read_text()))
    return {name for name in found if not name.startswith("SLURM")}


def test_every_variable_is_explained() -> None:
    section = PAGE.read_text().partition("## Environment variables")[2].partition("\n## ")[0]
    explained = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", section))
    missing = variables_read() - explained
    assert not missing, f"docs/configuration.md, Environment variables, lacks {sorted(missing)}"
    assert {"RANK", "BLLPIPE_FAULT", "ADDRESS_SUFFIX", "CUBLAS_WORKSPACE_CONFIG"} <= variables_read()


def test_every_exit_code_is_explained() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", PAGE.read_text().partition("## Exit codes")[2], re.MULTILINE)
    explained = {int(code) for row in rows for code in row.split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BllpipeError)]
    told = {int(code) for code in re.findall(r"^ +([\d, ]+)  ", EXIT_CODES, re.MULTILINE) for code in code.split(",")}
    assert explained == {0, *(kind.exit_code for kind in kinds), 129, 130, 143} == told
    started_again = re.findall(r"^\| (\d+) \|.*\| yes \|$", PAGE.read_text(), re.MULTILINE)
    assert {int(code) for code in started_again} == {kind.exit_code for kind in kinds} - errors.NOT_RETRYABLE
