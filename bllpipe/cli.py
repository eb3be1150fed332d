"""The ``bllpipe`` command: start a run, look at a config, read a run's results, describe the machine, fetch data."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bllpipe
from bllpipe import launch
from bllpipe.check.command import add_check
from bllpipe.errors import BllpipeError
from bllpipe.metrics.health import add_health
from bllpipe.plan.command import add_plan
from bllpipe.results.checkpoints_command import add_checkpoints
from bllpipe.results.timeline_command import add_timeline
from bllpipe.run.data.command import add_data
from bllpipe.slurm.command import add_slurm
from bllpipe.terminal.command import add_watch
from bllpipe.terminal.completion import add_completion
from bllpipe.terminal.env_command import add_env


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        code = int(options.run(options, given[1:]))
        sys.stdout.flush()
        return code
    except BllpipeError as error:
        print(f"bllpipe: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read has seen enough, as in ``bllpipe eval RUN | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bllpipe", description=bllpipe.__doc__)
    parser.add_argument("--version", action="version", version=f"bllpipe {bllpipe.__version__}")
    parser.set_defaults(parser=parser)  # for the command completion
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="start a run; the same as python -m bllpipe.launch")
    launch.add_arguments(train)
    train.set_defaults(run=launch.launch)

    add_check(commands)
    _add_results(commands)
    add_plan(commands)
    add_timeline(commands)
    add_checkpoints(commands)
    add_health(commands)
    add_slurm(commands)
    add_watch(commands)
    add_env(commands)
    add_data(commands)
    add_completion(commands)

    return parser


def _add_results(commands: Any) -> None:
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
    export.set_defaults(run=_export)


def _report(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.results.report import write_report

    runs = [Path(text) for text in options.runs]
    out = Path(options.out) if options.out else runs[0] / "report.html"
    write_report(runs, out)
    print(f"wrote {out}")
    if options.tensorboard:
        from bllpipe.results.tensorboard import write_events

        write_events(runs, Path(options.tensorboard))
        print(f"wrote {options.tensorboard}; look at it with tensorboard --logdir {options.tensorboard}")
    return 0


def _evaluate(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.results.evaluation import THRESHOLDS, evaluate_run
    from bllpipe.results.evaluation_table import evaluation_table
    from bllpipe.results.finished import open_run
    from bllpipe.results.places import output_file, run_directory

    file = output_file(options.json) if options.json else None
    evaluation = evaluate_run(open_run(run_directory(options.directory), _warn), options.thresholds or THRESHOLDS)
    print(evaluation_table(evaluation))
    if file is not None:
        file.write_text(json.dumps(evaluation.to_json(), indent=1) + "\n")
        print(f"wrote {file}")
    return 0


def _export(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.results.export import export_run
    from bllpipe.results.finished import open_run
    from bllpipe.results.places import output_file, run_directory

    file, heads = output_file(options.file), output_file(options.heads) if options.heads else None
    export_run(open_run(run_directory(options.directory), _warn), options.to, file, options.check, print, heads)
    return 0


def _warn(text: str) -> None:
    print(f"bllpipe: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
