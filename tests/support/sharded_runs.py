"""Runs with and without sharding, one after another in the ranks of this process, in folders of argv[1]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bllpipe

# A gathered head of several layers, a scalar-free network with batch norms, clipping by the norm of whole blocks.
SETTINGS: dict[str, Any] = {
    **{"model.width": 2, "data.batch_size": 32, "steps": 8, "log.every_steps": 4, "checkpoint.every_steps": 4},
    **{"objective.head": "mlp", "optimizer.clip_norm": 1.0, "objective.message": "embedding"},
    **{"shards": 4, "replicas": [2, 1], "reduce": "native", "evaluate.ensemble": True},
}
FSDP = {"sharding": "fsdp"}


def run(folder: Path, more: dict[str, Any], resume: str = "never", accept: tuple[str, ...] = ()) -> None:
    bllpipe.train(blocks=2, engine="ranks", settings={**SETTINGS, **more}, run_dir=folder, resume=resume, accept=accept)


def resume_from(old: Path, new: Path, more: dict[str, Any]) -> None:
    """A new run from the checkpoint of ``old`` in the middle, with the other kind of sharding."""
    run(new, more, str(old / "checkpoints" / "step-00000004"), ("sharding",))


def run_ddp(folder: Path, recompute: str) -> None:
    """Data parallelism of the same ranks, whose units may be computed again, too."""
    settings = {**SETTINGS, "replicas": 1, "shards": None, "model.recompute": recompute, "evaluate.ensemble": False}
    settings = {name: value for name, value in settings.items() if not name.startswith("objective.")}
    bllpipe.train(objective="bp", blocks=4, engine="ddp", settings=settings, run_dir=folder)


def main() -> None:
    root = Path(sys.argv[1])
    run(root / "native", {})
    run(root / "fsdp", FSDP)
    run(root / "again", {**FSDP, "stop_at": 4})
    run(root / "again", {**FSDP, "model.recompute": "units"}, "auto")
    resume_from(root / "fsdp", root / "fsdp then native", {})
    resume_from(root / "native", root / "native then fsdp", FSDP)
    for recompute in ("none", "units"):
        run_ddp(root / f"ddp {recompute}", recompute)


if __name__ == "__main__":
    main()
