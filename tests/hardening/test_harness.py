from __future__ import annotations

import time

import pytest

from tests.hardening.harness import Run, at_most, damaged, fuzzed


def test_fuzzed__the_same_every_time_and_different() -> None:
    first = list(fuzzed(b"content of a file" * 5, seed=1, number=20))
    assert first == list(fuzzed(b"content of a file" * 5, seed=1, number=20))
    assert len(set(first)) > 15
    assert first != list(fuzzed(b"content of a file" * 5, seed=2, number=20))


def test_damaged__never_the_same() -> None:
    content = bytes(range(1, 256))
    assert all(changed != content for _, changed in damaged(content))
    assert len(dict(damaged(content))) == 14


def test_at_most__ends_a_hang() -> None:
    with pytest.raises(TimeoutError, match="a hang"), at_most(0.05):
        while True:
            time.sleep(0.01)


def test_run__a_traceback_or_an_escape_is_not_clean() -> None:
    Run((), 3, "fine", "").assert_clean()
    for run in (
        Run((), 0, "", "Traceback (most recent call last)"),
        Run((), 7, "", ""),
        Run((), 0, "\x1b[31m", ""),
    ):
        with pytest.raises(AssertionError):
            run.assert_clean()
