"""Weights that version 0.1.0 computed are computed to the same bits today, also from a checkpoint that it wrote: with
``objective.head_scale=false``, as the features of linear heads are scaled by default since.

Floating point differs between processors, so these runs use the oldest instructions that torch, oneDNN and MKL have: on
those x86-64 processors agree. The digests hold for one minor version of torch.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
import torch

from tests.support import jobs

TORCH = "2.14."
OLDEST = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
}
SMALL = ("model.width=2", "epochs=2")
UNSCALED = "objective.head_scale=false"  # version 0.1.0 read the features of linear heads as they are
RUN = Path(__file__).parents[1] / "fixtures" / "run-of-0.1.0"  # after 20 of 44 steps, with a lag of 2
RESUMED = "67d584d8de57a1b2e0ea01b74da5a21f63d0e73ef7473e82f4ac969d08d05366"
DEFAULT_AFTER_44 = "6eeb43937185aee2d69cdd6cf761a51a1db6cf5fbf9d6f3ad82081b438a9a7b8"
SCALED_AFTER_44 = "b4917b96ac2fe3f4212f39d6cc25164d175800db70718b988f13dca03ea0e925"  # with the default of today
DIGESTS = {
    "dgl": ((UNSCALED, "engine=sequential"), "93b3da57465675435119db311e137f82f02a182e83c2c82cd625bed4e8187424"),
    "predsim": ((UNSCALED, "engine=sequential"), "84ab1e797f5fa2fbb710432e2fa0e6e59a42b690ae764ffff6fc398f8994f8ef"),
    "bp": (("engine=single",), "6d6ddc09c7515370d102ca3b16de57a89b10700bdfcf70caf3e93c9eae991973"),
    "fa": (("engine=single",), "5e77d00a427844ade5b70b29d63fb2519a6f4151e5fe017f873e7952e89bead1"),
}

pytestmark = [
    pytest.mark.skipif(not torch.__version__.startswith(TORCH), reason=f"the digests are those of torch {TORCH}x"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the digests are those of x86-64 processors"),
]


def digest(run_dir: Path, *settings: str, options: tuple[str, ...] = ()) -> str:
    """The state_sha256 of a run in a process with the oldest instructions."""
    jobs.succeed(jobs.forked(jobs.words(run_dir, *settings, options=options), **OLDEST))
    return str(jobs.summary(run_dir)["state_sha256"])


@pytest.mark.parametrize("engine", ["sequential", pytest.param("ranks", marks=pytest.mark.ranks)])
def test_a_checkpoint_of_0_1_0_is_resumed_to_the_same_bits(tmp_path: Path, engine: str) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(RUN, run_dir)
    settings = (*SMALL, "feedback.lag=2", UNSCALED, f"engine={engine}")
    assert digest(run_dir, *settings, options=("--resume", "auto")) == RESUMED


def test_a_run_of_bll_has_the_bits_of_0_1_0(tmp_path: Path) -> None:
    assert digest(tmp_path / "run", *SMALL, "feedback.lag=2", UNSCALED, "engine=sequential") == RESUMED


@pytest.mark.parametrize("method", DIGESTS)
def test_other_methods_have_the_bits_of_0_1_0(tmp_path: Path, method: str) -> None:
    settings, expected = DIGESTS[method]
    assert digest(tmp_path / "run", *SMALL, f"method={method}", *settings) == expected


@pytest.mark.parametrize(
    ("settings", "expected"), [((UNSCALED,), DEFAULT_AFTER_44), ((), SCALED_AFTER_44)], ids=["0.1.0", "scaled"]
)
def test_the_default_run_begins_with_known_bits(tmp_path: Path, settings: tuple[str, ...], expected: str) -> None:
    """All of it takes a minute with these instructions; its first two epochs are enough."""
    assert digest(tmp_path / "run", "engine=sequential", "stop_at=44", *settings) == expected
