"""The processes that decode images live as long as their rank: not longer when it is killed, and not shorter when a
signal goes to its process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.family import descendants, marked
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")
REPOSITORY = Path(__file__).parents[3]
READS = """
import itertools, signal, sys, torch
from bllpipe.config.schema import DataConfig
from bllpipe.data.image_folder import FolderImages
signal.signal(signal.SIGTERM, lambda *_: None)
images = FolderImages(DataConfig(name="imagefolder", path=sys.argv[1], image_size=8, workers=2))
for batch in images.batches(("train", torch.tensor([0, 1])) for _ in itertools.count()):
    print(*batch.shape, flush=True)
    input()
"""


# A signal to the group just after torch's workers have their handlers, and before they have left the group.
SIGNALLED_AT_START = """
import os, signal
from torch.utils.data._utils import signal_handling
handlers = signal_handling._set_worker_signal_handlers
signal_handling._set_worker_signal_handlers = lambda: (handlers(), os.kill(os.getpid(), signal.SIGTERM))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / split / label / "0.png")
    return tmp_path


@pytest.mark.parametrize("before", ["", SIGNALLED_AT_START], ids=["", "signalled at start"])
def test_they_end_with_the_rank_and_not_before(folder: Path, before: str) -> None:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "WORKERS_TEST": str(os.getpid())}
    command = [sys.executable, "-c", before + READS, str(folder)]
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as rank:
        assert rank.stdin is not None
        assert rank.stdout is not None
        assert rank.stdout.readline() == "2 3 8 8\n"
        assert len(list(descendants(rank.pid))) >= 3
        os.killpg(rank.pid, signal.SIGTERM)
        for _ in range(8):  # more than have been read ahead
            rank.stdin.write("\n")
            rank.stdin.flush()
            assert rank.stdout.readline() == "2 3 8 8\n"
        rank.kill()
        try:
            wait_until(lambda: not marked("WORKERS_TEST", str(os.getpid())))
        finally:
            for process in marked("WORKERS_TEST", str(os.getpid())):
                os.kill(process, signal.SIGKILL)
