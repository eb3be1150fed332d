"""The algorithm (paper, figure 2): the work of a block and of its feedback in every round.

A loop knows ports, not links; it holds no timing, no logging and no device code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor

from bllpipe.errors import CheckpointError
from bllpipe.learn.block import Block, Outcome
from bllpipe.learn.draws import NOT_SEEDED, Draws
from bllpipe.learn.feedback import Feedback
from bllpipe.learn.optimizer import Learner
from bllpipe.messages import ONE_PASS, Alpha, Passes, Receiver, Round, Sender, Stats, Target
from bllpipe.utils.tensors import restore
from bllpipe.utils.tree_sum import Sums, TreeSum


class Loop(Protocol):
    """One actor of the pipeline. ``run`` does its part of one round."""

    def run(self, entry: Round) -> Outcome | None: ...

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers: what ``state_sha256`` covers."""

    def state(self) -> dict[str, Tensor]:
        """``weights`` and everything else that a checkpoint holds."""

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Restores its own tensors, those after ``step`` steps; what ``state`` lacks is not changed. Before ``run``."""


class LearnerLoop(Loop, Protocol):
    """A loop that trains one learner: that of a block, of the stages of a rank, or of a replica."""

    learner: Learner

    def train(self, entry: Round) -> Outcome | None:
        """One training step."""

    def evaluate(self, entry: Round) -> Outcome | None:
        """One test batch."""

    def run(self, entry: Round) -> Outcome | None:
        match entry.phase:
            case "train":
                return self.train(entry)
            case "evaluate":
                return self.evaluate(entry)
            case _:
                return None

    def weights(self) -> dict[str, Tensor]:
        return self.learner.weights()

    def state(self) -> dict[str, Tensor]:
        return self.learner.state()

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        self.learner.load(state)


class Replicas(Protocol):
    """The replicas of a block."""

    def total(self, own: TreeSum) -> Sums:
        """The sum of the trees of all replicas, the same in each; nothing for one that has no shard of the batch."""


class OneReplica:
    """The replicas of a block that has one."""

    def total(self, own: TreeSum) -> Sums:
        return own.total()


ONE_REPLICA = OneReplica()


class BlockLoop(LearnerLoop):
    """Block k: alpha_k = f_k(alpha_{k-1}), and one step on its local loss.

    A batch goes through the block in ``passes``, one after another. The step is along the sum of their gradients over
    all ``replicas``. ``draws`` are the random numbers of its layers and of its loss.
    """

    def __init__(
        self,
        block: Block,
        inputs: Receiver[Alpha],
        targets: Receiver[Target],
        alphas: Sender[Alpha],
        stats: Sender[Stats],
        passes: Passes = ONE_PASS,
        replicas: Replicas = ONE_REPLICA,
        draws: Draws = NOT_SEEDED,
    ) -> None:
        self.block, self.inputs, self.targets, self.alphas, self.stats = block, inputs, targets, alphas, stats
        self.learner, self.passes, self.replicas, self.draws = block.learner, passes, replicas, draws

    def train(self, entry: Round) -> Outcome:
        own = TreeSum(self.passes.number(entry))
        for number, shard in self.passes.own_of(entry):
            received = self.inputs.recv()
            with self.draws.of("forward", entry.step, number):
                alpha_BCHW = self.block.forward(received.alpha_BCHW)
            self.alphas.send(Alpha(shard, alpha_BCHW))  # before backward: the next block never waits for ours
            target = self.targets.recv()
            # before backward too: statistics do not depend on it
            self.stats.send(Stats(shard, *self.block.stats(alpha_BCHW, target.label_B)))
            with self.draws.of("loss", entry.step, number):
                sums = self.block.learn(alpha_BCHW, target, shard.size / entry.size)
            own.add(number, sums)
        return self.block.step(self.replicas.total(own), entry.step)

    def evaluate(self, entry: Round) -> Outcome | None:
        own = TreeSum(self.passes.number(entry))
        for number, shard in self.passes.own_of(entry):
            received = self.inputs.recv()
            alpha_BCHW = self.block.infer(received.alpha_BCHW)
            scores_BK = self.block.scores(alpha_BCHW)
            votes_BK = self.block.vote(scores_BK, received.votes_BK)  # None without evaluate.ensemble
            self.alphas.send(Alpha(shard, alpha_BCHW, votes_BK))
            share, target = shard.size / entry.size, self.targets.recv()
            own.add(number, self.block.score(alpha_BCHW, scores_BK, target, votes_BK, share))
        total = self.replicas.total(own)
        return self.block.outcome(total) if total else None


class FeedbackLoop:
    """The feedback of block k: beta_k = g_k(y), where g_k has absorbed the statistics up to step t - lag.

    Every shard of a batch has a target of its own. Every one of its ``passes`` through the block has statistics, which
    are added up in the order of shards. The loop exchanges messages with one block only, so a slow block delays no
    other. The lag is fixed and does not depend on which messages have arrived, so runs are reproducible.
    """

    def __init__(
        self,
        name: str,
        feedback: Feedback,
        labels: Iterator[Tensor],
        targets: Sender[Target],
        stats: Receiver[Stats],
        lag: int,
        passes: Passes = ONE_PASS,
    ) -> None:
        self.name, self.feedback, self.labels = name, feedback, labels
        self.targets, self.stats, self.lag, self.passes = targets, stats, lag, passes
        self._ahead: deque[tuple[Tensor, Tensor]] = deque()  # statistics that a checkpoint holds, not absorbed yet
        self._next = 0  # the step whose statistics are absorbed next

    def run(self, entry: Round) -> Outcome | None:
        if entry.phase == "train":
            while self._next <= entry.step - self.lag:
                self.feedback.absorb(*(self._ahead.popleft() if self._ahead else self._received_stats()))
                self._next += 1
        if entry.has_messages:
            shards = entry.shards(self.passes.num_shards)
            labels = next(self.labels).split([shard.size for shard in shards])
            beta_KC, known_K = self.feedback.table()
            for shard, label_B in zip(shards, labels, strict=True):
                self.targets.send(Target(shard, beta_KC[label_B], known_K[label_B], label_B))
        if entry.phase in ("save", "end"):
            # A checkpoint holds the statistics that are not absorbed yet; at the end their sender waits until they are
            # received.
            while self._next + len(self._ahead) < entry.step:
                sums_KC, counts_K = self._received_stats()
                self._ahead.append((sums_KC.clone(), counts_K.clone()))
        return None

    def _received_stats(self) -> tuple[Tensor, Tensor]:
        """The statistics of one step; they stay valid until the next call."""
        stats = self.stats.recv()
        sums_KC, counts_K = stats.sums_KC, stats.counts_K
        if len(self.passes.shards) > 1:  # the next message may overwrite them
            sums_KC, counts_K = sums_KC.clone(), counts_K.clone()
        for _ in self.passes.shards[1:]:
            stats = self.stats.recv()
            sums_KC += stats.sums_KC
            counts_K += stats.counts_K
        return sums_KC, counts_K

    def weights(self) -> dict[str, Tensor]:
        return {f"feedback.{self.name}.{key}": value for key, value in self.feedback.state().items()}

    def state(self) -> dict[str, Tensor]:
        named = self.weights()
        for age, statistics in enumerate(self._ahead):
            named |= zip(self._ahead_names(age), statistics, strict=True)
        return named

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Statistics in ``state`` that are not absorbed are those of the last steps before ``step``. They are left out
        if weights are missing: the feedback starts fresh, and its block does not send statistics of earlier steps
        again."""
        own = self.weights()
        restore(own, state)
        has_weights = own.keys() <= state.keys()
        while has_weights:
            sums, counts = self._ahead_names(len(self._ahead))
            if sums not in state:
                break
            if counts not in state:
                raise CheckpointError(f"the checkpoint holds {sums}, but not {counts}; name another checkpoint")
            beta_KC, known_K = self.feedback.table()  # of the same shapes, or restore raises CheckpointError
            ahead = {sums: beta_KC.clone(), counts: known_K.clone()}
            restore(ahead, state)
            self._ahead.append((ahead[sums], ahead[counts]))
        self._next = step - len(self._ahead)

    def _ahead_names(self, age: int) -> tuple[str, str]:
        """The names of sums and counts in a checkpoint that are not absorbed yet; age 0 is the oldest."""
        return f"ahead.{self.name}.{age}.sums", f"ahead.{self.name}.{age}.counts"
