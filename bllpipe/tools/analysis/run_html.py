"""A finished run as HTML for a notebook: a table of its ranks, the accuracy of every block, and the timeline of the
first steps if some were traced.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bllpipe.tools.analysis.report_data import ReportRun, read_run, spread
from bllpipe.training.run_directory import outcome
from bllpipe.utils.console import percent

HEADS = ("rank", "role", "test accuracy", "busy", "parameters", "peak memory")
NUMBER = ' style="text-align: right"'
MOST_STEPS = 4  # of a timeline; more of them make small boxes


def run_html(directory: Path, summary: Mapping[str, Any]) -> str:
    """The run in ``directory``, with its ``summary``. Without matplotlib there is no picture, but what to install."""
    text = f"<p>{html.escape(outcome(summary))}<br><code>{html.escape(str(short_path(directory)))}</code></p>"
    return f"<div>{_table(summary)}{text}{''.join(_pictures(directory))}</div>"


def short_path(directory: Path) -> Path:
    """The directory as seen from the working directory, if it lies in there."""
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory


def _table(summary: Mapping[str, Any]) -> str:
    accuracies = dict(zip(summary["tested_ranks"], summary["block_accuracy"], strict=False))
    rows = [
        (
            str(rank),
            role,
            percent(accuracies.get(rank)),
            percent(summary["busy"][rank]),
            f"{summary['parameters'][rank]:,}",
            f"{summary['peak_memory_bytes'][rank] / 2**20:,.0f} MiB",
        )
        for rank, role in enumerate(summary["roles"])
    ]
    head = "".join(f"<th>{name}</th>" for name in HEADS)
    body = "".join(f"<tr>{''.join(_cell(*cell) for cell in zip(HEADS, row, strict=True))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(head: str, text: str) -> str:
    return f"<td{'' if head == 'role' else NUMBER}>{html.escape(text)}</td>"


def _pictures(directory: Path) -> Sequence[str]:
    if find_spec("matplotlib") is None:
        return ["<p>For pictures: <code>pip install 'bllpipe[report]'</code></p>"]
    from bllpipe.tools.analysis.timeline_picture import picture

    run = read_run(directory, directory.name)
    drawings = {"accuracy of every block": accuracy_picture(run)}
    if run.timeline is not None and run.timeline.steps:
        first = run.timeline.steps[0]
        drawings["timeline"] = picture("Timeline", [run.timeline.cut(first, first + MOST_STEPS)])
    return [_image(name, svg) for name, svg in drawings.items() if svg]


def _image(name: str, svg: str) -> str:
    """The drawing in a frame of its own: its styles change nothing else on the page."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img style="max-width: 100%" alt="{name}" src="data:image/svg+xml;base64,{data}">'


def accuracy_picture(run: ReportRun) -> str:
    """The accuracy of every block by step as an SVG: in the tests, or in training if there was at most one test. Empty
    for a run without either."""
    from bllpipe.tools.analysis.charts import Curve, standalone_curves

    for phase, label in (("evaluate", "test accuracy"), ("train", "training accuracy")):
        curves = [
            Curve(f"block {k}", [spread(step, [value]) for step, value in run.metric(phase, k, "accuracy").items()])
            for k in range(run.num_blocks)
        ]
        if max([0, *(len(curve.points) for curve in curves)]) > 1:
            return standalone_curves(f"{label.capitalize()} of every block's own head", curves, "training steps", label)
    return ""
