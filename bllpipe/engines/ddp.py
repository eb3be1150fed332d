"""Engine ``ddp``: data parallelism. Every rank holds the whole network and learns from its share of every batch, and
DistributedDataParallel averages the gradients: the baseline for every pipeline.

Shapes: B images of the whole batch, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bllpipe.config import Config
from bllpipe.data.loader import LabelSource
from bllpipe.data.registry import load_images, load_labels
from bllpipe.distributed.process_group import wait_for_all
from bllpipe.engines import Options
from bllpipe.engines.build import build_job_segment
from bllpipe.engines.ports import image_port
from bllpipe.engines.synchronous import RankContext, StageTrainer, run_synchronous
from bllpipe.learn.block import Outcome
from bllpipe.messages import Alpha, Phase, Receiver, Round, Target
from bllpipe.models.units import one_row_each
from bllpipe.training.loops import LearnerLoop, Loop
from bllpipe.training.timing import Meter, Metered


def run(config: Config, options: Options) -> int:
    """Trains ``config`` together with the other replicas."""
    return run_synchronous(config, options, build_loop)


class ReplicaLoop(LearnerLoop):
    """Replica ``number`` of ``num_replicas``. Replica 0 is the one that is tested and saved; all have the same
    parameters, but BatchNorm's statistics are those of a replica's own images.

    ``images`` and ``labels`` are whole batches, so that augmentation is the same for any number of replicas.
    """

    def __init__(
        self,
        trainer: StageTrainer,
        replica: Callable[[Tensor], Tensor],
        images: Receiver[Alpha],
        labels: Receiver[Target],
        number: int,
        num_replicas: int,
    ) -> None:
        self.trainer, self.replica, self.images, self.labels = trainer, replica, images, labels
        self.number, self.num_replicas = number, num_replicas
        (self.segment,), self.learner = trainer.segments, trainer.learner

    def run(self, entry: Round) -> Outcome | None:
        if entry.phase == "score":
            wait_for_all()  # or the next step of the others would seem to last as long as the test
        return super().run(entry)

    def train(self, entry: Round) -> Outcome:
        image_BCHW, label_B = self._own(self.images.recv().alpha_BCHW), self._own(self.labels.recv().label_B)
        self.trainer.mode(train=True)
        self.trainer.zero_grad()
        with self.learner.autocast():
            scores_BK = one_row_each(self.replica(self.trainer.laid_out(image_BCHW)), image_BCHW, self.segment)
        loss = self.trainer.loss(scores_BK, label_B)
        loss.backward()
        lr = self.trainer.step(entry.step)
        outcome = self.trainer.outcome(scores_BK, label_B, loss, lr)
        return Outcome(outcome.terms, outcome.correct * self.num_replicas, lr)  # as if the other shares were like ours

    @torch.no_grad()
    def evaluate(self, entry: Round) -> Outcome | None:
        if self.number > 0:
            return None
        self.trainer.mode(train=False)
        image_BCHW, label_B = self.images.recv().alpha_BCHW, self.labels.recv().label_B
        with self.learner.autocast():
            scores_BK = one_row_each(self.segment(self.trainer.laid_out(image_BCHW)), image_BCHW, self.segment)
        return self.trainer.outcome(scores_BK, label_B, self.trainer.loss(scores_BK, label_B))

    def _own(self, batch: Tensor) -> Tensor:
        return batch.chunk(self.num_replicas)[self.number]

    def weights(self) -> dict[str, Tensor]:
        """All of replica 0; of the others the parameters alone, so that a digest shows whether they are equal."""
        return self.learner.weights() if self.number == 0 else dict(self.learner.parameters)

    def state(self) -> dict[str, Tensor]:
        return self.learner.state() if self.number == 0 else {}


def build_loop(context: RankContext) -> tuple[Loop, list[Metered]]:
    """The loop of a replica. It waits for the others in the backward pass, so that time counts as computing."""
    job, config = context.job, context.job.config
    segment = build_job_segment(job, context.store, 0, context.device)
    trainer = StageTrainer([segment], config, job.schedule.total_steps, add_up=lambda square: square)
    images = context.images or load_images(config.data, config.seed)
    phases: tuple[Phase, ...] = ("train", "evaluate") if context.rank == 0 else ("train",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the new name of this option is younger than our oldest torch
        network = DistributedDataParallel(segment, broadcast_buffers=False)  # buffers stay those of the rank
    replica = MeteredReplica(network, job.topology.num_blocks)
    loop = ReplicaLoop(
        trainer,
        replica,
        image_port(job, images, context.device, phases),
        LabelSource(load_labels(config.data, config.seed), job.rounds(*phases), config.seed, context.device),
        context.rank,
        job.topology.num_blocks,
    )
    return loop, [replica]


class MeteredReplica:
    """A network that averages its gradients, and counts the bytes that each of ``num_replicas`` sends in a step."""

    def __init__(self, network: DistributedDataParallel, num_replicas: int) -> None:
        self._network, self.meter = network, Meter("other replicas")
        self._sent_bytes = ring_bytes(gradient_bytes(network), num_replicas)

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        self.meter.sent += self._sent_bytes
        scores_BK: Tensor = self._network(image_BCHW)
        return scores_BK


def gradient_bytes(network: nn.Module) -> int:
    """The bytes of the gradients of all parameters that are trained."""
    return sum(p.nbytes for p in network.parameters() if p.requires_grad)


def ring_bytes(num_bytes: int, num_replicas: int) -> int:
    """What each of ``num_replicas`` sends when gradients of ``num_bytes`` are averaged in a ring: two rounds of all
    shares but one."""
    return 2 * (num_replicas - 1) * num_bytes // num_replicas
