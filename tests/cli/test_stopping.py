"""Ctrl-C while libraries are imported or a plan is made: one line, exit code 130, at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from maskclip_bench.cli.stopping import STOPPED, stopping_at_once
from maskclip_bench.errors import EXIT_INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]

BUSY = """
import sys, time
from maskclip_bench.cli.stopping import stopping_at_once

class Slow:
    # An import that swallows what is raised in it, as some do.
    def find_spec(self, name, path=None, target=None):
        if name == "slow":
            print("importing", flush=True)
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass

sys.meta_path.insert(0, Slow())
with stopping_at_once():
    import slow
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal__ends_an_import_at_once_with_one_line(number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == EXIT_INTERRUPTED
    assert errors == f"{STOPPED}\n"


def test_plan__interrupted_while_it_is_made(tmp_path: Path) -> None:
    """Whenever it comes: one line or, if the plan was quicker, the plan."""
    for seconds in (0.3, 1.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "maskclip_bench", "plan", "--suite", "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert "Traceback" not in errors
        if process.returncode != 0:
            assert process.returncode in (EXIT_INTERRUPTED, -signal.SIGINT)
            assert errors in (f"{STOPPED}\n", "")  # "" before Python read its first line of ours
        assert not list(tmp_path.iterdir())


def test_handlers__are_those_of_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stopping_at_once():
        assert signal.getsignal(signal.SIGINT) is not before[0]
        with stopping_at_once():
            pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_handlers__a_job_in_the_background_stays_deaf_to_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_thread__nothing_changes() -> None:
    seen = []

    def look() -> None:
        with stopping_at_once():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
