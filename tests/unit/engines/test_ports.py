"""Images that are drawn ahead: the same ones, in the same order, and the same end."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from bllpipe.data.loader import Ahead
from bllpipe.engines.ports import layout_of
from bllpipe.errors import DataError
from bllpipe.messages import Alpha, Round
from tests.support.waiting import PATIENCE
from tests.unit.engines.test_job import job_of


class Images:
    """``number`` of them, then an error or the end."""

    def __init__(self, number: int, error: Exception | None = None) -> None:
        self.number, self.error = number, error
        self.drawn, self.second = 0, threading.Event()

    def recv(self) -> Alpha:
        if self.drawn == self.number:
            raise self.error or StopIteration
        self.drawn += 1
        if self.drawn == 2:
            self.second.set()
        return Alpha(Round("train", self.drawn), torch.full((1,), float(self.drawn)))


def test_all_come_in_order_and_some_before_they_are_asked_for() -> None:
    images = Images(5)
    ahead = Ahead(images, cpu_threads=1)
    assert images.second.wait(timeout=PATIENCE), "the second is drawn though nobody has taken the first"
    assert [int(ahead.recv().alpha_BCHW) for _ in range(5)] == [1, 2, 3, 4, 5]


def test_what_cannot_be_drawn_ends_the_run_with_its_own_error() -> None:
    ahead = Ahead(Images(1, DataError("train/cat/3.png is no image")), cpu_threads=1)
    ahead.recv()
    with pytest.raises(DataError, match=r"train/cat/3\.png is no image"):
        ahead.recv()


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_only_a_block_that_computes_in_bf16_reads_it(tmp_path: Path, wire: str, compute: str) -> None:
    job = job_of(tmp_path, "blocks=2", f"precision.wire={wire}", f"precision.compute={compute}")
    for number in range(2):
        job.store.set(f"shape/{number}", json.dumps([4, 8, 8]))
    found = {edge.kind: layout_of(job, edge).received for edge in job.topology.edges()}
    both = wire == compute == "bf16"
    assert found == {
        "alpha": torch.bfloat16 if both else torch.float32,
        "target": torch.float32,
        "stats": torch.float32,
    }
