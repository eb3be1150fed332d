"""Digests change with anything that matters, and with nothing else."""

import hashlib

import pytest
import torch
from torch import Tensor, nn

from bllpipe.utils.tensors import part_digest, state_sha256
from tests.support.checkpoint_samples import DTYPES


def state() -> dict[str, Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7), "none": torch.empty(0, 2)}


def changed(**tensors: Tensor) -> str:
    return part_digest({**state(), **tensors})


def test_the_bytes_are_those_that_the_docstring_says() -> None:
    head = b'["x", "torch.int16", [2]]\n'
    assert part_digest({"x": torch.tensor([1, 258], dtype=torch.int16)}) == sha256(head + b"\x01\x00\x02\x01")
    assert part_digest({}) == sha256(b"")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_has_a_digest_of_every_bit(dtype: torch.dtype) -> None:
    raw = torch.zeros(16, dtype=torch.uint8)
    digests = {part_digest({"x": raw.view(dtype)})}
    for bit in (0, 63, 127) if dtype is not torch.bool else (0, 8, 120):
        flipped = raw.clone()
        flipped[bit // 8] = 1 << bit % 8
        digests.add(part_digest({"x": flipped.view(dtype)}))
    assert len(digests) == 4


def test_signed_zeros_and_nans_count() -> None:
    nans = [torch.tensor([value], dtype=torch.int32).view(torch.float32) for value in (0x7FC00000, 0x7FC00001)]
    assert len({part_digest({"x": value}) for value in (torch.tensor([0.0]), torch.tensor([-0.0]), *nans)}) == 4


def test_name_shape_and_dtype_count() -> None:
    base = state()
    digests = [
        part_digest(base),
        part_digest({"Weight" if name == "weight" else name: tensor for name, tensor in base.items()}),
        changed(weight=base["weight"].reshape(3, 2)),
        changed(weight=base["weight"].view(torch.int32)),
        changed(steps=base["steps"].reshape(1)),
        changed(none=torch.empty(2, 0)),
        changed(none=torch.empty(0, 2, dtype=torch.int32)),
        changed(more=torch.empty(0)),
    ]
    assert len(set(digests)) == len(digests)


def test_no_name_can_imitate_another_tensor() -> None:
    two = {"a": torch.empty(0), "b": torch.empty(0)}
    assert part_digest({'a", "torch.float32", [0]]\n["b': torch.empty(0)}) != part_digest(two)


def test_order_strides_and_autograd_do_not_count() -> None:
    base = state()
    assert part_digest(dict(reversed(base.items()))) == part_digest(base)
    assert changed(weight=base["weight"].t().contiguous().t()) == part_digest(base)
    assert changed(weight=torch.stack([base["weight"], base["weight"] + 1], dim=-1)[..., 0]) == part_digest(base)
    assert changed(weight=nn.Parameter(base["weight"])) == part_digest(base)
    assert changed(weight=torch.complex(base["weight"], base["weight"]).conj().imag) == changed(weight=-base["weight"])
    image = torch.randn(2, 3, 4, 5)
    assert part_digest({"x": image}) == part_digest({"x": image.to(memory_format=torch.channels_last)})


def test_the_digest_of_a_state_is_that_of_its_parts_in_order() -> None:
    parts = [part_digest({"x": torch.tensor([value])}) for value in range(3)]
    assert state_sha256(parts) == sha256("\n".join(parts).encode())
    assert len({state_sha256(parts), state_sha256(parts[::-1]), state_sha256(parts[:2]), state_sha256([])}) == 4
