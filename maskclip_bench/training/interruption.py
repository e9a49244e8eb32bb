"""Stop signals: the step under way is finished and a checkpoint written before the run ends.

Ctrl-C, SIGTERM (torchrun, a suite that stops), SIGHUP (a terminal that is closed) or Slurm's.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What stops a run by default."""


class RunStopped(KeyboardInterrupt):
    """A run stopped because it was asked to, after writing a checkpoint to go on from."""


class Interruption:
    """The first signal requests a stop after the current step; a second one acts as before.

    A signal that the process ignores stays ignored (`nohup` ignores SIGHUP). Outside of the main
    thread, where Python allows no handlers, it does nothing.

    Attributes:
        requested: Whether a signal came.
    """

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._signals = tuple(signals) if in_main_thread else ()
        self._before: dict[signal.Signals, Any] = {}
        self.requested = False

    def __enter__(self) -> Interruption:
        for number in self._signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        logger.warning("Stopping after this step; a checkpoint is written first.")
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
