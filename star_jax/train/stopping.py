"""Stopping a training by a signal: the step that runs is finished and saved first.

A scheduler that takes a machine back sends SIGTERM and, some time later, SIGKILL; a terminal's
Ctrl-C is SIGINT. Both ask training to stop. The second one ends the process as it would without us.
A validation that runs, or is due after the step, is finished too: what is saved is then the same
state that an undisturbed run saves.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

Settle = Callable[[int, float], float]
"""Updates done and the signal noted, 0 for none -> the one that counts for all processes."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Training was asked to stop, and did. As KeyboardInterrupt, it is no error to recover from."""

    def __init__(self, signum: int, step: int, checkpoint: Path) -> None:
        """Says what was saved.

        Args:
          signum: The signal that asked.
          step: Updates done.
          checkpoint: Holds the state after them.
        """
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} after step {step}; {checkpoint} holds it")
        self.exit_code = 128 + signum  # 143 for SIGTERM: what shells and schedulers call it.


class Stop:
    """Which signal asked to stop: the one noted here, and the one that all processes heed."""

    def __init__(self, settle: Settle) -> None:
        self.noted = self._heeded = 0  # 0: none.
        self._settle = settle

    def settled(self, step: int) -> bool:
        """Whether all processes stop after a step: some time after one of them was asked."""
        self._heeded = self._heeded or int(self._settle(step, float(self.noted)))
        return self._heeded > 0

    def check(self, step: int, checkpoint: Path) -> None:
        """Ends a training that was asked to stop and has saved what it did; see `Stopped`."""
        if self.settled(step):
            raise Stopped(self._heeded, step, checkpoint)


@contextmanager
def stopping(settle: Settle = lambda _, value: value) -> Iterator[Stop]:
    """Within, the first SIGTERM or SIGINT is noted; the handlers before are put back at the end.

    Outside the main thread, where Python sets no handlers, nothing is noted. A signal that the
    process was started to ignore (`nohup`, a job in the background) stays ignored.

    Args:
      settle: What several processes agree on, as `parallel.processes.settled`.
    """
    stop = Stop(settle)
    former = {}

    def handle(signum: int, frame: FrameType | None) -> None:
        del frame
        if not stop.noted:
            stop.noted = signum
        else:
            signal.signal(signum, former[signum])
            signal.raise_signal(signum)

    if threading.current_thread() is threading.main_thread():
        for each in _SIGNALS:
            before = signal.getsignal(each)
            if before not in (signal.SIG_IGN, None):  # None: set by other code than Python.
                former[each] = before
                signal.signal(each, handle)
    try:
        yield stop
    finally:
        for each, before in former.items():
            signal.signal(each, before)
