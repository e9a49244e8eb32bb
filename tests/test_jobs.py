"""A job ends with the run that started it, whoever stands between them, and says why it failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskclip_bench.errors import JobError, StorageError
from maskclip_bench.jobs import PARENT_VARIABLE, cause, run_job

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


def test_run_job__failure_begins_with_the_cause(tmp_path: Path) -> None:
    """Of the message, progress and summary show the first line alone."""
    program = "import sys; print('loading'); sys.exit('error: no masks in /data')"
    log = tmp_path / "job.log"
    with pytest.raises(JobError) as caught:
        run_job(
            [sys.executable, "-c", program],
            log_file=log,
            num_threads=1,
            cancel=threading.Event(),
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == f"no masks in /data (exit code 1; log: {log})"
    assert lines[-2:] == ["loading", "error: no masks in /data"]


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        ("step 1\nTraceback (most recent call last):\n  x()\nValueError: bad\n", "ValueError: bad"),
        (
            "[rank0]: torch.OutOfMemoryError: CUDA\n[rank0]:  more\n=====",
            "torch.OutOfMemoryError: CUDA",
        ),
        ("KeyError: 1\nduring which\nKeyboardInterrupt\n", "KeyboardInterrupt"),
        ("work_dir = 'a'\nKilled", "Killed"),
        ("errors: 0\nthe Error: x was not first", "the Error: x was not first"),
        ("", "The job said nothing"),
    ],
)
def test_cause(tail: str, says: str) -> None:
    assert cause(tail) == says


def test_run_job__refused_by_the_disk(tmp_path: Path) -> None:
    """Exit code 4 of a job stops the run that waits for it, as a write of its own would."""
    code = "import sys; sys.stderr.write('error: No space left on the device: x.'); sys.exit(4)"
    with pytest.raises(StorageError, match=r"^No space left on the device: x\. \(exit code 4"):
        run_job(
            [sys.executable, "-c", code],
            log_file=tmp_path / "job.log",
            num_threads=1,
            cancel=threading.Event(),
        )
