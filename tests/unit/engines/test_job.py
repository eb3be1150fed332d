"""The parts of a network as engines cut them: blocks, stages, or a whole network; and networks that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

from bllpipe.config import load_config
from bllpipe.data.catalog import PUBLISHED
from bllpipe.engines import Options
from bllpipe.engines.build import build_job_segment
from bllpipe.engines.job import Job, JobStore, agree
from bllpipe.errors import ConfigError

CPU = torch.device("cpu")
FEATURES, MISFIT = (f"model.name=tests.support.networks.engines:{name}" for name in ("features", "misfit"))


def job_of(folder: Path, *settings: str) -> tuple[Job, JobStore]:
    """A job, and the store of its only process."""
    raw: Any = dist.HashStore()
    store = JobStore(raw)
    config = load_config(None, ["model.width=4", *settings])
    return agree(config, Options(run_dir=str(folder)), store, store, PUBLISHED["digits"], attempt=0), store


@pytest.mark.parametrize(
    ("engine", "kind", "number", "units"),
    [
        (["method=bll"], "block", 1, 4),
        (["method=bp", "engine=1f1b"], "stage", 1, 4),
        (["method=bp", "engine=deepspeed"], "stage", 1, 4),
        (["method=bp", "engine=ddp"], "block", 0, 8),
        (["method=bp", "engine=single"], "block", 0, 8),
    ],
)
def test_a_part_of_the_network(
    engine: list[str], kind: Literal["block", "stage"], number: int, units: int, tmp_path: Path
) -> None:
    job, store = job_of(tmp_path, "blocks=2", *engine)
    for earlier in range(number):
        build_job_segment(job, store, earlier, CPU, kind)
    segment = build_job_segment(job, store, number, CPU, kind)
    residual = {name.rsplit(".conv", 1)[0] for name in segment.state_dict() if name.endswith("conv1.weight")}
    assert len([name for name in residual if name.startswith("layer")]) == units
    assert store.shape_of(number) == (10,)


@pytest.mark.parametrize(
    ("settings", "kind", "number"),
    [
        (["method=bll", "blocks=2"], "block", 1),
        (["method=bp", "engine=gpipe", "blocks=2"], "stage", 1),
        (["method=bp", "engine=ddp", "blocks=2"], "block", 0),
        (["method=bp", "engine=single"], "block", 0),
    ],
)
def test_a_network_without_class_scores(
    settings: list[str], kind: Literal["block", "stage"], number: int, tmp_path: Path
) -> None:
    job, store = job_of(tmp_path, FEATURES, *settings)
    for earlier in range(number):
        build_job_segment(job, store, earlier, CPU, kind)
    message = rf"^the last {kind} gives \[7\] for each image; expected 10 class scores: let the network end"
    with pytest.raises(ConfigError, match=message):
        build_job_segment(job, store, number, CPU, kind)


@pytest.mark.parametrize(("method", "kind"), [("bll", "block"), ("bp", "stage")])
def test_parts_that_do_not_fit(method: str, kind: Literal["block", "stage"], tmp_path: Path) -> None:
    job, store = job_of(
        tmp_path, MISFIT, f"method={method}", f"engine={'ranks' if method == 'bll' else 'gpipe'}", "blocks=2"
    )
    build_job_segment(job, store, 0, CPU, kind)
    message = rf"^{kind} 1 \(1 last\) cannot take \[4, 6, 6\] from what is before it: .* cut somewhere else"
    with pytest.raises(ConfigError, match=message):
        build_job_segment(job, store, 1, CPU, kind)
