"""Trains a tiny vision transformer of torchvision on handwritten digits, in blocks of encoder layers.

python docs/examples/vision_transformer.py
torchrun --nproc_per_node=4 docs/examples/vision_transformer.py
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torchvision.models.vision_transformer import VisionTransformer

import bllpipe

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--run-dir", help="default: a new directory in runs/")
options = parser.parse_args()

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1).expand(-1, 3, -1, -1) / 8 - 1
labels, is_test = torch.tensor(digits.target), torch.arange(len(images)) % 5 == 0

torch.manual_seed(0)  # every rank draws the same weights
vit = VisionTransformer(
    image_size=8, patch_size=2, num_layers=4, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
)

run = bllpipe.train(
    vit,
    ((images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])),
    # class token, positions and one layer; two layers; one layer, the norm and the scores of the class token
    blocks=["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2"],
    epochs=options.epochs,
    run_dir=options.run_dir,
    settings={"optimizer.name": "adamw", "optimizer.lr": 0.005, "data.batch_size": 32},
)
if run.rank == 0:
    print("test accuracy of every block:", " ".join(f"{accuracy:.4f}" for accuracy in run.block_accuracy))
