"""What is written is what is read, to the bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bllpipe.checkpoint import open_checkpoint
from bllpipe.errors import CheckpointError
from tests.support.checkpoint_samples import DTYPES, bits, reseal, sample, tree, write_checkpoint


def written_and_read(tmp_path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return open_checkpoint(write_checkpoint(tmp_path, 1, {0: tensors})).tensors()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (48,), dtype=torch.uint8)
    values = values if dtype is torch.bool else values * 255 ^ torch.arange(48, dtype=torch.uint8)
    tensor = values.view(dtype).reshape(2, -1)
    found = written_and_read(tmp_path, {"x": tensor})["x"]
    assert found.dtype == dtype and found.shape == tensor.shape and bits(found) == bits(tensor)


def test_nan_payloads_and_signed_zeros_survive(tmp_path: Path) -> None:
    tensor = torch.tensor([0x7FC12345, -0x80000000, 0x7F800000, 1], dtype=torch.int32).view(torch.float32)
    assert bits(written_and_read(tmp_path, {"x": tensor})["x"]) == bits(tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1)], ids=str)
def test_scalars_and_empty_tensors_keep_their_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    found = written_and_read(tmp_path, {"x": torch.ones(shape), "y": torch.ones(shape)})
    assert found["x"].shape == found["y"].shape == shape


def test_views_strides_and_parameters_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    weight = nn.Parameter(base.clone())
    tensors = {
        "transposed": base.transpose(0, 1),
        "channels_last": base.to(memory_format=torch.channels_last),
        "row": base[1],
        "expanded": base[0, 0, 0].expand(5, 2),
        "conjugated": torch.complex(base, base).conj(),
        "negated": torch.complex(base, base).conj().imag,
        "parameter": weight,
    }
    found = written_and_read(tmp_path, tensors)
    assert all(torch.equal(found[name], tensor.detach()) for name, tensor in tensors.items())
    assert weight.requires_grad and not found["parameter"].requires_grad


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    found = written_and_read(tmp_path, {"tied": weight, "same": weight, "front": weight[:3], "back": weight[3:]})
    assert torch.equal(found["tied"], weight) and torch.equal(found["same"], weight)
    assert found["front"].tolist() == [0, 1, 2] and found["back"].tolist() == [3, 4, 5]
    found["tied"].zero_()
    assert torch.equal(found["same"], weight)


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write_checkpoint(tmp_path / name, 7, attempt=name) for name in ("one", "two"))
    assert list(tree(one)) == list(tree(two)) and len(list(tree(one))) == 5
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in tree(one))


def test_no_file_is_more_private_than_the_umask_says(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {path.stat().st_mode & 0o666}


def test_the_ranks_are_merged_and_a_prefix_selects(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, 120))
    assert (checkpoint.step, checkpoint.world_size, checkpoint.path.name) == (120, 2, "step-00000120")
    assert checkpoint.tensors().keys() == sample(0, 120).keys() | sample(1, 120).keys()
    assert checkpoint.tensors("block1.").keys() == sample(1, 120).keys()
    assert checkpoint.tensors("none") == {}
    assert torch.equal(checkpoint.tensors()["block1.weight"], sample(1, 120)["block1.weight"])
    assert checkpoint.metadata() == [{"rank": 0, "step": 120}, {"rank": 1, "step": 120}]


def test_what_was_read_outlives_the_files(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1)
    found = open_checkpoint(path).tensors()
    for rank in range(2):
        (path / f"rank-{rank}.safetensors").write_bytes(b"")
    assert torch.equal(found["block0.weight"], sample(0, 1)["block0.weight"])


def test_a_tensor_in_two_ranks_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, {rank: {"a": torch.ones(1), "b": torch.ones(1)} for rank in range(2)})
    with pytest.raises(CheckpointError, match="rank 1 and a rank before it both hold 'a', 'b'"):
        open_checkpoint(path).tensors()


def test_names_can_be_read_alone(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1)
    assert sorted(open_checkpoint(path).names()) == sorted(open_checkpoint(path).tensors())
    (path / "rank-0.safetensors").write_bytes(b"no tensors")
    reseal(path)
    with pytest.raises(CheckpointError, match="rank-0.safetensors is not a safetensors file that can be read"):
        open_checkpoint(path).names()
