"""What is measured of memory formats and precisions, and what is read off it."""

from __future__ import annotations

from itertools import product

from benchmarks import formats
from benchmarks.report import Spread
from bllpipe.config.loader import load_config


def test_runs_differ_in_format_and_network_alone() -> None:
    for network, (channels_last, precision) in product(formats.NETWORKS.values(), formats.FORMATS):
        config = load_config(formats.CONFIG, formats.settings(network, (channels_last, precision), 7))
        assert (config.channels_last, config.precision.compute, config.steps) == (channels_last, precision, 7)
        assert (config.device, config.data.name, config.cpu_threads) == ("cpu", "synthetic", 1)


def test_ratios_are_to_the_first_format_of_the_same_network() -> None:
    results = [
        {"network": name, "images_per_second": Spread.of([rate])}
        for name, rates in {"A": (100.0, 160.0), "B": (10.0, 5.0)}.items()
        for rate in rates
    ]
    first, second = formats.rows(results)
    assert first == ["A", "100.0 (100.0 to 100.0)", "160.0 (160.0 to 160.0), 1.60x"]
    assert second[2].endswith("0.50x")
