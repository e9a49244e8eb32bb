"""Ctrl-C while nothing was begun yet: one line and exit code 130, at once.

While libraries are imported and a plan is made there is nothing to finish and nothing to write.
Python's own `KeyboardInterrupt` would rise somewhere inside of an import, where it can be swallowed
or printed as a traceback, and what other libraries do at exit would be waited for.

Imported before everything else, so it imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from maskclip_bench.errors import EXIT_INTERRUPTED

STOPPED = "Stopped. The same command goes on where this one was."

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the process with one line and `EXIT_INTERRUPTED`.

    For work that writes nothing. What handled the signals before does so again afterwards. Only
    the main thread gets signals, so in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, _stop)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN  # as of a job in the background
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _stop(signum: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(EXIT_INTERRUPTED)
