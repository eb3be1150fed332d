"""The learning rates that the last layers of a network bear at the start: the local heads' and the classifier's.

For a linear layer on features f, and K classes that are equally probable at first, the largest curvature of the
cross-entropy is that of the features' second moment, mean f f^T, divided by K. SGD with momentum m is stable on a
parabola of curvature h below 2 (1 + m) / h; in Nesterov's form below 2 (1 + m) / ((1 + 2 m) h). Both are limits for the
layer alone, before the first step: networks learn at larger rates too. Compare the heads with the network's own last
layer, at whose best rate BP learns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.report import table, write
from bllpipe.config import Config, load_config
from bllpipe.data.registry import load_images
from bllpipe.learn.balanced_cut import with_balanced_cut
from bllpipe.learn.block import build_segments, make_block
from bllpipe.learn.heads import ScaledLinear
from bllpipe.models.partition import cut
from bllpipe.models.registry import last_width, network_units

CPU = torch.device("cpu")


@dataclass(frozen=True)
class HeadRate:
    """The last layer of one block: the number of its features, the largest eigenvalue of their second moment as it
    reads them, and the largest stable learning rates with momentum, and with Nesterov's form of it."""

    block: str
    features: int
    eigenvalue: float
    momentum_limit: float
    nesterov_limit: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints a row a block."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_rates", description=__doc__)
    parser.add_argument("npz", help="archive of images, such as data/cifar10.npz")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--images", type=int, default=512, help="the first of the archive's training images")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    config = load_config(options.config, [*options.overrides, "data.name=npz", f"data.path={options.npz}"])
    x_NCHW, num_classes = first_images(config, options.images)
    found = list(head_rates(config, x_NCHW, num_classes))
    heads = ["last layer of", "features", "largest eigenvalue", "limit with momentum", "with Nesterov's"]
    rows = [
        [
            each.block,
            f"{each.features:,}",
            f"{each.eigenvalue:,.0f}",
            f"{each.momentum_limit:.3f}",
            f"{each.nesterov_limit:.3f}",
        ]
        for each in found
    ]
    print(table(heads, rows))
    write(options.json, __doc__.splitlines()[0], vars(options), [vars(each) for each in found])
    return 0


def first_images(config: Config, number: int) -> tuple[Tensor, int]:
    """The first training images of the data of ``config``, [N, C, H, W], normalised, and the number of classes."""
    images = load_images(config.data, config.seed)
    (pixels,) = images.batches([("train", torch.arange(min(number, images.spec.num_train)))])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (images.mean, images.std))
    return (pixels / 255 - mean) / std, images.spec.num_classes


def largest_eigenvalue(features_BF: Tensor) -> float:
    """Of the second moment, mean over the images of f f^T: that of the smaller of the two products."""
    features_BF = features_BF.double()
    return float(torch.linalg.eigvalsh(features_BF @ features_BF.T / len(features_BF))[-1])


@torch.no_grad()
def head_rates(config: Config, x: Tensor, num_classes: int) -> Iterator[HeadRate]:
    """The last layer of every block in turn, for the features that the images ``x`` [N, C, H, W] have there."""
    shape = tuple(x.shape[1:])
    config = with_balanced_cut(config, shape, num_classes)
    config = replace(config, precision=replace(config.precision, compute="fp32"))
    units = network_units(config.model, shape, num_classes, config.seed)
    parts, width = cut(units, config.blocks), last_width(config, units)
    for number, (segment, before, after) in enumerate(build_segments(parts, config, shape, CPU)):
        is_last = number == len(parts) - 1
        block = make_block(segment, before, after, config, num_classes, 1, is_last, width, number)
        found = list[Tensor]()
        layer = [each for part in (segment, block.head) for each in part.modules() if isinstance(each, nn.Linear)][-1]
        with layer.register_forward_pre_hook(lambda layer, inputs, found=found: found.append(inputs[0])):
            x = block.forward(x)
            block.head(x)
        scale = layer.scale if isinstance(layer, ScaledLinear) else 1.0
        name = "the network" if is_last else f"block {number}"
        yield _rate(name, scale * found[0], config.optimizer.momentum, num_classes)


def _rate(name: str, features_BF: Tensor, momentum: float, num_classes: int) -> HeadRate:
    large = largest_eigenvalue(features_BF)
    limit = 2 * (1 + momentum) * num_classes / large
    return HeadRate(name, features_BF.shape[1], large, limit, limit / (1 + 2 * momentum))


if __name__ == "__main__":
    sys.exit(main())
