"""The last rank commits whatever the order; old ones go, whole ones stay, whatever happens in between."""

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist

from bllpipe.checkpoint import CheckpointWriter, find_checkpoint, open_checkpoint
from bllpipe.checkpoint.writer import Point
from bllpipe.errors import CheckpointError, WireError
from bllpipe.utils.files import MAX_BYTES
from tests.support.checkpoint_samples import assert_holds, flip_bit, sample, tree, write_checkpoint
from tests.support.waiting import PATIENCE


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_last_rank_commits_whatever_the_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    store = dist.HashStore()
    for count, rank in enumerate(order):
        assert not store.check(["checkpoint/5/committed"]) and store.add("checkpoint/5/written", 0) == count
        assert find_checkpoint(tmp_path, print) is None
        CheckpointWriter(tmp_path, store, 3, "0", keep=1).write(5, rank, sample(rank, 5), {"rank": rank})
    assert store.check(["checkpoint/5/committed"])
    assert open_checkpoint(tmp_path).metadata() == [{"rank": rank} for rank in range(3)]


def test_ranks_that_write_at_once_commit_every_step_once(tmp_path: Path) -> None:
    num_ranks, steps, store, commits = 6, range(1, 9), dist.HashStore(), list[int]()

    def run(rank: int) -> None:
        writer = CheckpointWriter(tmp_path, store, num_ranks, "0", keep=3)
        writer.on("manifest", lambda step, path: commits.append(step))
        for step in steps:
            start.wait(timeout=PATIENCE)
            writer.write(step, rank, sample(rank, step), {"rank": rank})
        writer.wait_committed(steps[-1])
        assert open_checkpoint(tmp_path / "step-00000008").step == 8

    start = threading.Barrier(num_ranks)
    with ThreadPoolExecutor(num_ranks) as pool:
        list(pool.map(run, range(num_ranks)))
    assert commits == list(steps)
    assert list(tree(tmp_path)) == ["step-00000006", "step-00000007", "step-00000008"]
    assert_holds(tmp_path / "step-00000007", 7, num_ranks)


def test_the_points_of_a_checkpoint_come_in_order_and_find_its_files(tmp_path: Path) -> None:
    writer, found = CheckpointWriter(tmp_path, dist.HashStore(), 1, "0", keep=1), list[tuple[str, int, list[str]]]()
    for point in get_args(Point):

        def note(step: int, path: Path, point: Point = point) -> None:
            folder = path if path.is_dir() else path.parent
            found.append((point, step, list(tree(folder)) if folder.exists() else []))

        writer.on(point, note)
    writer.write(7, 0, sample(0, 7), {"rank": 0})
    tensors, facts, manifest = "rank-0.safetensors", "rank-0.json", "manifest.json"
    assert found == [
        ("save", 7, []),
        ("tensors", 7, [f".{tensors}"]),
        ("facts", 7, [tensors]),
        ("manifest", 7, [facts, tensors]),
        ("rename", 7, [manifest, facts, tensors]),
        ("committed", 7, [manifest, facts, tensors]),
    ]


def test_a_step_is_written_once_an_attempt(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, dist.HashStore(), 1, "0", keep=1)
    writer.write(1, 0, {}, {})
    with pytest.raises(AssertionError, match="step 1 was written twice"):
        writer.write(1, 0, {}, {})


@pytest.mark.parametrize("attempt", ["", "a/b", "a b", "a\n"])
def test_an_attempt_must_be_fit_for_a_name(tmp_path: Path, attempt: str) -> None:
    with pytest.raises(AssertionError, match="cannot be part of a name"):
        CheckpointWriter(tmp_path, dist.HashStore(), 1, attempt, keep=1)


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the checkpoint just written is always kept"):
        CheckpointWriter(tmp_path, dist.HashStore(), 1, "0", keep=0)


def test_the_newest_are_kept_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    strangers = ["notes", "step-3", "step-00000001.bak", "latest"]
    for name in strangers:
        (tmp_path / name).mkdir()
    for step in (1, 2, 10, 3, 4):
        write_checkpoint(tmp_path, step, keep=2)
    assert list(tree(tmp_path)) == sorted(["step-00000003", "step-00000004", "step-00000010", *strangers])


def test_numbers_and_not_names_decide_which_is_newest(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 100_000_001):
        write_checkpoint(tmp_path, step, keep=2)
    assert list(tree(tmp_path)) == ["step-100000000", "step-100000001"]


def test_a_damaged_later_step_does_not_push_out_the_one_just_written(tmp_path: Path) -> None:
    """Resumed at 1 because 3 was damaged, a run writes 2: with keep=1 the newest by number would be the damaged one."""
    write_checkpoint(tmp_path, 1)
    flip_bit(write_checkpoint(tmp_path, 3) / "rank-0.json", 0)
    write_checkpoint(tmp_path, 2, attempt="second", keep=1)
    assert list(tree(tmp_path)) == ["step-00000002", "step-00000003"]
    write_checkpoint(tmp_path, 3, attempt="second", keep=1)
    assert list(tree(tmp_path)) == ["step-00000003"]
    assert_holds(tmp_path / "step-00000003", 3)


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    write_checkpoint(tmp_path, 2, {0: {"old": torch.ones(1)}})
    write_checkpoint(tmp_path, 2, attempt="second")
    assert list(tree(tmp_path)) == ["step-00000001", "step-00000002"]
    assert_holds(tmp_path / "step-00000002", 2)


def test_leftovers_of_a_killed_attempt_are_ignored_then_removed(tmp_path: Path) -> None:
    killed = CheckpointWriter(tmp_path, dist.HashStore(), 2, "killed", keep=2)
    for step in (2, 9):
        killed.write(step, 0, {"old": torch.ones(1)}, {})
    write_checkpoint(tmp_path, 1, attempt="second")
    assert open_checkpoint(tmp_path).step == 1
    write_checkpoint(tmp_path, 2, attempt="second")
    assert_holds(tmp_path / "step-00000002", 2)
    assert list(tree(tmp_path)) == ["step-00000001", "step-00000002", "step-00000009.partial-killed"]


def test_even_leftovers_under_the_same_attempt_do_not_get_in(tmp_path: Path) -> None:
    partial = tmp_path / "step-00000002.partial-first"
    partial.mkdir()
    for name in ("rank-0.safetensors", "rank-7.json", ".tmpAbC", "manifest.json"):
        (partial / name).write_bytes(b"old")
    (partial / "directory").mkdir()
    path = write_checkpoint(tmp_path, 2)
    assert_holds(path, 2)
    assert list(tree(path)) == [
        "manifest.json",
        *sorted(f"rank-{r}.{k}" for r in (0, 1) for k in ("json", "safetensors")),
    ]


class Killed(BaseException):
    """The process ends here: no handler may tidy up."""


@contextmanager
def killed_at(call: int) -> Iterator[list[str]]:
    """Lets ``call`` changes of the file system pass and dies at the next; yields those that were tried."""
    tried: list[str] = []

    def dying(name: str, intact: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            tried.append(name)
            if len(tried) > call:
                raise Killed(name)
            return intact(*arguments, **options)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, dying(name, getattr(os, name)))
        yield tried


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_at_any_point_leaves_a_whole_checkpoint(tmp_path: Path, step: int) -> None:
    """Step 1 is there already: it is written again, or 2 after it."""
    reached: set[str] = set()
    for call in itertools.count():
        directory = tmp_path / str(call)
        write_checkpoint(directory, 1)
        finished = try_to_write(directory, step, call, reached)
        found = find_checkpoint(directory, pytest.fail)
        assert found is not None and found.step in {1, step}
        assert_holds(found.path, found.step)
        write_checkpoint(directory, step, attempt="third", keep=1)
        assert list(tree(directory)) == [f"step-{step:08}"]
        assert_holds(directory / f"step-{step:08}", step)
        if finished:
            break
    assert call > 15 and {"mkdir", "fsync", "rename", "replace", "unlink", "rmdir"} == reached


def try_to_write(directory: Path, step: int, call: int, reached: set[str]) -> bool:
    with killed_at(call) as tried:
        try:
            write_checkpoint(directory, step, attempt="second", keep=1)
            return True
        except Killed:
            return False
        finally:
            reached.update(tried)


def test_facts_too_long_to_be_read_back_are_not_written(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, dist.HashStore(), 1, "0", keep=1)
    with pytest.raises(CheckpointError, match=f"rank-0.json would have .* bytes; at most {MAX_BYTES:,} can be read"):
        writer.write(1, 0, {}, {"long": "x" * MAX_BYTES})


def test_waiting_for_a_rank_that_never_writes_ends_with_the_store(tmp_path: Path) -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(milliseconds=50))
    writer = CheckpointWriter(tmp_path, store, 2, "0", keep=1)
    writer.write(1, 0, {}, {})
    with pytest.raises(WireError, match="the checkpoint of step 1 was not completed by all 2 ranks"):
        writer.wait_committed(1)
