"""Your own local loss: it turns the channel means of every block towards the mean of their class.

python docs/examples/user_loss.py
torchrun --nproc_per_node=4 docs/examples/user_loss.py
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bllpipe


def towards_class(alpha: Tensor, scores: Tensor, target: bllpipe.Target, x: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the local head, and 1 - cosine between the channel means of alpha and their target beta."""
    cosine_B = torch.cosine_similarity(bllpipe.channel_means(alpha), target.beta_BC, dim=1)
    return {
        "pred": cross_entropy(scores, target.label_B),
        "apart": ((1 - cosine_B) * target.known_B).mean(),  # known_B: 0 for a class that no batch has contained yet
    }


def layers(in_channels: int, num_classes: int) -> list[nn.Module]:
    def layer(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU())

    first = nn.Sequential(nn.Flatten(), layer(in_channels * 8 * 8))
    return [first, layer(128), layer(128), layer(128), nn.Linear(128, num_classes)]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--run-dir", help="default: a new directory in runs/")
options = parser.parse_args()

run = bllpipe.train(
    layers,  # a function: every rank calls it, with the seed of the run
    "digits",
    blocks=3,
    objective=towards_class,
    epochs=options.epochs,
    run_dir=options.run_dir,
    settings={"optimizer.lr": 0.1, "data.batch_size": 32},
)
if run.rank == 0:
    print("test accuracy of every block:", " ".join(f"{accuracy:.4f}" for accuracy in run.block_accuracy))
