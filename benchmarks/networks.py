"""Networks of the questions that are not bllpipe's own, of a size for a CPU."""

from __future__ import annotations

from torch import nn


def vit(in_channels: int, num_classes: int, channels: int = 96, layers: int = 6, patch: int = 4) -> nn.Module:
    """torchvision's vision transformer for images of 32x32 pixels: patches of ``patch`` by ``patch``, and a class
    token."""
    from torchvision.models.vision_transformer import VisionTransformer  # takes seconds

    if in_channels != 3:
        raise ValueError(f"expected images of 3 channels, got {in_channels}; use --set data.name=cifar10")
    network: nn.Module = VisionTransformer(32, patch, layers, 4, channels, 2 * channels, num_classes=num_classes)
    return network
