"""A graceful stop: a signal asks for it, all ranks agree on the step, write a checkpoint and exit.

When a stop is requested the ranks are at different rounds, and some wait for messages of others. Therefore

  freeze   every rank posts the number of rounds that its furthest actor has begun, and no actor begins another one
  decide   rank 0 posts the maximum over all ranks: there the run ends
           all ranks continue to that round, write a checkpoint and exit

No rank has passed that round, and every rank receives the messages that it needs to reach it.

Python runs signal handlers in the main thread, between two of its instructions; a receive in C++ delays them. But
``signal.set_wakeup_fd`` sends its byte at once, to the thread of the watchdog.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

from bllpipe.errors import WireError
from bllpipe.messages import Round, Store
from bllpipe.utils.console import print_line
from bllpipe.utils.process import SLICE_SECONDS, Patience

AGREEMENT_SECONDS = 15.0
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
END = "stop/end"  # the key of the number of rounds after which the run ends
# A second signal within so many looks of the watchdog, 3 s on a machine that is not busy, is the same one: terminal and
# launcher both send it. On a busy machine it is heard late, but there the watchdog looks more rarely, too.
LOOKS_OF_ONE_SIGNAL = 15


class StopAgreement:
    """How the ranks of a run agree on its last round, in one process: its actors follow, its watchdog freezes and
    decides. A run that ``saves`` stops with a checkpoint."""

    def __init__(self, agreement_seconds: float = AGREEMENT_SECONDS, saves: bool = True) -> None:
        self._begun: dict[str, int] = {}
        self.is_frozen = False
        self._end = 0
        self._decided = threading.Event()
        self._agreement_seconds, self.saves = agreement_seconds, saves
        self.stopped: Round | None = None  # the round with which a stop ended the run
        self.reason = ""

    def until_stop(self, actor: str, rounds: Iterable[Round], saved: bool) -> Iterator[Round]:
        """The rounds of ``actor`` until the run stops. A stop appends a checkpoint, unless the last round is one;
        ``saved``: the run starts from a checkpoint."""
        last: Round | None = None
        for number, entry in enumerate(rounds):
            self._begun[actor] = number + 1  # before the check: freeze() either sees this round, or is seen here
            if self.is_frozen and number >= self._agreed():
                epoch, tested = (last or entry).epoch, entry.phase not in ("evaluate", "score")
                self.stopped = Round("save" if self.saves else "end", entry.step, epoch, tested=tested)
                if not self.saves or not (saved if last is None else last.phase == "save"):
                    yield self.stopped
                return
            yield entry
            last = entry

    def freeze(self, reason: str) -> int:
        """No actor begins another round; returns the number of rounds that the furthest actor has begun."""
        self.reason = self.reason or reason
        self.is_frozen = True
        return max(self._begun.values(), default=0)

    def decide(self, end: int) -> None:
        """The run ends after ``end`` rounds, counted from the start of this process."""
        self._end = end
        self._decided.set()

    @property
    def is_decided(self) -> bool:
        return self._decided.is_set()

    def _agreed(self) -> int:
        patience = Patience(self._agreement_seconds)
        while not self._decided.wait(min(self._agreement_seconds, SLICE_SECONDS)):
            if patience.is_over():
                raise WireError(
                    f"a stop was requested ({self.reason}), but not all ranks posted their rounds within "
                    f"{self._agreement_seconds:g} s; the run resumes from its last checkpoint with --resume auto"
                )
        return self._end


class GracefulStop:
    """Exchanges requests to stop between the ranks of a job, for the watchdog of ``rank``; ``leave`` ends the process
    with an exit code."""

    def __init__(
        self, store: Store, rank: int, num_ranks: int, agreement: StopAgreement, leave: Callable[[int], None]
    ) -> None:
        self._store, self._rank, self._leave, self.agreement = store, rank, leave, agreement
        self._keys = [f"stop/at/{number}" for number in range(num_ranks)]
        self._first_look: int | None = None  # at which the first signal was heard
        self.exit_code = 0  # 128 and that signal, if it has ended the run

    def on_signal(self, received: signal.Signals, look: int) -> None:
        """The first signal asks for a stop with a checkpoint. After a failure, and at a second signal, the process ends
        at once. The watchdog hears it at this ``look``."""
        is_second = self._first_look is not None and look - self._first_look >= LOOKS_OF_ONE_SIGNAL
        if is_second or self._store.check(["failure"]):
            self._leave(128 + received)
        if self._first_look is None:
            self._first_look, self.exit_code = look, 128 + received
            self._store.compare_set("stop/requested", "", f"{received.name} at rank {self._rank}")

    def agree(self) -> None:
        """Freezes this rank when any rank has asked to stop, and decides the step when all ranks are frozen."""
        if self.agreement.is_decided or not self._store.check(["stop/requested"]):
            return
        if not self.agreement.is_frozen:
            begun = self.agreement.freeze(self._store.get("stop/requested").decode())
            self._store.set(self._keys[self._rank], str(begun))
        if self._rank == 0 and self._store.check(self._keys):  # one rank asks for all, and the others ask for one key
            self._store.set(END, str(max(int(self._store.get(key)) for key in self._keys)))
            how = "with" if self.agreement.saves else "without"
            key = "" if self.agreement.saves else " (checkpoint.every_steps=never)"
            print_line(f"\nbllpipe: {self.agreement.reason}: stopping {how} a checkpoint{key}", sys.stderr)
        if self._store.check([END]):
            self.agreement.decide(int(self._store.get(END)))


class StopSignals:
    """A context in which those of STOPPING do not end the process, but are returned by ``wait``.

    Only the main thread can receive signals; in another thread ``wait`` just waits.
    """

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}
        self._fd_before = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup has it
            received = [number for number in STOPPING if not (number == signal.SIGHUP and ignored)]
            self._before = {number: signal.signal(number, self._handle) for number in received}
            self._fd_before = signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._out.close()
        self._in.close()

    def wait(self, seconds: float) -> signal.Signals | None:
        """The next signal that asks to stop, or None when none came within ``seconds``."""
        try:
            ready, _, _ = select.select([self._out], [], [], seconds)
            numbers = self._out.recv(64) if ready else b""
        except (OSError, ValueError):  # the context has ended meanwhile
            return None
        return next((signal.Signals(number) for number in numbers if number in STOPPING), None)

    def interrupt(self) -> None:
        """Raises KeyboardInterrupt in the main thread, as soon as that runs Python."""
        if self._before and not self._interrupted:
            self._interrupted = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _handle(self, number: int, frame: object) -> None:
        """Runs in the main thread, perhaps long after the signal. Without a handler the kernel's default would end the
        process."""
        if self._interrupted:
            raise KeyboardInterrupt
