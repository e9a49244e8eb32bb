"""`run --launcher slurm`: the open cells of a plan as Slurm jobs, through submitit.

One job is one row on one data set, so that its images still go through the model once. A job is the
same command as on one machine, narrowed to these cells; all machines see the workspace. A job that
fails leaves the failure in the records, as a run does; `--retry-failed` measures those again. What
was submitted is noted in `slurm/submitted.json`: the same command, started again while a job waits
or runs and none of its cells is recorded yet, waits for it and does not submit it twice.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.extras import install_command
from maskclip_bench.progress import Listener, Unit
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.cell import PlannedCell
from maskclip_bench.tasks.plan import Plan

logger = logging.getLogger(__name__)

SLURM_DEFAULTS: Mapping[str, Any] = {"gpus_per_node": 1, "cpus_per_task": 8, "timeout_min": 240}
"""What a job asks for unless told otherwise (names of submitit)."""

POLL_SECONDS = 5.0

SUBMITTED = "submitted.json"
"""Command of a job -> its number, below `slurm/` of the workspace."""

ALIVE = frozenset(
    ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING")
)
"""States of Slurm in which a job goes on by itself."""


@dataclass(frozen=True)
class ClusterJob:
    """One job: a row on a data set.

    Attributes:
        unit: Its line in the display.
        command: What it runs.
    """

    unit: Unit
    command: tuple[str, ...]


def cluster_jobs(
    plan: Plan, workspace: Workspace, *, device: str, extra: Sequence[str] = ()
) -> list[ClusterJob]:
    """The jobs of a plan's open cells; rows that must be pretrained come with their first job.

    Args:
        plan: From `make_plan`.
        workspace: Seen by all machines.
        device: As on the command line.
        extra: Further options of `run` for every job.
    """
    together: dict[tuple[str, int, str], list[PlannedCell]] = {}
    for cell in plan.open_cells:
        key = (cell.row.name, cell.row.seed, cell.column.declaration.name)
        together.setdefault(key, []).append(cell)
    jobs = []
    for (row, seed, dataset), cells in together.items():
        command = [
            sys.executable, "-m", "maskclip_bench", "run", "--backbone", row, "--seeds", str(seed),
            "--workspace", str(workspace.root), "--device", device, *extra,
        ]  # fmt: skip
        for cell in cells:
            command += ["--task", cell.column.name]
        seconds = sum(cell.unit.expected_seconds for cell in cells)
        label = f"{cells[0].row.label}: {dataset}"
        jobs.append(ClusterJob(Unit(f"{row}/{seed}/{dataset}", label, seconds), tuple(command)))
    return jobs


def submit(
    jobs: Sequence[ClusterJob],
    workspace: Workspace,
    *,
    options: Sequence[str] = (),
    cluster: str | None = None,
) -> list[Any]:
    """Submit the jobs that do not wait or run already -> submitit's objects, in the same order.

    Args:
        jobs: From `cluster_jobs`.
        workspace: Logs go to `slurm/` in it.
        options: `key=value` of submitit; they win over `SLURM_DEFAULTS`.
        cluster: `local` or `debug` runs them on this machine, for tests; by default it is Slurm.

    Raises:
        MissingDependencyError: submitit is not installed.
        ConfigError: An option is unknown to submitit, or there is no Slurm.
    """
    try:
        import submitit
    except ImportError:
        raise MissingDependencyError(
            f"--launcher slurm needs submitit: {install_command('slurm')}"
        ) from None
    folder = workspace.root / "slurm"
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        if executor.cluster not in (cluster, "slurm"):
            raise ConfigError(
                "--launcher slurm: there is no Slurm on this machine (no `srun`). Start the "
                "command on a login node, or leave --launcher out."
            )
        executor.update_parameters(
            name="maskclip-bench", **{**SLURM_DEFAULTS, **parsed_options(options)}
        )
    except (NameError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"submitit refuses the options: {error}") from error
    before = storage.read_object(folder / SUBMITTED) or {}
    numbers, handles = dict(before), []
    for job in jobs:
        name = storage.fingerprint(list(job.command))
        handle = _still_alive(executor, folder, before.get(name))
        if handle is None:
            function = submitit.helpers.CommandFunction(list(job.command), verbose=False)
            handle = executor.submit(function)
            numbers[name] = handle.job_id
            storage.write_json(folder / SUBMITTED, numbers)
        handles.append(handle)
    return handles


def _still_alive(executor: Any, folder: Path, number: object) -> Any | None:
    """Submitit's object of a job that waits or runs; None for one that ended, or is not known."""
    if number is None:
        return None
    try:
        handle = executor._executor.job_class(folder=folder, job_id=str(number))
        return handle if handle.state.split()[0] in ALIVE and not handle.done() else None
    except Exception:  # of submitit or of Slurm's own commands: submit it again
        logger.debug("job %s cannot be asked", number, exc_info=True)
        return None


def wait_for(
    jobs: Sequence[ClusterJob],
    submitted: Sequence[Any],
    listener: Listener,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Tell of each job when it ends; interrupted, the jobs go on, and the same command waits again.

    Args:
        jobs: What was submitted.
        submitted: submitit's objects of them.
        listener: Told of all progress.
        sleep: Waits between two looks.
    """
    listener.planned([job.unit for job in jobs])
    open_jobs = dict(zip(jobs, submitted, strict=True))
    for job in open_jobs:
        listener.started(job.unit)
    while open_jobs:
        for job, handle in list(open_jobs.items()):
            if not handle.done():
                continue
            del open_jobs[job]
            try:
                handle.result()
            except Exception as error:  # the job's own exit, or submitit's
                text = str(error).strip().splitlines()
                note = f"{text[-1] if text else type(error).__name__}; log: {_log(handle)}"
                listener.finished(job.unit, ok=False, note=note)
            else:
                listener.finished(job.unit, ok=True, note="recorded")
        if open_jobs:
            sleep(POLL_SECONDS)


def parsed_options(options: Sequence[str]) -> dict[str, Any]:
    """`["slurm_partition=gpu"]` -> a mapping.

    Raises:
        ConfigError: One is not `key=value`.
    """
    import yaml

    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{option!r} is not an option for Slurm. Write key=value, e.g. slurm_partition=gpu."
            )
        parsed[key.removeprefix("--").replace("-", "_")] = yaml.safe_load(value)
    return parsed


def _log(handle: Any) -> Path | str:
    return getattr(getattr(handle, "paths", None), "stderr", "slurm/")
