"""Jobs: long work in a subprocess, watched by the process that started it.

A job has a work folder and a log file. It is stopped with SIGTERM (which pretraining answers with
a checkpoint), and it stops by itself when the process that started it is gone, so that a run
killed with SIGKILL leaves nothing behind that still writes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from maskclip_bench import job_server
from maskclip_bench.errors import EXIT_STORAGE, JobError, StorageError
from maskclip_bench.job_server import ForkedJob

PARENT_VARIABLE = "MASKCLIP_BENCH_PARENT"
GRACE_SECONDS = 30.0
LOG_TAIL_LINES = 25
ERROR_LINE = re.compile(
    r"(?:\[\w+\]: ?)?(?P<error>(?:error|[\w.]*(?:Error|Exception|Interrupt))(?:: .*|$))"
)
"""Our own errors, and the last line of a traceback, also under torchrun's `[rank0]: `."""


class JobCancelled(BaseException):
    """The job was stopped because the run it belongs to was interrupted."""


def run_job(
    command: Sequence[str],
    *,
    log_file: Path,
    num_threads: int,
    cancel: threading.Event,
    on_poll: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
    imports: Sequence[str] = (),
    poll_seconds: float = 0.25,
) -> None:
    """Run `command` to its end; its output goes to `log_file`.

    Args:
        command: Program and arguments.
        log_file: Appended to, so that a resumed job keeps the story of the first try.
        num_threads: Threads the job may use (`OMP_NUM_THREADS`).
        cancel: When set, the job is asked to stop, and given `GRACE_SECONDS` to do so.
        on_poll: Called every `poll_seconds`, to read the job's progress.
        environment: Variables on top of this process's own.
        imports: Modules that a `python -m` command needs: the job may be a fork of a process that
            has them already (see `job_server`).
        poll_seconds: Seconds between two looks.

    Raises:
        JobError: The job ended with another exit code than 0; the message begins with the cause
            that its log names and ends with the log's tail.
        StorageError: The same, where the disk refused the job a write.
        JobCancelled: `cancel` was set.
    """
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": str(num_threads),
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        **(environment or {}),
    }
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        process = job_server.forked(
            command,
            num_threads=num_threads,
            log=log.fileno(),
            environment=variables,
            imports=imports,
        ) or subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
        try:
            while (code := _wait(process, poll_seconds)) is None:
                on_poll()
                if cancel.is_set():
                    raise JobCancelled
        finally:
            if process.poll() is None:
                _stop(process)
    if code != 0:
        tail = log_tail(log_file)
        raise (StorageError if code == EXIT_STORAGE else JobError)(
            f"{cause(tail)} (exit code {code}; log: {log_file})\n"
            f"The command was `{' '.join(map(str, command))}`. Its log ends with:\n"
            f"{tail or '(nothing)'}"
        )


def log_tail(log_file: Path, *, num_lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log; empty if it is, or if there is none."""
    try:
        with log_file.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, maxlen=num_lines)).rstrip()
    except OSError:
        return ""


def cause(tail: str) -> str:
    r"""The line of a log's tail that says what went wrong: the last error, or else the last line.

    Example:
        >>> cause("loading\nerror: No such file.\n=====")
        'No such file.'
        >>> cause("[rank1]: RuntimeError: bad shape\n  detail")
        'RuntimeError: bad shape'
    """
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    errors = [match for line in lines if (match := ERROR_LINE.match(line))]
    if errors:
        return errors[-1]["error"].removeprefix("error: ")
    return lines[-1] if lines else "The job said nothing"


def end_with_parent() -> None:
    """In a job: send SIGTERM to this process once the run that started the job is gone.

    The run may be the parent, or stand above torchrun's agent, which is the parent of a rank and
    watches nobody. So both are watched: the parent that this process has now, and the run's own
    process (`MASKCLIP_BENCH_PARENT`).
    """
    run = int(os.environ.get(PARENT_VARIABLE, 0))
    if not run:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and _exists(run):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs as another user
        return True
    return True


def own_command(*arguments: str) -> list[str]:
    """The command line that runs `maskclip-bench ARGUMENTS` with this very Python."""
    return [sys.executable, "-m", "maskclip_bench", *arguments]


def _wait(process: subprocess.Popen[bytes] | ForkedJob, seconds: float) -> int | None:
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def _stop(process: subprocess.Popen[bytes] | ForkedJob) -> None:
    """SIGTERM to the job and what it started, then SIGKILL after the grace time."""
    for sign, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        if _wait(process, seconds) is not None:
            return
