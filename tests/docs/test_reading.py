"""What is wrong in a page is found: the tests of the pages can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from bllpipe.errors import ConfigError
from tests.docs.commands import check, check_mention
from tests.docs.pages import Page, broken_links
from tests.docs.running import python_of, run_python
from tests.docs.shell import calls, make_place
from tests.docs.test_pages import is_missing, names_no_key

PAGE = """# One page

A [link](#one-page), [another](other.md), [a third](#two) and `[none](here.md)`.

```sh
A="--set seed=1 --set epochs=2"  # a remark
python -m bllpipe.launch $A --set blocks='[4, 8]' \\
    --run-dir runs/a
```

    make train    # indented

says

    bllpipe: this was printed

```
test accuracy 99 %
```
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("reader") / "repository")


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "page.md").write_text(PAGE)
    return Page(tmp_path / "page.md")


def test_blocks_and_what_they_are(page: Page) -> None:
    assert [(block.kind, block.line) for block in page.blocks] == [
        ("commands", 6),
        ("commands", 11),
        ("output", 15),
        ("output", 18),
    ]


def test_links_that_lead_nowhere(page: Page) -> None:
    assert list(broken_links(page)) == ["other.md", "#two"]


def test_a_shell_reads_the_commands(page: Page, place: Path) -> None:
    (call,) = calls(page.blocks[0].text, place)
    sets = ("--set", "seed=1", "--set", "epochs=2", "--set", "blocks=[4, 8]")
    assert call.words == ("python", "-m", "bllpipe.launch", *sets, "--run-dir", "runs/a")
    (call,) = calls("BLLPIPE_FAULT=x launch/local.sh", place)
    assert (call.fault, call.allowed, call.words) == ("x", "", ("launch/local.sh",))


@pytest.mark.parametrize(
    ("commands", "error"),
    [
        ("bllpipe chekc", "invalid choice: 'chekc'"),
        ("bllpipe check --confg x", "unrecognized arguments: --confg x"),
        ("python -m bllpipe.launch --set seeed=1", "unknown key 'seeed'"),
        ("python -m bllpipe.lunch", "there is no module bllpipe.lunch"),
        ("torchrun --nproc_per_node=4 -m bllpipe.launch", "need 5 ranks, but torchrun started 4"),
        ("torchrun --nproc-per-rank=4 -m bllpipe.launch", "torchrun does not understand"),
        ("bllpipe check --config configs/digit.yaml", "there is no configs/digit.yaml"),
        ("make trian", "No rule to make target 'trian'"),
        ("make train ARGS='--epochs 3'", "unrecognized arguments: --epochs 3"),
        ("sbatch launch/slurm_nodes.sh --set block=8", "unknown key 'block'"),
        ("launch/slurm_three.sh", "No such file or directory"),
        ("bllpipes", "bllpipes: command not found"),
        ("pip install '.[deepsped]'", "setup.cfg has no extra {'deepsped'}"),
        ("BLLPIPE_FAULT=rank=1 BLLPIPE_ALLOW_FAULTS=1 bllpipe train", "the fault 'rank=1' is not understood"),
        ("BLLPIPE_FAULT=x bllpipe train", "faults are not allowed"),
    ],
)
def test_a_command_that_cannot_work_is_found(commands: str, error: str, place: Path) -> None:
    with pytest.raises((AssertionError, ConfigError), match=error.replace("[", r"\[")):
        for call in calls(commands, place):
            check(call, place)


@pytest.mark.parametrize("mention", ["bllpipe plan --right", "torchrun --max-restart-s", "bllpipe plans"])
def test_what_a_sentence_names_must_exist_too(mention: str, place: Path) -> None:
    with pytest.raises(AssertionError, match="there is no|invalid choice"):
        check_mention(*calls(mention, place))


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("tests/ranks/test_full_disk.py", True),
        ("tests/ranks/test_full_disks.py", False),
        ("bllpipe.load_networks", True),
        ("bllpipe.load_network(FILE)", False),
        ("benchmarks.emulated:stages", False),
        ("launch/slurm_*.sh", False),
        ("learn/losses.py", False),
        ("my/own.py", False),
    ],
)
def test_names_of_files_and_modules(code: str, missing: bool, tmp_path: Path) -> None:
    assert is_missing(code, tmp_path) is missing


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("optimizer.rate", True),
        ("optimizer.lr=0.1", False),
        ("data.augment.flip", False),
        ("data.augment", False),
        ("metrics.jsonl", False),
        ("model.args.depth", False),
        ("status.json", False),
    ],
)
def test_names_of_keys(code: str, wrong: bool) -> None:
    assert names_no_key(code) is wrong


def test_code_of_a_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```python\nx = 1\n```\n\n```python\nassert x == 2, x\n```\n")
    done = run_python(python_of(Page(tmp_path / "page.md")), tmp_path)
    assert done.returncode == 1
    assert 'page.md", line 6' in done.stderr and "AssertionError: 1" in done.stderr


def test_a_block_that_begins_with_the_name_of_a_file_is_that_file_too(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```python\n# mine.py\nx = 1\n```\n\n```python\nimport mine\nmine.x\n```\n")
    code = python_of(Page(tmp_path / "page.md"))
    assert code.files == {"mine.py": "# mine.py\nx = 1\n"}
    assert run_python(code, tmp_path).returncode == 0
