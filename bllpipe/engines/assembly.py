"""Putting a rank of a local engine together: its loops, and the ports they use."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bllpipe.engines.books import make_actor, make_part
from bllpipe.engines.edges import ActorPorts, Dress, Nowhere, Wires, image_port, rounds_of, undressed
from bllpipe.engines.gpu import speed_up
from bllpipe.engines.job import Job, input_shape, shape_of, unit_names, warn_of_draws, width_for_heads
from bllpipe.learn.batch_norms import without_cudnn
from bllpipe.learn.block import Block, make_block
from bllpipe.learn.channels import num_channels
from bllpipe.learn.families import FAMILIES
from bllpipe.learn.feedback import make_feedback
from bllpipe.learn.units import Segment
from bllpipe.ports import Alpha, Receiver
from bllpipe.run.data.sets import ImageSet, LabelSet
from bllpipe.run.data.source import LabelSource, label_batches
from bllpipe.run.loops import BlockLoop, LaneLoop, Loop
from bllpipe.run.rank import Actor, RankPart
from bllpipe.topology import Edge


class Assembly:
    """Builds the parts of a job over the given wires. ``dress`` may wrap every port, to delay messages for example;
    ``ahead`` gives the images a thread of their own; ``beside_nccl`` says that messages wait on the blocks' GPUs."""

    def __init__(
        self, job: Job, wires: Wires, dress: Dress = undressed, ahead: bool = False, beside_nccl: bool = False
    ) -> None:
        self.job, self.wires, self.dress, self.ahead, self.beside_nccl = job, wires, dress, ahead, beside_nccl

    def block_part(self, rank: int, segment: Segment, device: torch.device, images: ImageSet | None) -> RankPart:
        """The rank of one block; the first one has the images."""
        job, ports = self.job, self._ports()
        loop = BlockLoop(
            self._block(rank, segment),
            inputs=image_port(job, images, device, ahead=self.ahead) if images else self._alphas_before(rank, ports),
            targets=self._receiver(ports, job.topology.target_edge(rank)),
            alphas=ports.sender(job.topology.alpha_edge(rank)),
            stats=ports.sender(job.topology.stats_edge(rank)),
        )
        return make_part(self.job, rank, [self._actor(rank, f"block {rank}", loop, ports, device)])

    def whole_part(self, segment: Segment, device: torch.device, images: ImageSet, labels: LabelSet) -> RankPart:
        """The only rank of a network that learns end to end: it has images and labels, and nobody to tell."""
        rounds, nowhere = self.job.messages("train", "evaluate"), Nowhere()
        loop = BlockLoop(
            self._block(0, segment),
            inputs=image_port(self.job, images, device, ahead=self.ahead),
            targets=LabelSource(labels, rounds, self.job.config.seed, device),
            alphas=nowhere,
            stats=nowhere,
        )
        return make_part(self.job, 0, [self._actor(0, "block 0", loop, self._ports(), device)])

    def feedback_part(self, labels: LabelSet, device: torch.device) -> RankPart:
        """The feedback rank: a lane for every block."""
        lanes = [self._lane(block, name, labels, device) for block, name in enumerate(unit_names(self.job))]
        return make_part(self.job, self.job.topology.feedback_rank, lanes)

    def _lane(self, block: int, name: str, labels: LabelSet, device: torch.device) -> Actor:
        job, ports, config = self.job, self._ports(), self.job.config
        channels, family = num_channels(shape_of(job, block)), FAMILIES[config.objective.family]
        loop = LaneLoop(
            name,
            make_feedback(config.feedback, job.spec.num_classes, channels, config.seed, name, device, family),
            labels=(label_B for _, label_B in label_batches(labels, job.rounds(), config.seed, device)),
            targets=ports.sender(job.topology.target_edge(block)),
            stats=self._receiver(ports, job.topology.stats_edge(block)),
            lag=config.feedback.lag,
        )
        return self._actor(job.topology.feedback_rank, f"lane {block}", loop, ports, device)

    def _block(self, rank: int, segment: Segment) -> Block:
        job = self.job
        shapes = input_shape(job, rank), shape_of(job, rank)
        is_last = rank == job.topology.num_blocks - 1
        sizes = job.spec.num_classes, job.plan.total_steps
        block = make_block(segment, *shapes, job.config, *sizes, is_last, width_for_heads(job))
        if rank == 0 and isinstance(block.objective, nn.Module):
            warn_of_draws(dict(block.objective.named_children()), "the objective")
        if self.beside_nccl and block.channels_last and not job.config.gpu.compile:  # a compiler has kernels of its own
            for part in (block.segment, block.local):
                without_cudnn(part)
        return speed_up(block, job.config)

    def _ports(self) -> ActorPorts:
        return ActorPorts(self.job, self.wires, self.dress)

    def _alphas_before(self, rank: int, ports: ActorPorts) -> Receiver[Alpha]:
        edge = self.job.topology.alpha_edge(rank - 1)
        assert edge is not None, "a block without images has one before it"
        return self._receiver(ports, edge)

    def _receiver(self, ports: ActorPorts, edge: Edge) -> Receiver[Any]:
        return ports.receiver(edge, rounds_of(self.job, edge))

    def _actor(self, rank: int, name: str, loop: Loop, ports: ActorPorts, device: torch.device) -> Actor:
        return make_actor(self.job, rank, self.job.topology.role(rank), name, loop, ports.opened, device)
