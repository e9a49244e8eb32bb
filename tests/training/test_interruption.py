from __future__ import annotations

import signal
import threading

import pytest

from maskclip_bench.training.interruption import STOP_SIGNALS, Interruption


def test_interruption__the_first_signal_is_noted_the_second_acts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption((signal.SIGINT,)) as interruption:
        assert not interruption.requested
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_interruption__every_stop_signal(number: signal.Signals) -> None:
    """SIGHUP too: a terminal that is closed, a lost ssh connection."""
    assert signal.SIGHUP in STOP_SIGNALS
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with Interruption(STOP_SIGNALS) as interruption:
            signal.raise_signal(number)
            assert interruption.requested
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_interruption__what_is_ignored_stays_ignored() -> None:
    """`nohup` ignores SIGHUP for what it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption(STOP_SIGNALS) as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert not interruption.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interruption__handlers_are_given_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"), Interruption(STOP_SIGNALS):
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) == before


def test_interruption__in_another_thread_does_nothing() -> None:
    seen: list[bool] = []

    def work() -> None:
        with Interruption(STOP_SIGNALS) as interruption:
            seen.append(interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
