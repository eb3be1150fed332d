"""``bllpipe plan --cluster FILE``: predictions for many devices, from a profile of one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.tools.planning.profile import Profile
from bllpipe.utils.console import Bar, show
from bllpipe.utils.files import output_file, write_result


def add_cluster_options(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--cluster",
        metavar="FILE",
        type=expanduser,
        help="predict for the cluster in this file, from 4 to thousands of GPUs",
    )
    plan.add_argument(
        "--picture", metavar="FILE.svg", type=expanduser, help="with --cluster: draw the curves (needs matplotlib)"
    )


def check_cluster(options: argparse.Namespace, config: Config) -> None:
    """Raises ConfigError, before anything is measured, for options that no prediction can have."""
    if options.picture is not None and options.cluster is None:
        raise ConfigError("expected --cluster FILE with --picture, got none; use both, or leave --picture out")
    if options.cluster is None:
        return
    for name in ("ranks", "write", "memory"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"expected no --{name} with --cluster, got {getattr(options, name)}; use the keys of FILE"
            )
    if config.is_end_to_end:
        raise ConfigError(
            f"expected a method with local losses for --cluster, got {config.method}; use --set method=bll, with which "
            f"the other engines are compared"
        )
    from bllpipe.tools.planning.cluster.description import load_cluster  # numpy, not for --help

    load_cluster(options.cluster)
    if options.picture is not None:
        output_file(options.picture)
        drawing_of_pictures()


def drawing_of_pictures() -> None:
    """Raises ConfigError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--picture needs matplotlib: {error}; use pip install 'bllpipe[report]'") from error


def show_cluster(
    options: argparse.Namespace, config: Config, profile: Profile, blocks: Sequence[int], json_file: Path | None
) -> None:
    """Prints the table, and writes the files of the options."""
    from bllpipe.tools.planning.cluster.description import load_cluster
    from bllpipe.tools.planning.cluster.layouts import ClusterInputs
    from bllpipe.tools.planning.cluster.output import cluster_table, left_out, to_json
    from bllpipe.tools.planning.cluster.predictions import predict_cluster

    cluster = load_cluster(options.cluster)
    network = profile.inputs(1.0, options.overhead / 1e3)
    inputs = ClusterInputs(
        cluster,
        network,
        tuple(blocks),
        config.backend.ring,
        config.backend.in_flight,
        config.feedback.lag,
        config.reduce == "ordered",
        config.feedback.ranks,
    )
    images = profile.steps_per_epoch * profile.batch_size
    with Bar("bllpipe plan --cluster", len(cluster.gpus), quiet=True) as bar:
        predictions = predict_cluster(inputs, images, lambda number: bar.advance(f"{number} GPUs"))
    if not predictions:
        raise ConfigError(
            f"expected a layout that divides the GPUs of {options.cluster} and fits their memory, got none; use other "
            f"numbers of gpus, --blocks, or a larger memory_gib"
        )
    show(cluster_table(predictions, cluster.failures.node_mtbf_hours is not None, bool(cluster.price_per_gpu_hour)))
    for line in left_out(cluster, predictions):
        show(line)
    if json_file:
        record = to_json(cluster, profile.names, predictions, profile.to_json())
        write_result(json_file, json.dumps(record, indent=1) + "\n")
        show(f"wrote {json_file}")
    if options.picture:
        from bllpipe.tools.planning.cluster.picture import cluster_picture

        file = output_file(options.picture)
        write_result(file, cluster_picture(predictions, f"{profile.settings['model.name']} on a cluster"))
        show(f"wrote {file}")
