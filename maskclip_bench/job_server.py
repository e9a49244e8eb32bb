"""A process that has imported what jobs need, and starts each of them as a fork of itself.

Most of a short job's time on a CPU is the start of Python with torch, mmseg and mmdet. With a
server these are imported once for all jobs of a run. A job is otherwise what it is by itself: a
session, an environment and a log of its own, `python -m MODULE ARGUMENTS` as `sys.argv` and
`__main__`, and an end that concerns no other job. The server computes nothing, so that a fork finds
no thread of OpenMP's.

    with serving(num_threads=1):
        run_job(...)   # of any thread: uses the server where the command fits

The server (`python -m maskclip_bench.job_server`) reads requests from a socket, each a JSON object
with two file descriptors: the log, and a channel on which the job tells its process id and the
server its exit code. It ends with the socket, that is, with the run that it belongs to.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SUPPORTED = sys.platform == "linux"
"""Elsewhere a fork of a process with such libraries is not safe, or there is none."""

MAX_REQUEST = 1 << 20
"""Bytes; an environment may be long."""

REAP_SECONDS = 0.05
"""Between two looks for jobs that have ended, while there are jobs."""

HUGE_PAGES = "glibc.malloc.hugetlb"
"""Tunable of glibc (from 2.35 on): with 1, memory is asked for in pages of 2 MiB where the system
leaves that to programs. A training step of the demo then takes 7 to 9 % less time, and computes the
same bits."""

SOCKET_DESCRIPTOR = "MASKCLIP_BENCH_JOB_SOCKET"


class ForkedJob:
    """A job of the server; has what `jobs.run_job` uses of `subprocess.Popen`.

    Attributes:
        pid: Its process, which leads a process group of the same number.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._received = b""
        self._code: int | None = None
        self._wait_for_lines(1, None)
        lines = self._received.split(b"\n")
        if len(lines) < 2:
            channel.close()
            raise ConnectionError("the server of jobs is gone")
        self.pid = int(lines[0])

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.wait(timeout=0) if self._code is None else self._code

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code (as of Popen, the negative number of a signal); None: it still runs.

        A job whose server is gone counts as killed.
        """
        if self._code is None and self._wait_for_lines(2, timeout):
            lines = self._received.split(b"\n")
            self._code = int(lines[1]) if len(lines) > 2 else -signal.SIGKILL
            self._channel.close()
        return self._code

    def _wait_for_lines(self, number: int, timeout: float | None) -> bool:
        """Receive until so many lines are there, or the other end is closed; False: too early."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._received.count(b"\n") < number:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([self._channel], [], [], left)[0]:
                return False
            received = self._channel.recv(64)
            if not received:
                break
            self._received += received
        return True


class JobServer:
    """The run's end of it. The server starts with the first job.

    Args:
        num_threads: Of the server and so of all its jobs (`OMP_NUM_THREADS` is read on import).
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        log: int,
        environment: Mapping[str, str],
        imports: Sequence[str],
    ) -> ForkedJob | None:
        """Start `python -m MODULE ARGUMENTS`.

        Args:
            module: What to run as `__main__`.
            arguments: The rest of `sys.argv`.
            log: File descriptor of its output.
            environment: All of its variables.
            imports: Modules that the server imports before it forks; a function `warm_up` that one
                has is called.

        Returns:
            The job; None if the server cannot be reached, and the caller starts it another way.
        """
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "imports": list(imports),
            "folder": str(Path.cwd()),
        }
        content = json.dumps(request).encode()
        if len(content) > MAX_REQUEST:
            return None
        ours, theirs = socket.socketpair()
        try:
            with self._lock, theirs:
                descriptors = [log, theirs.fileno()]
                size = len(content).to_bytes(4, "big")
                connection = self._connected()
                socket.send_fds(connection, [size], descriptors)
                connection.sendall(content)
            return ForkedJob(ours)
        except OSError:
            ours.close()
            return None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-m", __spec__.name],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={
                        **os.environ,
                        "OMP_NUM_THREADS": str(self.num_threads),
                        "CUDA_VISIBLE_DEVICES": "-1",
                        "MPLBACKEND": "Agg",
                        "GLIBC_TUNABLES": _tunables(os.environ.get("GLIBC_TUNABLES", "")),
                        SOCKET_DESCRIPTOR: str(theirs.fileno()),
                    },
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            self._socket = ours
        return self._socket

    def close(self) -> None:
        """End the server; its jobs have ended before, or end with it."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()  # it holds nothing
            self._process.wait()


def _tunables(given: str) -> str:
    """Tunables of glibc with huge pages, unless they say something about them."""
    if HUGE_PAGES in given:
        return given
    return ":".join(part for part in (given, f"{HUGE_PAGES}=1") if part)


_current: JobServer | None = None


@contextlib.contextmanager
def serving(num_threads: int) -> Iterator[None]:
    """Within the block `run_job` may use a server; only for jobs on a CPU."""
    global _current
    before = _current
    _current = JobServer(num_threads) if SUPPORTED else None
    try:
        yield
    finally:
        if _current is not None:
            _current.close()
        _current = before


def forked(
    command: Sequence[str],
    *,
    num_threads: int,
    log: int,
    environment: Mapping[str, str],
    imports: Sequence[str],
) -> ForkedJob | None:
    """Start a command by the server of this block, if there is one and the command fits.

    Args:
        command: Fits if it is `PYTHON [-W ignore] -m MODULE ARGUMENTS` with this Python.
        num_threads: Fits if it is the server's.
        log: See `JobServer.start`.
        environment: See `JobServer.start`.
        imports: See `JobServer.start`; without any there is nothing to gain, and nothing fits.
    """
    words = list(command)
    server = _current
    if server is None or not imports or server.num_threads != num_threads:
        return None
    if words[:1] != [sys.executable]:
        return None
    rest = words[3:] if words[1:3] == ["-W", "ignore"] else words[1:]
    if rest[:1] != ["-m"] or len(rest) < 2:
        return None
    return server.start(rest[1], rest[2:], log=log, environment=environment, imports=imports)


# The server.


def _serve(connection: socket.socket) -> None:
    """Fork a job for each request until the other end is closed; returns in jobs, too."""
    channels: dict[int, socket.socket] = {}  # process id -> where its exit code goes
    imported: set[str] = set()
    while True:
        wait = REAP_SECONDS if channels else None
        if select.select([connection], [], [], wait)[0]:
            request = _receive(connection)
            if request is None:
                return
            content, log, channel = request
            _import(content["imports"], imported)
            pid = os.fork()
            if pid == 0:
                connection.close()
                for other in channels.values():
                    other.close()
                _become(content, log, channel)
                return
            os.close(log)
            channels[pid] = channel
        _reap(channels)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], int, socket.socket] | None:
    """The next request, its log, and the channel of its job; None at the end."""
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 2)
    if len(size) < 4 or len(descriptors) < 2:
        return None
    length, content = int.from_bytes(size, "big"), b""
    while len(content) < length:
        part = connection.recv(length - len(content))
        if not part:
            return None
        content += part
    return json.loads(content), descriptors[0], socket.socket(fileno=descriptors[1])


def _import(names: Sequence[str], done: set[str]) -> None:
    """Import what is not among `done`; a job says itself what cannot be imported."""
    fresh = [name for name in names if name not in done]
    done.update(fresh)
    for name in fresh:
        with contextlib.suppress(Exception):
            module = importlib.import_module(name)
            getattr(module, "warm_up", lambda: None)()
    if fresh:
        gc.collect()
        gc.freeze()  # jobs need not look through all of it again


def _become(content: dict[str, Any], log: int, channel: socket.socket) -> None:
    """In a fork: turn into the job."""
    os.setsid()
    os.chdir(content["folder"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(content["environment"])
    name = content["module"]
    if not hasattr(sys.modules.get(name), "__path__"):  # of a package its `__main__` runs
        sys.modules.pop(name, None)
    sys.argv = [name, *content["arguments"]]
    with channel:
        channel.sendall(f"{os.getpid()}\n".encode())
    global _job
    _job = name


def _reap(channels: dict[int, socket.socket]) -> None:
    """Tell the exit codes of jobs that have ended."""
    for pid in list(channels):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with channels.pop(pid) as channel, contextlib.suppress(OSError):
                channel.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


_job: str | None = None
"""In a job: the module that it runs."""


def main() -> None:
    """The server's command line."""
    with socket.socket(fileno=int(os.environ.pop(SOCKET_DESCRIPTOR))) as connection:
        _serve(connection)
    if _job is not None:
        runpy.run_module(_job, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
