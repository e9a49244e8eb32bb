"""A job ends with the run that started it, whoever stands between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from maskclip_bench.jobs import PARENT_VARIABLE

WATCHED = (
    "import time; from maskclip_bench.jobs import end_with_parent; end_with_parent(); "
    "print('watching', flush=True); time.sleep({seconds}); print('done', flush=True)"
)
AGENT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"


def start(*arguments: str, run: int) -> subprocess.Popen[str]:
    environment = {**os.environ, PARENT_VARIABLE: str(run)}
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_end_with_parent__lives_on_under_an_agent() -> None:
    """torchrun's agent is a rank's parent, and the run stands above it."""
    agent = start(AGENT, WATCHED.format(seconds=1.2), run=os.getpid())
    assert agent.communicate(timeout=30)[0].split() == ["watching", "done"]
    assert agent.returncode == 0


def test_end_with_parent__ends_with_the_run(other_process: subprocess.Popen[bytes]) -> None:
    with start(WATCHED.format(seconds=60), run=other_process.pid) as job:
        assert job.stdout is not None and job.stdout.readline() == "watching\n"
        other_process.kill()
        other_process.wait()
        assert job.wait(timeout=30) == -signal.SIGTERM


def test_end_with_parent__ends_with_the_agent() -> None:
    with start(AGENT, WATCHED.format(seconds=60), run=os.getpid()) as agent:
        assert agent.stdout is not None and agent.stdout.readline() == "watching\n"
        started = time.monotonic()
        agent.kill()
        assert agent.stdout.read() == ""  # the end of the pipe, which the job held too
        assert time.monotonic() - started < 30


def test_end_with_parent__no_job() -> None:
    environment = {key: value for key, value in os.environ.items() if key != PARENT_VARIABLE}
    command = [sys.executable, "-c", WATCHED.format(seconds=0)]
    assert subprocess.run(command, env=environment, check=True, capture_output=True).stdout
