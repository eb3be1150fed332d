"""``bllpipe report``, ``eval``, ``export`` and ``timeline``: what is made of finished runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.timeline import Timeline, busy, chrome_trace, parse_steps, read_timeline, summary
from bllpipe.utils.console import percent, show, table, warn
from bllpipe.utils.files import output_file, run_directory, write_result

if TYPE_CHECKING:
    from bllpipe.tools.analysis.evaluation import Evaluation

FORMATS = (".svg", ".png", ".html")
LEGIBLE = 30  # steps in one picture


def evaluation_table(evaluation: Evaluation) -> str:
    """All results of ``evaluation``, with what they mean."""
    recorded = evaluation.recorded_test_accuracy
    measured = "" if recorded is None else f"; the run itself measured {percent(recorded)}"
    exits = [
        [
            f"{each.number:>4}  {each.after}",
            percent(each.test_accuracy),
            percent(each.ensemble_accuracy),
            f"{each.flops / 1e6:,.3f}",
            f"{each.parameters:,}",
            percent(each.head_flops_share),
            percent(each.head_parameters_share),
        ]
        for each in evaluation.exits
    ]
    heads = ["exit  after", "test accuracy", "together", "MFLOPs", "parameters", "head's FLOPs", "head's parameters"]
    parts = [
        f"{evaluation.run}: {evaluation.method}, step {evaluation.step}, {evaluation.test_images:,} test images, "
        f"test accuracy {percent(evaluation.test_accuracy)}{measured}",
        table(heads, exits),
        "together: the mean class probabilities of the exits up to this one;",
        "MFLOPs for one image and parameters are those of the network up to the exit, with its own head;",
        "two FLOPs are one multiply-accumulate, in convolutions and matrix products;",
        "head's FLOPs and parameters: the head's share of those of its block",
    ]
    if len(exits) > 1:
        heads = ["leave at confidence", "test accuracy", "mean cost", *(f"at exit {k}" for k in range(len(exits)))]
        early = [
            [
                f"{each.threshold:.3f}",
                percent(each.test_accuracy),
                percent(each.relative_cost),
                *map(percent, each.left),
            ]
            for each in evaluation.early_exits
        ]
        cost = "mean cost: FLOPs for an image, of all heads on its way too, relative to the network without local heads"
        parts += ["", table(heads, early), cost]
    if evaluation.training_only_parameters:
        parts.append(f"only training needs {evaluation.training_only_parameters:,} parameters more, in the objectives")
    return "\n".join(parts)


def add_timeline(commands: Any) -> None:
    """The command that draws traced steps."""
    timeline = commands.add_parser("timeline", help="a picture of who did what when, from runs with trace.num_steps")
    timeline.add_argument("runs", nargs="+", metavar="RUN", help="a run directory; several stand below each other")
    timeline.add_argument("--steps", metavar="A:B", help="the steps from A to B - 1 (default: all that were traced)")
    timeline.add_argument(
        "--out", metavar="FILE", type=expanduser, help=".svg, .png or .html; default: timeline.svg in the first run"
    )
    timeline.add_argument(
        "--trace", metavar="FILE", type=expanduser, help="also write a trace for ui.perfetto.dev to FILE (JSON)"
    )
    timeline.add_argument("--title", metavar="TEXT", help="heading of the picture")
    timeline.set_defaults(run=_timeline)


def _timeline(options: argparse.Namespace, words: Sequence[str]) -> int:
    paths = [run_directory(name) for name in options.runs]
    out = output_file(options.out) if options.out else paths[0] / "timeline.svg"
    trace = output_file(options.trace) if options.trace else None
    if out.suffix not in FORMATS:
        raise ConfigError(f"--out {out} has no format that is known; expected one of {', '.join(FORMATS)}")
    first, end = parse_steps(options.steps) if options.steps is not None else (None, None)
    timelines = [read_timeline(path, warn).cut(first, end) for path in paths]
    most = max(len(timeline.steps) for timeline in timelines)
    if most > LEGIBLE:
        start = timelines[0].steps[0]
        warn(f"{most} steps make small boxes; for fewer of them: --steps {start}:{start + 6}")
    for timeline in timelines:
        show(f"{timeline.name}: {summary(timeline)}\n{busy(timeline)}")
    if trace is not None:
        write_result(trace, json.dumps(chrome_trace(timelines)) + "\n")
        show(f"wrote {trace}")
    title = options.title or "Timeline of " + ", ".join(timeline.name for timeline in timelines)
    _write(out, title, timelines)
    show(f"wrote {out}")
    return 0


def _write(out: Path, title: str, timelines: Sequence[Timeline]) -> None:
    _require_report_extra()
    from bllpipe.tools.analysis.report_figures import PARTS, render_page
    from bllpipe.tools.analysis.timeline_picture import picture, write_png

    if out.suffix == ".png":
        write_png(title, timelines, out)
    elif out.suffix == ".html":
        drawing = PARTS.wide_drawing(picture(title, timelines, heading=False))
        write_result(out, render_page(title, [("timeline", "", [drawing])]))
    else:
        write_result(out, picture(title, timelines))


def _require_report_extra() -> None:
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"reports and timelines are drawn with matplotlib and jinja2, but {' and '.join(missing)} is not "
            f"installed; use pip install 'bllpipe[report]'"
        )


def add_results(commands: Any) -> None:
    """The commands that read run directories."""
    report = commands.add_parser("report", help="one page with tables and curves of one or more runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, such as runs/NAME")
    report.add_argument(
        "--out", metavar="FILE", type=expanduser, help="default: report.html in the first run directory"
    )
    report.add_argument(
        "--tensorboard", metavar="DIR", type=expanduser, help="also write the runs as event files of TensorBoard to DIR"
    )
    report.set_defaults(run=_report)

    evaluate = commands.add_parser("eval", help="test every exit of a run: accuracy, cost, leaving early")
    evaluate.add_argument("directory", metavar="RUN", help="a run directory; its newest checkpoint is tested")
    evaluate.add_argument("--json", metavar="FILE", type=expanduser, help="write the results to FILE too")
    evaluate.add_argument(
        "--threshold",
        dest="thresholds",
        type=float,
        nargs="+",
        action="extend",
        metavar="P",
        help="confidences at which images leave early (default: 0.5 0.7 0.8 0.9 0.95 0.99)",
    )
    _add_data_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser("export", help="write a run's network to one safetensors file, and check it")
    export.add_argument("directory", metavar="RUN", help="a run directory; its newest checkpoint is exported")
    export.add_argument("file", metavar="FILE")
    export.add_argument(
        "--to",
        choices=("torchvision", "timm", "bllpipe"),
        default="torchvision",
        help="torchvision (default): a ResNet or a torchvision:NAME, checked in torchvision's own if it has this one; "
        "timm: a timm:NAME, checked in timm's own; bllpipe: any network",
    )
    export.add_argument(
        "--heads", metavar="FILE", type=expanduser, help="write the local heads too, for the ensemble of all exits"
    )
    export.add_argument("--no-check", dest="check", action="store_false", help="do not compare FILE with the run")
    _add_data_options(export)
    export.set_defaults(run=_export)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-path", metavar="PATH", type=expanduser, help="where the data are, if they have moved since the run"
    )
    parser.add_argument(
        "--accept", choices=("data",), help="go on although the data are not those of the checkpoint (sizes, labels)"
    )


def _report(options: argparse.Namespace, words: Sequence[str]) -> int:
    _require_report_extra()
    from bllpipe.tools.analysis.report import write_report

    runs = [Path(text) for text in options.runs]
    out = Path(options.out) if options.out else runs[0] / "report.html"
    write_report(runs, out)
    show(f"wrote {out}")
    if options.tensorboard:
        from bllpipe.tools.analysis.tensorboard import write_events

        write_events(runs, Path(options.tensorboard))
        show(f"wrote {options.tensorboard}; look at it with tensorboard --logdir {options.tensorboard}")
    return 0


def _evaluate(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.tools.analysis.evaluation import THRESHOLDS, evaluate_run
    from bllpipe.tools.analysis.finished_run import open_run

    file = output_file(options.json) if options.json else None
    run = open_run(run_directory(options.directory), warn, options.data_path, options.accept == "data")
    evaluation = evaluate_run(run, options.thresholds or THRESHOLDS)
    show(evaluation_table(evaluation))
    if file is not None:
        write_result(file, json.dumps(asdict(evaluation), indent=1) + "\n")
        show(f"wrote {file}")
    return 0


def _export(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.tools.analysis.export import export_run
    from bllpipe.tools.analysis.finished_run import open_run

    file, heads = output_file(options.file), output_file(options.heads) if options.heads else None
    run = open_run(run_directory(options.directory), warn, options.data_path, options.accept == "data")
    export_run(run, options.to, file, options.check, show, heads)
    return 0
