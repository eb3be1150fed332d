"""``bllpipe timeline``: from the spans of runs to a picture and a trace. Imports no torch."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bllpipe.errors import ConfigError
from bllpipe.results.charts_svg import element
from bllpipe.results.places import output_file, run_directory
from bllpipe.results.report_page import page
from bllpipe.results.timeline import Timeline, figures, parse_steps, read_timeline
from bllpipe.results.timeline_picture import picture
from bllpipe.results.timeline_trace import chrome_trace

FORMATS = (".svg", ".png", ".html")
LEGIBLE = 30  # steps in one picture
SECONDS = 120  # most that a converter may take
Find = Callable[[str], str | None]


def add_timeline(commands: Any) -> None:
    """Adds the subcommand to those of ``bllpipe``."""
    timeline = commands.add_parser("timeline", help="a picture of who did what when, from runs with trace.num_steps")
    timeline.add_argument("runs", nargs="+", metavar="RUN", help="a run directory; several stand below each other")
    timeline.add_argument("--steps", metavar="A:B", help="the steps from A to B - 1 (default: all that were traced)")
    timeline.add_argument("--out", metavar="FILE", help=".svg, .png or .html; default: timeline.svg in the first run")
    timeline.add_argument("--trace", metavar="FILE", help="also write a trace for ui.perfetto.dev to FILE (JSON)")
    timeline.add_argument("--title", metavar="TEXT", help="heading of the picture")
    timeline.set_defaults(run=run)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Reads, draws, and says what was found and written."""
    paths = [run_directory(name) for name in options.runs]
    out = output_file(options.out) if options.out else paths[0] / "timeline.svg"
    trace = output_file(options.trace) if options.trace else None
    if out.suffix not in FORMATS:
        raise ConfigError(f"--out {out} has no format that is known; needed is one of {', '.join(FORMATS)}")
    timelines = _timelines(paths, options.steps)
    _write(out, options.title or _title(timelines), timelines)
    if trace is not None:
        trace.write_text(json.dumps(chrome_trace(timelines)) + "\n")
    print(figures(timelines))
    print("\n".join(f"wrote {file}" for file in (out, trace) if file is not None))
    return 0


def _timelines(paths: Sequence[Path], steps: str | None) -> list[Timeline]:
    first, end = parse_steps(steps) if steps is not None else (None, None)
    found = [read_timeline(path, _warn).cut(first, end) for path in paths]
    most = max(len(timeline.steps) for timeline in found)
    if most > LEGIBLE:
        start = found[0].steps[0]
        _warn(f"{most} steps make small boxes; for fewer of them: --steps {start}:{start + 6}")
    return found


def _title(timelines: Sequence[Timeline]) -> str:
    return "Timeline of " + ", ".join(timeline.name for timeline in timelines)


def _write(out: Path, title: str, timelines: Sequence[Timeline]) -> None:
    if out.suffix == ".png":
        write_png(picture(title, timelines), out)
    elif out.suffix == ".html":
        drawing = element("div", picture(title, timelines, heading=False), class_="wide")
        out.write_text(page(title, [drawing]), encoding="utf-8")
    else:
        out.write_text(picture(title, timelines), encoding="utf-8")


def write_png(svg: str, out: Path, find: Find = shutil.which) -> None:
    """Draws ``svg`` with twice as many pixels, by whichever converter ``find`` finds on PATH.

    Raises ConfigError when there is none, or when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "timeline.svg"
        source.write_text(svg, encoding="utf-8")
        command = _converter(source, out.absolute(), svg, find)
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder)
    if done.returncode != 0 or not out.is_file():
        raise ConfigError(
            f"{command[0]} could not make {out}: {done.stderr.strip()[-300:]}; take --out {out.with_suffix('.svg')}"
        )


def _converter(source: Path, out: Path, svg: str, find: Find) -> list[str]:
    if program := find("rsvg-convert"):
        return [program, "--zoom=2", f"--output={out}", str(source)]
    if program := find("cairosvg"):
        return [program, str(source), "--scale", "2", "--output", str(out)]
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if program := find(name):
            return [program, *_browser_words(source, out, svg), source.as_uri()]
    raise ConfigError(
        f"found neither rsvg-convert nor cairosvg nor chromium to make {out.name}; install one of them "
        f"(pip install cairosvg), or take --out {out.with_suffix('.svg').name}"
    )


def _browser_words(source: Path, out: Path, svg: str) -> list[str]:
    width, height = svg.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    return [
        "--headless",
        "--no-sandbox",  # it draws nothing but our own file, and as root it does not start otherwise
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=2",
        f"--user-data-dir={source.parent / 'browser'}",
        f"--window-size={width},{height}",
        f"--screenshot={out}",
    ]


def _warn(line: str) -> None:
    print(f"bllpipe: {line}", file=sys.stderr)
