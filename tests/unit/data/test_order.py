"""The order of the training images: a permutation that depends on seed and epoch, and on nothing else."""

import pytest
import torch

from bllpipe.data.loader import batch_index, epoch_order


@pytest.mark.parametrize("num_train", [1, 2, 10, 257])
@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_is_a_permutation(num_train: int, epoch: int) -> None:
    order = epoch_order(5, epoch, num_train)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(num_train))


def test_other_random_draws_do_not_change_the_order() -> None:
    first = epoch_order(5, 1, 100)
    torch.manual_seed(1)
    torch.rand(7)
    assert torch.equal(first, epoch_order(5, 1, 100))


def test_every_seed_and_every_epoch_has_its_own_order() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_batches_of_an_epoch_are_disjoint_and_stand_in_its_order() -> None:
    order = epoch_order(0, 0, 23)
    batches = [batch_index(order, batch, 5) for batch in range(4)]
    assert [len(index_B) for index_B in batches] == [5, 5, 5, 5]
    assert torch.cat(batches).tolist() == order[:20].tolist()
    assert len(set(torch.cat(batches).tolist())) == 20
