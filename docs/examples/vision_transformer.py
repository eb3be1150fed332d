"""Trains a tiny vision transformer of torchvision on handwritten digits, in blocks of encoder layers.

    python docs/examples/vision_transformer.py
    torchrun --nproc_per_node=4 docs/examples/vision_transformer.py

Shapes: B images, T tokens, C channels of a token.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

import bllpipe


class Tokens(nn.Module):
    """Images [B, 3, H, W] to tokens [B, T, C], the class token first: the beginning of VisionTransformer.forward."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.patches, self.dropout = vit.conv_proj, vit.encoder.dropout
        self.class_token, self.position = vit.class_token, vit.encoder.pos_embedding

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.position)


class Scores(nn.Module):
    """Tokens [B, T, C] to class scores [B, K]: the end of VisionTransformer.forward."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.norm, self.heads = vit.encoder.ln, vit.heads

    def forward(self, tokens: Tensor) -> Tensor:
        return self.heads(self.norm(tokens)[:, 0])


def in_order(vit: VisionTransformer) -> list[nn.Module]:
    """Its forward pass as a list of modules."""
    return [Tokens(vit), *vit.encoder.layers, Scores(vit)]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--run-dir", help="default: a new directory in runs/")
options = parser.parse_args()

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1).expand(-1, 3, -1, -1) / 8 - 1
labels, is_test = torch.tensor(digits.target), torch.arange(len(images)) % 5 == 0

torch.manual_seed(0)
vit = VisionTransformer(
    image_size=8, patch_size=2, num_layers=4, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
)
whole = vit.eval()(images[:4])
torch.testing.assert_close(nn.Sequential(*in_order(vit))(images[:4]), whole)  # the list computes the same

run = bllpipe.train(
    in_order(vit),
    ((images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])),
    blocks=[2, 4],  # tokens and one layer; two layers; one layer and the scores
    epochs=options.epochs,
    run_dir=options.run_dir,
    settings={"optimizer.name": "adamw", "optimizer.lr": 0.005, "data.batch_size": 32},
)
if run.rank == 0:
    print("test accuracy of every block:", " ".join(f"{accuracy:.4f}" for accuracy in run.block_accuracy))
