"""NumPy archives as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bllpipe.run.data.archive import Archive, open_archive
from bllpipe.run.data.sets import Arrays, LabelSet


def read_arrays(path: str) -> Arrays:
    """Images and labels of both splits."""
    archive = open_archive(path)
    labels = _labels(archive)
    train_NCHW, test_NCHW = _images(archive, "train_x"), _images(archive, "test_x")
    return Arrays(train_NCHW, labels.train_N, test_NCHW, labels.test_N, labels.num_classes)


def read_labels(path: str) -> LabelSet:
    """The labels alone; the images stay on disk."""
    return _labels(open_archive(path))


def _labels(archive: Archive) -> LabelSet:
    return LabelSet(torch.from_numpy(archive.train_N), torch.from_numpy(archive.test_N), archive.spec.num_classes)


def _images(archive: Archive, name: str) -> Tensor:
    """uint8 [N, C, H, W]."""
    images = torch.from_numpy(np.ascontiguousarray(archive.images(name)))
    return (images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)).contiguous()
