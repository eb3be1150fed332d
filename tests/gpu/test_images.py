"""Images that are augmented on a GPU are those that a CPU makes of the same draws."""

from __future__ import annotations

import pytest
import torch

from bllpipe.config.schema import AugmentConfig, DataConfig
from bllpipe.data.base import MemoryImages
from bllpipe.data.loader import ImageSource, LabelSource, PrefetchedImages
from bllpipe.messages import messages
from tests.gpu.machines import needs_gpus
from tests.unit.data.test_loader import LABELS, PLAN, arrays

pytestmark = [needs_gpus(1), pytest.mark.timeout(60, method="thread")]
CROPPED = AugmentConfig(crop_padding=2, flip=True, rotation=0.0)
DATA = DataConfig(name="npz", batch_size=4)


def pairs(config: AugmentConfig, is_ahead: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every batch as a CPU and as a GPU makes it."""
    gpu, images = torch.device("cuda", 0), MemoryImages(arrays(), DATA)
    moved = PrefetchedImages(images, torch.Tensor.pin_memory) if is_ahead else images.on(gpu)
    here = ImageSource(images, PLAN.rounds(), 0, config)
    there = ImageSource(moved, PLAN.rounds(), 0, config, gpu)
    found = [(here.recv().alpha_BCHW, there.recv().alpha_BCHW) for _ in messages(PLAN.rounds())]
    assert all(other.is_cuda for _, other in found)
    return [(one, other.cpu()) for one, other in found]


def test_crops_and_flips_are_the_same_bit_for_bit() -> None:
    for is_ahead in (False, True):
        for one, other in pairs(CROPPED, is_ahead):
            # multiplied and added in one rounding on a GPU; the pixels themselves are the same
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)
            std, mean = MemoryImages(arrays(), DATA).std[0], MemoryImages(arrays(), DATA).mean[0]
            pixels = [((each * std + mean) * 255).round().to(torch.uint8) for each in (one, other)]
            assert torch.equal(*pixels)


def test_rotations_are_the_same_up_to_rounding() -> None:
    for one, other in pairs(AugmentConfig(crop_padding=0, flip=False, rotation=20.0), False):
        assert (one - other).abs().mean() < 0.02 * one.abs().mean().clamp(min=1e-3)


def test_labels_are_the_same() -> None:
    gpu = torch.device("cuda", 0)
    here, there = (LabelSource(LABELS, PLAN.rounds(), 0, device) for device in (torch.device("cpu"), gpu))
    for _ in messages(PLAN.rounds()):
        assert torch.equal(here.recv().label_B, there.recv().label_B.cpu())
