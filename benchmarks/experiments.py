"""Variants of one config, each with several seeds, as a YAML file lists them: ``config`` (a config file), ``common``
(overrides of all variants) and ``variants`` (a name and its overrides, key.path: value)."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.comparison import compare, name_of
from benchmarks.records import Record, Sample, alike, merge, read
from benchmarks.trial_options import add_run_options, finish, run
from benchmarks.trials import Trial
from bllpipe.config.loader import flat, read_yaml
from bllpipe.errors import ConfigError

SECTIONS = ("config", "common", "variants")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    return finish(lambda: COMMANDS[options.command](options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run what is not finished yet")
    runs.add_argument("file", metavar="FILE.yaml")
    runs.add_argument(
        "--only", nargs="+", default=["*"], metavar="NAME", help="only these variants; * in a name stands for anything"
    )
    add_run_options(runs, out="runs/experiments.jsonl", runs="runs/experiments")
    shows = commands.add_parser("show", help="print a line a variant")
    shows.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    compares = commands.add_parser("compare", help="print a line a method, at the best of its rates (NAME-lrRATE)")
    compares.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    compares.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="only these methods; * is anything")
    compares.add_argument("--against", default="bp", metavar="NAME", help="the method that differences are from")
    compares.add_argument("--tune", nargs="+", type=int, default=[3, 4], metavar="SEED", help="seeds that choose rates")
    compares.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds of the report")
    compares.add_argument("--markdown", action="store_true", help="the table for a page of documentation")
    return parser


def _run(options: argparse.Namespace) -> int:
    return run(experiment_trials(options.file, options.seeds, options.data_path, options.only), options)


def _show(options: argparse.Namespace) -> int:
    print(show([record for file in options.files for record in read(file)]))
    return 0


def _compare(options: argparse.Namespace) -> int:
    """A table a file, as each is one data set."""
    for file in options.files:
        records = [each for each in read(file) if any(fnmatch.fnmatch(name_of(each), only) for only in options.only)]
        if len(options.files) > 1:
            print(f"{file.stem}:")
        print(compare(records, options.against, options.tune, options.seeds, options.markdown))
    return 0


COMMANDS = {"run": _run, "show": _show, "compare": _compare}


def experiment_trials(
    file: str, seeds: Sequence[int], data_path: str | None = None, only: Sequence[str] = ("*",)
) -> list[Trial]:
    """The variants whose names match a pattern of ``only``, times seeds, all variants of the first seed first."""
    text = read_yaml(file)
    unknown = [key for key in text if key not in SECTIONS]
    if unknown or not isinstance(text.get("config"), str) or not isinstance(text.get("variants"), dict):
        raise ConfigError(
            f"{file} holds {', '.join(text) or 'nothing'}; expected config: FILE, variants: NAME: overrides, "
            f"and optionally common: overrides"
        )
    common = _overrides(file, "common", text.get("common"))
    variants = {name: _overrides(file, name, overrides) for name, overrides in text["variants"].items()}
    wanted = _matching(file, list(variants), only)
    path = {} if data_path is None else {"data.path": data_path}
    return [
        Trial(f"{name}-s{seed}", Path(text["config"]), {**common, **path, **own}, seed, {"variant": name})
        for seed in seeds
        for name, own in variants.items()
        if name in wanted
    ]


def _matching(file: str, names: Sequence[str], only: Sequence[str]) -> set[str]:
    """The names that match one of the patterns, each of which must match at least one."""
    found = {pattern: fnmatch.filter(names, pattern) for pattern in only}
    if nothing := [pattern for pattern, matched in found.items() if not matched]:
        raise ConfigError(
            f"--only {nothing[0]}: expected the name of a variant or a pattern such as bp-*, but no variant of {file} "
            f"matches; use one of {', '.join(names)}"
        )
    return {name for matched in found.values() for name in matched}


def _overrides(file: str, name: str, overrides: Any) -> dict[str, Any]:
    if not isinstance(overrides, Mapping | None):
        raise ConfigError(f"{file}: {name} is {overrides!r}; expected lines of the form key.path: value under it")
    return flat(overrides or {})


def show(records: Sequence[Record]) -> str:
    """A line a variant, in the order of the file; accuracies in %."""
    merged, notes = merge(records)
    depth = max((len(record["block_accuracy"]) for record in merged), default=0)
    rows = []
    for variant in dict.fromkeys(record.get("variant", record["key"]) for record in merged):
        kept, left_out = alike([r for r in merged if r.get("variant", r["key"]) == variant], variant)
        rows.append(_row(variant, kept, depth))
        notes += left_out
    heads = ["variant", "n", "last block %", *(f"block {block}" for block in range(depth)), "seconds"]
    return "\n".join([report.table(heads, rows), *notes])


def _row(variant: str, records: Sequence[Record], depth: int) -> list[object]:
    """Times are only of runs that went through in one piece."""
    accuracy = Sample.of([100 * record["test_accuracy"] for record in records])
    per_block = zip(*(record["block_accuracy"] for record in records), strict=True)
    blocks = [f"{100 * Sample.of(values).mean:.2f}" for values in per_block]
    seconds = [record["seconds"] for record in records if not record["resumed"]]
    time = f"{Sample.of(seconds).mean:.0f}" if seconds else "-"
    return [variant, accuracy.n, accuracy, *blocks, *["-"] * (depth - len(blocks)), time]


if __name__ == "__main__":
    sys.exit(main())
