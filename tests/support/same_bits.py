"""What two runs of one config have in common to the last bit, however often they were interrupted: all but what the
clock and the machine have put there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMED = ("images_per_second", "waiting", "resident_bytes", "training_seconds")


def metrics_without_timing(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what was timed, in a fixed order."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
    return sorted(kept, key=lambda line: (line["step"], line["phase"], line["actor"]))


def state_digest(run_dir: Path) -> str:
    """``state_sha256`` of a finished run."""
    return str(json.loads((run_dir / "summary.json").read_text())["state_sha256"])
