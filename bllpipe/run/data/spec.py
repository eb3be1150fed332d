"""What every rank has to know about the data, without having any of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class DataSpec:
    """Sizes of a data set: image counts of both splits, the shape [C, H, W] of one image, the number of classes."""

    num_train: int
    num_test: int
    image_shape: tuple[int, int, int]
    num_classes: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> DataSpec:
        fields = json.loads(text)
        return cls(**{**fields, "image_shape": tuple(fields["image_shape"])})
