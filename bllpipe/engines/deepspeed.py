"""Engine ``deepspeed``: backpropagation through stages, one a rank, in the 1F1B schedule of DeepSpeed's PipelineEngine.

DeepSpeed computes, and exchanges activations and gradients. What follows the last backward pass (clipping, the update)
is bllpipe's as in every other engine, so its optimiser is a dummy and two of its instructions do nothing.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from bllpipe.config import Config
from bllpipe.engines import Options
from bllpipe.engines.pipeline_stages import Schedule, StageModule, build_stage_loop, microbatch_size
from bllpipe.engines.synchronous import RankContext, StageTrainer, run_synchronous

SHARED_MEMORY_OP = "deepspeed_shm_comm"
Loss = Callable[[Tensor, Tensor], Tensor]


def run(config: Config, options: Options) -> int:
    """Trains ``config`` together with the other ranks."""
    return run_synchronous(config, options, build_loop)


def deepspeed_schedule(
    context: RankContext, trainer: StageTrainer, modules: Sequence[StageModule]
) -> tuple[Schedule, Sequence[object]]:
    """The schedule of this rank's one stage, which is also what computes in it."""
    (module,) = modules
    schedule = EngineSchedule(context, module, trainer.loss)
    return schedule, [schedule]


def pipeline_engine(context: RankContext, module: StageModule, loss: Loss) -> Any:
    """A PipelineEngine over the process group that is open already. All ranks build theirs at the same time."""
    num_stages = context.job.topology.num_stages
    settings = {
        "train_micro_batch_size_per_gpu": microbatch_size(context.job),
        "gradient_accumulation_steps": context.job.config.pipeline.microbatches,
    }
    logging.getLogger("DeepSpeed").disabled = True  # it logs to stdout; failures raise
    with redirect_stdout(io.StringIO()):  # and it prints
        deepspeed = _deepspeed_on(context.device)
        # A rank builds the layer at its own position only: the others in the list are not used.
        network = deepspeed.PipelineModule(
            [module] * num_stages, num_stages=num_stages, loss_fn=loss, partition_method="uniform"
        )
        dummy = torch.optim.SGD(network.parameters(), lr=0.0)
        network.to(memory_format=torch.contiguous_format)  # DeepSpeed broadcasts parameters as bytes, by a view
        engine = deepspeed.initialize(model=network, optimizer=dummy, config=settings)[0]
        if module.channels_last:
            network.to(memory_format=torch.channels_last)
        return engine


def _deepspeed_on(device: torch.device) -> Any:
    """The package, set up for the default process group, and for CPUs if ``device`` is one even if there is a GPU. A
    GPU is the one of LOCAL_RANK, in DeepSpeed as in bllpipe."""
    import deepspeed
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    on_gpu = device.type == "cuda"
    set_accelerator(CUDA_Accelerator() if on_gpu else CPU_Accelerator())
    # Reductions through shared memory, which a pipeline has none of; a C++ compiler would have to build them first.
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")
    return deepspeed


class EngineSchedule:
    """A PipelineEngine as a Schedule, and as the stage that computes in it: forward and backward passes have the names
    of torch's PipelineStage, which are timed and traced.

    DeepSpeed divides the loss of a microbatch by their number, so gradients are those of the mean over the batch.
    """

    def __init__(self, context: RankContext, module: StageModule, loss: Loss) -> None:
        self._loss, self._scores = loss, list[Tensor]()
        self._engine = pipeline_engine(context, module, self._remember)
        self._engine._INSTRUCTION_MAP = {**self._engine._INSTRUCTION_MAP, **self._instructions()}

    def step(self, *images: Tensor, target: Tensor | None = None, losses: list[Tensor] | None = None) -> Tensor | None:
        self._scores.clear()
        self._engine.train_batch(zip(self._chunks(*images), self._chunks(target), strict=False))
        if target is None or losses is None:
            return None
        losses.extend(self._engine.fwd_outputs)
        return torch.cat(self._scores)

    def forward_one_chunk(self, buffer_id: int) -> None:
        self._engine._exec_forward_pass(buffer_id)

    def backward_one_chunk(self, buffer_id: int) -> None:
        self._engine._exec_backward_pass(buffer_id)

    def _instructions(self) -> dict[type, Callable[..., None]]:
        """Replacements of DeepSpeed's own. ReduceGrads averages over replicas: here there is one, but it would still
        copy all gradients, and give parameters without a gradient a gradient of zeros."""
        from deepspeed.runtime.pipe.schedule import BackwardPass, ForwardPass, OptimizerStep, ReduceGrads

        return {
            ForwardPass: lambda _, buffer_id: self.forward_one_chunk(buffer_id),
            BackwardPass: lambda _, buffer_id: self.backward_one_chunk(buffer_id),
            ReduceGrads: lambda _: None,
            OptimizerStep: lambda _: None,
        }

    def _chunks(self, batch: Tensor | None = None) -> Iterator[Tensor | None]:
        """The microbatches of the images, which the first stage reads of a pair, or of the labels, which the last one
        reads; None for those of another rank."""
        return repeat(None) if batch is None else iter(batch.chunk(self._engine.micro_batches))

    def _remember(self, scores_BK: Tensor, label_B: Tensor) -> Tensor:
        """The loss of a microbatch. Its scores are kept here: DeepSpeed hands over those of the last one only."""
        self._scores.append(scores_BK.detach())
        return self._loss(scores_BK, label_B)


build_loop = partial(build_stage_loop, make_schedule=deepspeed_schedule)
