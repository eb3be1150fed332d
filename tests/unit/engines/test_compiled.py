"""Parts that are compiled stay compiled: any number of blocks, batches of another size, run after run. What torch will
not compile is an error that names the key. The backend is torch's own for tests: it counts, and makes no code."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._dynamo import graph_break
from torch._dynamo.utils import counters

from bllpipe.config import load_config
from bllpipe.errors import ConfigError
from bllpipe.learn import cuda_graphs
from bllpipe.learn.block import Block, build_segments, make_block
from bllpipe.learn.cuda_graphs import MAX_RECOMPILATIONS, compile_part, compile_parts, forget_compiled
from bllpipe.messages import Round, Target
from bllpipe.models.partition import cut
from bllpipe.models.resnet import resnet_units

CPU, CLASSES = torch.device("cpu"), 10
FULL, LAST = 6, 3  # images of a batch, and of the last one of a test


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    forget_compiled()
    counters.clear()
    yield
    forget_compiled()


def graphs() -> int:
    """That were compiled since the test began."""
    return counters["stats"]["unique_graphs"]


def chain(num_blocks: int) -> list[Block]:
    """A ResNet-18 in blocks, compiled."""
    blocks: list[Block] = []
    parts, config = cut(resnet_units("resnet18", 4, "cifar", 1, CLASSES), num_blocks), load_config(None)
    for segment, given, made in build_segments(parts, config, (1, 8, 8), CPU):
        block = make_block(segment, given, made, config, CLASSES, 100, is_last=len(blocks) == len(parts) - 1)
        compile_parts(block, backend="eager")
        blocks.append(block)
    return blocks


def target_of(alpha: Tensor) -> Target:
    size = len(alpha)
    return Target(Round("train", 0, size=size), torch.zeros(size, alpha.shape[1]), torch.ones(size), torch.arange(size))


def train(blocks: list[Block], step: int) -> None:
    x = torch.randn(FULL, 1, 8, 8)
    for block in blocks:
        alpha = block.forward(x)
        block.update(alpha, target_of(alpha), step)
        x = alpha.detach()


def evaluate(blocks: list[Block], size: int) -> None:
    x = torch.randn(size, 1, 8, 8)
    for block in blocks:
        x = block.infer(x)
        block.score(x, block.scores(x), target_of(x))


def learn(blocks: list[Block], num_epochs: int) -> int:
    """Steps and tests, whose last batch is smaller; the graphs that were compiled for it."""
    before = graphs()
    for epoch in range(num_epochs):
        train(blocks, 2 * epoch)
        train(blocks, 2 * epoch + 1)
        evaluate(blocks, FULL)
        evaluate(blocks, LAST)
    return graphs() - before


def test_four_blocks_and_a_smaller_last_batch() -> None:
    """Segments and local losses: for steps, for tests, and for the last batch."""
    blocks = chain(4)
    assert learn(blocks, 1) == 3 * (4 + 4)
    assert learn(blocks, 3) == 0, "nothing is compiled again"


def test_more_blocks_than_torch_compiles_of_one_code() -> None:
    """Eight compilations of ``forward`` were the end once: all later blocks computed in Python, and a log said so."""
    widths = range(2, 2 + dynamo.recompile_limit + 4)
    parts = [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)) for width in widths]
    for number, part in enumerate(parts):
        compile_part(part, f"block {number}", "eager")
    for _ in range(2):
        for part, width in zip(parts, widths, strict=True):
            part.train()(torch.randn(FULL, width))
            part.eval()(torch.randn(FULL, width))
            part(torch.randn(LAST, width))
    assert graphs() == 3 * len(parts)


def test_run_after_run_in_one_process() -> None:
    """Also without forgetting in between; and the parts of a run that is over can go."""
    found = []
    for _ in range(2):
        blocks = chain(2)
        gone = weakref.ref(blocks[0].segment)
        found.append(learn(blocks, 1))
        del blocks
        gc.collect()
        assert gone() is None
    assert found == [3 * (2 + 2)] * 2
    assert dynamo.recompile_limit < 2 * 3 * 2, "of one code: of both blocks of both runs, for steps and two tests"


class Broken(nn.Module):
    """Is compiled in two pieces, whose code it shares with others of its kind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        graph_break()
        return x.relu()


def test_a_network_in_pieces_is_compiled_to_the_last() -> None:
    before = dynamo.recompile_limit, dynamo.fail_on_recompile_limit_hit
    for width in range(2, 18):
        part = nn.Sequential(Broken(width))
        compile_part(part, f"block {width}", "eager")
        part(torch.randn(FULL, width))
    assert graphs() == 2 * 16
    assert (dynamo.recompile_limit, dynamo.fail_on_recompile_limit_hit) == before


def test_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "RECOMPILE_LIMIT", dynamo.recompile_limit)
    before = dynamo.recompile_limit, dynamo.fail_on_recompile_limit_hit
    with pytest.raises(ConfigError, match=r"gpu.compile is true, but .* code of block \d+ 8 times .* --set gpu.comp"):
        for width in range(2, 40):
            part = nn.Sequential(Broken(width))
            compile_part(part, f"block {width}", "eager")
            part(torch.randn(FULL, width))
    assert (dynamo.recompile_limit, dynamo.fail_on_recompile_limit_hit) == before


class Counting(nn.Module):
    """Needs to be compiled in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x * self.steps


def test_a_part_that_is_compiled_in_every_step_is_an_error() -> None:
    part = Counting()
    compile_part(part, "block 3", "eager")
    with pytest.raises(ConfigError, match="but block 3 was compiled 9 times more for inputs that it had before: some"):
        for _ in range(MAX_RECOMPILATIONS + 10):
            part(torch.randn(FULL, 2))
    assert part.steps == MAX_RECOMPILATIONS + 2


def test_the_real_compiler_takes_the_same_way() -> None:
    """Up to the code that it makes: gradients, and nothing compiled twice."""
    plain, part = (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(2))
    part.load_state_dict(plain.state_dict())
    compile_part(part, "block 0", "aot_eager")
    for size in (FULL, LAST, FULL):
        x = torch.randn(size, 4)
        for each in (plain, part):
            each.zero_grad()
            each(x).sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), part.parameters(), strict=True))  # type: ignore[arg-type]  # they have
    assert graphs() == 2
