"""``bllpipe report``, ``eval``, ``export`` and ``timeline``: what is made of finished runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.timeline import Timeline, chrome_trace, figures, parse_steps, read_timeline
from bllpipe.utils.console import percent, show, warn
from bllpipe.utils.files import output_file, run_directory
from bllpipe.utils.paths import write_result

if TYPE_CHECKING:
    from bllpipe.tools.analysis.evaluation import EarlyExit, Evaluation, Exit

FORMATS = (".svg", ".png", ".html")
LEGIBLE = 30  # steps in one picture


def evaluation_table(evaluation: Evaluation) -> str:
    """All figures of ``evaluation``, with what they mean."""
    parts = [_heading(evaluation), *_exit_rows(evaluation)]
    if len(evaluation.exits) > 1:
        parts += ["", *_early_rows(evaluation)]
    if evaluation.training_only_parameters:
        parts.append(f"only training needs {evaluation.training_only_parameters:,} parameters more, in the objectives")
    return "\n".join(parts)


def _heading(evaluation: Evaluation) -> str:
    recorded = evaluation.recorded_test_accuracy
    measured = "" if recorded is None else f"; the run itself measured {percent(recorded)}"
    return (
        f"{evaluation.run}: {evaluation.method}, step {evaluation.step}, {evaluation.test_images:,} test images, "
        f"test accuracy {percent(evaluation.test_accuracy)}{measured}"
    )


def _exit_rows(evaluation: Evaluation) -> list[str]:
    width = max(len("after"), *(len(each.after) for each in evaluation.exits))
    return [
        f"exit  {'after':<{width}} {'test accuracy':>14} {'together':>10} {'MFLOPs':>10} {'parameters':>12}   "
        "head's share of its block",
        *(_exit_row(each, width) for each in evaluation.exits),
        "together: the mean class probabilities of the exits up to this one;",
        "MFLOPs for one image and parameters are those of the network up to the exit, with its own head;",
        "two FLOPs are one multiply-accumulate, in convolutions and matrix products",
    ]


def _exit_row(each: Exit, width: int) -> str:
    return (
        f"{each.number:>4}  {each.after:<{width}} {percent(each.test_accuracy):>14} "
        f"{percent(each.ensemble_accuracy):>10} {each.flops / 1e6:>10,.3f} {each.parameters:>12,}   "
        f"FLOPs {percent(each.head_flops_share)}, "
        f"parameters {percent(each.head_parameters_share)}"
    )


def _early_rows(evaluation: Evaluation) -> list[str]:
    left = "".join(f"{f'at exit {each.number}':>11}" for each in evaluation.exits)
    return [
        f"leave at confidence  test accuracy   mean cost{left}",
        *(_early_row(each) for each in evaluation.early_exits),
        "mean cost: FLOPs for an image, of all heads on its way too, relative to the network without local heads",
    ]


def _early_row(each: EarlyExit) -> str:
    left = "".join(f"{percent(part):>11}" for part in each.left)
    return f"{each.threshold:>19.3f} {percent(each.test_accuracy):>14} {percent(each.relative_cost):>11}{left}"


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
        raise ConfigError(f"--out {out} has no format that is known; expected one of {', '.join(FORMATS)}")
    timelines = _timelines(paths, options.steps)
    show(figures(timelines))
    if trace is not None:
        write_result(trace, json.dumps(chrome_trace(timelines)) + "\n")
        show(f"wrote {trace}")
    _write(out, options.title or _title(timelines), timelines)
    show(f"wrote {out}")
    return 0


def _timelines(paths: Sequence[Path], steps: str | None) -> list[Timeline]:
    first, end = parse_steps(steps) if steps is not None else (None, None)
    found = [read_timeline(path, warn).cut(first, end) for path in paths]
    most = max(len(timeline.steps) for timeline in found)
    if most > LEGIBLE:
        start = found[0].steps[0]
        warn(f"{most} steps make small boxes; for fewer of them: --steps {start}:{start + 6}")
    return found


def _title(timelines: Sequence[Timeline]) -> str:
    return "Timeline of " + ", ".join(timeline.name for timeline in timelines)


def _write(out: Path, title: str, timelines: Sequence[Timeline]) -> None:
    _require_report_extra()
    from bllpipe.tools.analysis.report_figures import Section, WideDrawing, render_page
    from bllpipe.tools.analysis.timeline_picture import picture, write_png

    if out.suffix == ".png":
        write_png(title, timelines, out)
    elif out.suffix == ".html":
        drawing = WideDrawing(picture(title, timelines, heading=False))
        write_result(out, render_page(title, [Section("timeline", "", [drawing])]))
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
    report = commands.add_parser("report", help="one page with figures and curves of one or more runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, such as runs/NAME")
    report.add_argument("--out", metavar="FILE", help="default: report.html in the first run directory")
    report.add_argument("--tensorboard", metavar="DIR", help="also write the runs as event files of TensorBoard to DIR")
    report.set_defaults(run=_report)

    evaluate = commands.add_parser("eval", help="test every exit of a run: accuracy, cost, leaving early")
    evaluate.add_argument("directory", metavar="RUN", help="a run directory; its newest checkpoint is tested")
    evaluate.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
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
        choices=("torchvision", "bllpipe"),
        default="torchvision",
        help="torchvision (default): a ResNet, checked in torchvision's own if it has this one; bllpipe: any network",
    )
    export.add_argument("--heads", metavar="FILE", help="write the local heads too, for the ensemble of all exits")
    export.add_argument("--no-check", dest="check", action="store_false", help="do not compare FILE with the run")
    _add_data_options(export)
    export.set_defaults(run=_export)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", metavar="PATH", help="where the data are, if they have moved since the run")
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
        write_result(file, json.dumps(evaluation.to_json(), indent=1) + "\n")
        show(f"wrote {file}")
    return 0


def _export(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.tools.analysis.export import export_run
    from bllpipe.tools.analysis.finished_run import open_run

    file, heads = output_file(options.file), output_file(options.heads) if options.heads else None
    run = open_run(run_directory(options.directory), warn, options.data_path, options.accept == "data")
    export_run(run, options.to, file, options.check, show, heads)
    return 0
