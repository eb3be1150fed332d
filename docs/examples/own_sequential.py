"""Trains your own nn.Sequential on handwritten digits, in blocks that never wait for a backward pass.

python docs/examples/own_sequential.py
torchrun --nproc_per_node=3 docs/examples/own_sequential.py    # one process per block, one for the feedback
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import bllpipe


def convolution(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU())


def network() -> nn.Sequential:
    return nn.Sequential(
        convolution(1, 16, stride=1),
        convolution(16, 32, stride=2),
        convolution(32, 64, stride=2),
        nn.Sequential(nn.Flatten(), nn.Linear(64 * 2 * 2, 10)),
    )


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--engine", help="sequential (default without torchrun) or threads")
parser.add_argument("--run-dir", help="default: a new directory in runs/")
options = parser.parse_args()

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1  # [1797, 1, 8, 8], from -1 to 1
labels = torch.tensor(digits.target)
is_test = torch.arange(len(labels)) % 5 == 0
train, test = (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])

torch.manual_seed(0)  # every rank draws the same weights
model = network()
run = bllpipe.train(
    model,
    (train, test),
    blocks=[2],  # the first two modules, and the rest
    epochs=options.epochs,
    engine=options.engine,
    run_dir=options.run_dir,
)

if run.rank == 0:
    run.load(model)  # from the checkpoint, because this process may have trained one block only
    right = (model.eval()(test[0]).argmax(dim=1) == test[1]).float().mean()
    print(f"test accuracy {run.accuracy:.4f} in the run, {right:.4f} of the model loaded from it")
