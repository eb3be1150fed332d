"""What a job decides after its run: bllpipe/slurm/job.sh with stand-ins for SLURM's commands, which write down how they
were called. tests/slurm has the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "3"}
LAST = {**ARRAY, "SLURM_ARRAY_TASK_ID": "3"}
COMPLETED = {"status": "completed", "step": 300}
TERMINATED = {"status": "preempted", "step": 40, "reason": "SIGTERM at rank 2"}
STOPPED = {"status": "preempted", "step": 40, "reason": "stop_at=40"}
FAILED = {"status": "failed", "rank": 2, "step": 40, "reason": 'NaN, "loss"'}
RUNNING = {"status": "running", "step": 0}
STAND_INS = {
    "srun": 'echo "srun with $TORCH_DISABLE_SHARE_RDZV_TCP_STORE" >>"$WORK/started"; '
    'cp "$WORK/after.json" "$WORK/run/status.json" 2>/dev/null; exit "$SRUN_CODE"',
    "squeue": '[[ "$*" == *COMPLETING* ]] || echo "$JOB_STATE"',
    "scancel": 'echo "scancel $*" >>"$WORK/log"; exit 1',
    "scontrol": 'if [[ $1 == show ]]; then echo "NodeName=n1 Arch=x NodeAddr=10.0.0.1 NodeHostName=n1 Version=22"; '
    'else echo "scontrol $*" >>"$WORK/log"; fi',
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "log").touch()
    return tmp_path


def run_job(work: Path, after: dict[str, Any] | None, **variables: str) -> subprocess.CompletedProcess[str]:
    """A job whose run leaves ``after`` in status.json; SRUN_CODE and JOB_STATE are what srun and squeue say."""
    if after is not None:
        (work / "after.json").write_text(json.dumps({**after, "time": 2.0}, indent=1) + "\n")
    environment = {
        "PATH": f"{work}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "VIRTUAL_ENV": "taken",
        "WORK": str(work),
        "SRUN_CODE": "0",
        "JOB_STATE": "RUNNING",
        "SLURM_JOB_ID": "9",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "n1",
        **variables,
    }
    command = ["bash", "-c", 'source bllpipe/slurm/job.sh; run_bllpipe "$@"', "job", "--run-dir", str(work / "run")]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("after", "srun_code", "variables", "code", "calls", "says"),
    [
        (COMPLETED, 0, {}, 0, "", ""),
        (COMPLETED, 143, {}, 0, "", ""),  # a signal behind the last step
        (COMPLETED, 0, ARRAY, 0, "scancel --quiet --state=PENDING 7\n", ""),
        (TERMINATED, 143, {}, 0, "scontrol requeue 9\n", "stopped at step 40 of .*; the job is requeued"),
        (TERMINATED, 0, {}, 0, "scontrol requeue 9\n", "requeued"),
        (TERMINATED, 143, {"JOB_STATE": "COMPLETING"}, 0, "", "stopped at step 40"),  # by scancel or scontrol requeue
        (TERMINATED, 143, ARRAY, 0, "", "the next element goes on"),
        (TERMINATED, 143, LAST, 1, "", "this was the last element; submit it again with --run-dir"),
        (STOPPED, 0, {}, 0, "", "stopped at step 40"),
        (FAILED, 1, {}, 1, "", ""),
        (FAILED, 1, ARRAY, 1, "", ""),
        (RUNNING, 137, {}, 137, "", ""),
        (RUNNING, 0, {}, 1, "", ""),
        (None, 1, ARRAY, 1, "", "ended before it began, with exit code 1"),
    ],
)
def test_what_follows_from_the_status(
    work: Path,
    after: dict[str, Any] | None,
    srun_code: int,
    variables: dict[str, str],
    code: int,
    calls: str,
    says: str,
) -> None:
    done = run_job(work, after, SRUN_CODE=str(srun_code), **variables)
    assert (done.returncode, (work / "log").read_text()) == (code, calls), done.stderr
    assert all(part in done.stderr for part in says.split(" of .*; ")), done.stderr


def test_a_status_of_an_earlier_start_is_not_taken_for_this_one(work: Path) -> None:
    (work / "run/status.json").write_text(json.dumps({**TERMINATED, "time": 1.0}, indent=1) + "\n")
    done = run_job(work, None, SRUN_CODE="1")
    assert (done.returncode, (work / "log").read_text()) == (1, "")


@pytest.mark.parametrize("variables", [{}, ARRAY])
def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(work: Path, variables: dict[str, str]) -> None:
    (work / "run/status.json").write_text(json.dumps({**TERMINATED, "time": 1.0}, indent=1) + "\n")
    done = run_job(work, TERMINATED, SRUN_CODE="143", **variables)
    assert (done.returncode, (work / "log").read_text()) == (1, "")
    assert "no step was done since then; give the job more --time" in done.stderr


def test_a_config_that_cannot_work_ends_the_whole_array(work: Path) -> None:
    done = run_job(work, COMPLETED, SLURM_GPUS_ON_NODE="2", **ARRAY)
    assert (done.returncode, (work / "log").read_text()) == (2, "scancel --quiet --state=PENDING 7\n")
    assert "4 blocks need 4 GPUs, but 1 node with 2 GPUs each have 2" in done.stderr
    assert not (work / "run/status.json").exists()


def test_a_torchrun_that_was_lost_may_join_again(work: Path) -> None:
    """torch reads the variable in every torchrun that srun starts."""
    assert run_job(work, COMPLETED).returncode == 0
    assert (work / "started").read_text() == "srun with 1\n"
