"""A fork of the server is a job like any other: output, exit code, signals, and nothing shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench import job_server
from maskclip_bench.errors import JobError
from maskclip_bench.job_server import serving
from maskclip_bench.jobs import JobCancelled, run_job

pytestmark = pytest.mark.skipif(not job_server.SUPPORTED, reason="forks are for Linux")

NEEDED = """
import os
count = 0
def warm_up():
    global count
    count += 1
    mine = os.getpid()
"""
TOLD = """
import json, os, sys, threading
import needed
needed.count += 1
told = {
    "name": __name__, "argv": sys.argv[1:], "file": os.path.basename(sys.argv[0]),
    "warm": needed.count - 1, "parent": os.getppid(), "leads": os.getpgid(0) == os.getpid(),
    "mark": os.environ.get("MARK"), "threads": os.environ["OMP_NUM_THREADS"],
    "tunables": os.environ.get("GLIBC_TUNABLES"),
    "folder": os.getcwd(), "input": sys.stdin.read(),
}
print(json.dumps(told))
"""
FAILS = "import sys; print('before', flush=True); raise ValueError('no masks')"
LEAVES = "import sys; sys.exit(7)"
SLEEPS = "import time; print('asleep', flush=True); time.sleep(60)"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the server and its jobs import from."""
    folder = tmp_path / "modules"
    folder.mkdir()
    programs = {"needed": NEEDED, "told": TOLD, "fails": FAILS, "leaves": LEAVES, "sleeps": SLEEPS}
    for name, program in programs.items():
        (folder / f"{name}.py").write_text(program)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    return folder


Run = Callable[..., str]


@pytest.fixture
def run(modules: Path, tmp_path: Path) -> Iterator[Run]:
    """Runs a module as a job of a server; returns its log."""
    number = iter(range(100))

    def run(
        module: str, *arguments: str, imports: tuple[str, ...] = ("needed",), **how: Any
    ) -> str:
        log = tmp_path / f"{next(number)}.log"
        settings = {"num_threads": 1, "cancel": threading.Event(), "poll_seconds": 0.02, **how}
        command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        run_job(command, log_file=log, imports=imports, **settings)
        return log.read_text()

    with serving(1):
        yield run


def told(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def server_pid() -> int:
    server = job_server._current
    assert server is not None and server._process is not None
    return server._process.pid


def test_run_job__is_what_a_process_of_its_own_is(run: Run) -> None:
    forked = told(run("told", "a", "b c", environment={"MARK": "here"}))
    assert forked.pop("warm") == 1
    assert forked.pop("parent") == server_pid()
    alone = told(run("told", "a", "b c", imports=(), environment={"MARK": "here"}))
    assert forked.pop("tunables") == alone.pop("tunables") == os.environ.get("GLIBC_TUNABLES")
    assert alone.pop("warm") == 0
    assert alone.pop("parent") == os.getpid()
    assert (
        forked
        == alone
        == {
            "name": "__main__",
            "argv": ["a", "b c"],
            "file": "told.py",
            "leads": True,
            "mark": "here",
            "threads": "1",
            "folder": os.getcwd(),  # noqa: PTH109
            "input": "",
        }
    )


def test_run_job__jobs_share_nothing_but_imports(run: Run) -> None:
    first = told(run("told", environment={"MARK": "here"}))
    second = told(run("told"))
    assert (first["warm"], second["warm"]) == (1, 1)
    assert (first["mark"], second["mark"]) == ("here", None)
    assert first["parent"] == second["parent"]


@pytest.mark.parametrize("given", [None, "glibc.malloc.hugetlb=0"])
def test_run_job__memory_comes_in_huge_pages(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    """glibc reads it when the server starts; what a job starts itself is as the run's."""
    if given is None:
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    else:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    assert told(run("told"))["tunables"] == given
    environment = Path(f"/proc/{server_pid()}/environ").read_bytes().split(b"\0")
    expected = given or "glibc.malloc.hugetlb=1"
    assert f"GLIBC_TUNABLES={expected}".encode() in environment


def test_tunables__others_are_kept() -> None:
    assert job_server._tunables("") == "glibc.malloc.hugetlb=1"
    assert job_server._tunables("glibc.a=2") == "glibc.a=2:glibc.malloc.hugetlb=1"


def test_run_job__two_at_once(run: Run) -> None:
    cancel = threading.Event()
    failed: list[BaseException] = []

    def sleep() -> None:
        try:
            run("sleeps", cancel=cancel)
        except JobCancelled as error:
            failed.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    assert told(run("told"))["warm"] == 1
    cancel.set()
    thread.join(timeout=30)
    assert len(failed) == 1


def test_run_job__failures_stay_with_their_job(run: Run) -> None:
    with pytest.raises(JobError, match=r"ValueError: no masks \(exit code 1; log: ") as caught:
        run("fails")
    assert "before" in str(caught.value)
    with pytest.raises(JobError, match=r"exit code 7"):
        run("leaves")
    with pytest.raises(JobError, match=r"No module named absent"):
        run("absent", imports=("absent",))
    assert told(run("told"))["warm"] == 1


def test_run_job__ended_by_a_signal(run: Run) -> None:
    def kill() -> None:
        children = Path(f"/proc/{server_pid()}/task/{server_pid()}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    with pytest.raises(JobError, match=r"exit code -9"):
        run("sleeps", on_poll=kill)


def test_run_job__without_the_server_again(run: Run) -> None:
    assert told(run("told"))["warm"] == 1
    os.kill(server_pid(), signal.SIGKILL)
    alone = told(run("told"))
    assert (alone["warm"], alone["parent"]) == (0, os.getpid())


def test_run_job__the_server_dies_under_a_job(run: Run) -> None:
    """Its job counts as killed (and `end_with_parent` ends it)."""
    with pytest.raises(JobError, match=r"exit code -9"):
        run("sleeps", on_poll=lambda: os.kill(server_pid(), signal.SIGKILL))


@pytest.mark.parametrize(
    "command",
    [
        ["true", "-m", "told"],
        [sys.executable, "-c", "pass"],
        [sys.executable, "-W", "error", "-m", "told"],
        [sys.executable, "-m"],
    ],
)
def test_forked__commands_that_do_not_fit(command: list[str]) -> None:
    with serving(1):
        options: Any = {"log": 1, "environment": {}, "imports": ["needed"]}
        assert job_server.forked(command, num_threads=1, **options) is None
        fitting = [sys.executable, "-m", "told"]
        assert job_server.forked(fitting, num_threads=2, **options) is None
        options["imports"] = []
        assert job_server.forked(fitting, num_threads=1, **options) is None
    assert job_server._current is None
    options["imports"] = ["needed"]
    assert job_server.forked(fitting, num_threads=1, **options) is None


def test_serving__ends_with_the_run(modules: Path, tmp_path: Path) -> None:
    """A run that is killed leaves no server behind."""
    program = (
        "import os, sys, threading; from pathlib import Path; "
        "from maskclip_bench import job_server, jobs; server = job_server.serving(1); "
        "server.__enter__(); jobs.run_job([sys.executable, '-m', 'told'], num_threads=1, "
        f"log_file=Path({str(tmp_path / 'log')!r}), cancel=threading.Event(), imports=['needed']); "
        "print(job_server._current._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/status").exists() and time.monotonic() < deadline:
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()
