"""The curves of predictions for a cluster, over the number of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from bllpipe.tools.analysis.charts import drawing, look, svg_text
from bllpipe.tools.planning.cluster.output import NAMES
from bllpipe.tools.planning.cluster.predictions import ENGINES, ClusterPrediction

SIZE = (760 / 72, 330 / 72)


@drawing
def cluster_picture(predictions: Sequence[ClusterPrediction], title: str) -> str:
    """Two charts side by side as an SVG of its own: what the GPUs do in a step, and what remains after failures, or,
    if there is a price, what an epoch costs."""
    figure = Figure(SIZE, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=14)
    _draw(left, predictions, lambda found: found.of_ideal, "of as many single devices")
    left.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    if any(found.price_per_epoch for found in predictions):
        _draw(right, predictions, lambda found: found.price_per_epoch, "price of an epoch, failures included")
    else:
        _draw(right, predictions, lambda found: found.of_ideal * found.goodput, "the same, failures included")
        right.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    left.legend(frameon=False)
    return svg_text(figure, title, "chart", {}, standalone=True)


def _draw(
    axes: Axes, predictions: Sequence[ClusterPrediction], value: Callable[[ClusterPrediction], float], label: str
) -> None:
    numbers = sorted({found.num_gpus for found in predictions})
    for index, engine in enumerate(ENGINES):
        curve = [found for found in predictions if found.engine == engine]
        xs, ys = [found.num_gpus for found in curve], [value(found) for found in curve]
        axes.plot(xs, ys, label=f"{NAMES[engine]}, predicted", **look(index) | {"markersize": 6})
    axes.set_xscale("log", base=2)
    shown = numbers[:: -(-len(numbers) // 6)]
    axes.set_xticks(shown, [f"{number:,}" for number in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, max(value(found) for found in predictions) * 1.08)
    axes.set_xlabel("GPUs")
    axes.set_ylabel(label)
