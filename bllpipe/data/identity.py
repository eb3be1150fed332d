"""By what a run knows its data again when it goes on: the sizes, and a digest of the labels of both splits. The place
of the data does not count, nor do pixels, which take too long to read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from bllpipe.data.catalog import DataSpec


def labels_sha256(train_N: Tensor, test_N: Tensor, names: Iterable[str] = ()) -> str:
    """A digest of the labels, int64 [N], in their order, and of the ``names`` of the images where they have some."""
    digest = hashlib.sha256()
    for labels_N in (train_N, test_N):
        digest.update(f"{len(labels_N)} labels\n".encode())
        digest.update(labels_N.cpu().contiguous().numpy().astype("<i8").tobytes())
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def identity(spec: DataSpec) -> dict[str, Any]:
    """What a checkpoint holds of the data that it was trained on."""
    return {
        "num_train": spec.num_train,
        "num_test": spec.num_test,
        "image_shape": list(spec.image_shape),
        "num_classes": spec.num_classes,
        "labels_sha256": spec.labels_sha256,
    }


def described(record: Mapping[str, Any]) -> str:
    """``64 training and 16 test images [3, 8, 8] of 3 classes, labels 0a1b2c3d``."""
    return (
        f"{record.get('num_train')} training and {record.get('num_test')} test images {record.get('image_shape')} of "
        f"{record.get('num_classes')} classes, labels {str(record.get('labels_sha256'))[:8]}"
    )
