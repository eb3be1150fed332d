"""What the metrics of a rank have to know of its job."""

from __future__ import annotations

import platform

import torch

from bllpipe.engines.job import Job
from bllpipe.metrics.source import Source, file_time
from bllpipe.run.rank import RankPart
from bllpipe.version import __version__


def monitored(job: Job, part: RankPart) -> RankPart:
    """The part, which tells its figures from now on if the config asks for it."""
    settings, layout = job.config.metrics, job.topology
    if settings.port is None and settings.textfile is None:
        return part
    from bllpipe.metrics.exporter import Exporter  # prometheus-client, which few runs need

    roles = [layout.role(rank) for rank in range(layout.world_size)]
    exporter = Exporter(settings, source_of(job, part), roles, job.store, job.directory)
    exporter.start()
    part.on_end, part.on_failure = exporter.close, exporter.stop
    return part


def source_of(job: Job, part: RankPart) -> Source:
    """The rank, and what is known of its run."""
    config = job.config
    return Source(
        part=part,
        run_name=job.directory.path.name,
        attempt=job.attempt,
        restarts=int(job.attempt.partition("-")[0]),
        start=job.start,
        last_step=job.plan.last_step,
        save_every=job.plan.save_every,
        settings={
            "method": config.method,
            "engine": config.engine,
            "model": config.model.name,
            "data": config.data.name,
        },
        versions={
            "version": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        resumed_from=file_time(job.checkpoint.path / "manifest.json") if job.checkpoint else None,
    )
