"""How `run` works: precision, batches, workers; in this process, torchrun's, or as Slurm jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from maskclip_bench.cli.options import SafeConsole
from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import Workspace, default_num_threads, device_kind, resolve_device

if TYPE_CHECKING:
    import torch

    from maskclip_bench.backbones.loading import Precision
    from maskclip_bench.tasks.execution import RunResult
    from maskclip_bench.tasks.features import FeatureStore, PassOptions
    from maskclip_bench.tasks.plan import Plan

PrecisionOption = Annotated[
    str,
    typer.Option("--precision", help="fp32 or bf16, of the forward passes; recorded with bf16."),
]
BatchSizeOption = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        help="Images of a forward pass; auto grows until memory refuses.",
        show_default="256",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes that decode images.", show_default="auto"),
]
RetryFailedOption = Annotated[
    bool, typer.Option("--retry-failed", help="Only the cells whose last record is a failure.")
]
LauncherOption = Annotated[
    str,
    typer.Option("--launcher", help="here (this process, or torchrun's), or slurm (submitit)."),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm", help="For --launcher slurm, key=value of submitit: slurm_partition=gpu..."
    ),
]

ValidateOption = Annotated[
    bool,
    typer.Option(
        "--validate",
        help="Segmentation and detection also validate while they train, as often as their configs "
        "say; the curves are in the job's folder, and no score depends on it.",
    ),
]

PRECISIONS: dict[str, Precision] = {"fp32": "float32", "bf16": "bfloat16"}
LAUNCHERS = ("here", "slurm")


@dataclass
class How:
    """The options of `run` that change no number, and the precision.

    Attributes:
        precision: Of the forward passes.
        batch_size: Images of one; `auto` or a number, None = the default.
        workers: Processes that decode; None = as many as pay.
        retry_failed: Only cells whose last record is a failure.
        launcher: here or slurm.
        slurm: Options of submitit.
        validate: Whether dense cells validate while they train.
        sharded: Whether torchrun started several processes.
        made_store: What `store` made.
    """

    precision: Precision = "float32"
    batch_size: str | None = None
    workers: int | None = None
    retry_failed: bool = False
    launcher: str = "here"
    slurm: tuple[str, ...] = ()
    validate: bool = False
    sharded: bool = False
    made_store: FeatureStore | None = None

    def options(self) -> PassOptions:
        """For the store of features."""
        from maskclip_bench.tasks.features import PassOptions

        size = self.batch_size
        batch = None if size is None else ("auto" if size == "auto" else int(size))
        return PassOptions(image_batch=batch, workers=self.workers)  # type: ignore[arg-type]

    def store(self, workspace: Workspace) -> FeatureStore:
        """The store of features; under torchrun one whose passes all ranks share."""
        from maskclip_bench.tasks.features import FeatureStore

        if self.made_store is None:
            kind = FeatureStore
            if self.sharded:
                from maskclip_bench.tasks.sharding import ShardedStore

                kind = ShardedStore
            self.made_store = kind(workspace.features, options=self.options())
        return self.made_store

    def num_jobs(self, asked: int | None, device: torch.device) -> int:
        """Pieces of work side by side; one where ranks share every pass."""
        if self.sharded:
            return 1
        return asked or (1 if device.type == "cuda" else min(2, default_num_threads()))

    def arguments(self) -> list[str]:
        """The same options for a job."""
        names = {value: name for name, value in PRECISIONS.items()}
        words = ["--precision", names[self.precision]]
        words += ["--batch-size", self.batch_size] if self.batch_size is not None else []
        words += ["--validate"] if self.validate else []
        return words + (["--workers", str(self.workers)] if self.workers is not None else [])


def how_of(
    precision: str,
    batch_size: str | None,
    workers: int | None,
    retry_failed: bool,
    launcher: str,
    slurm: list[str] | None,
    validate: bool = False,
) -> How:
    """The options, checked.

    Raises:
        ConfigError: One has no such value, or two do not go together.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision!r}: choose fp32 or bf16.")
    if batch_size not in (None, "auto") and not (batch_size.isdecimal() and int(batch_size) > 0):
        raise ConfigError(f"--batch-size {batch_size!r}: give a number from 1 on, or auto.")
    if launcher not in LAUNCHERS:
        raise ConfigError(f"No launcher {launcher!r}. Choose one of: {', '.join(LAUNCHERS)}.")
    if slurm and launcher != "slurm":
        raise ConfigError("--slurm goes with --launcher slurm.")
    return How(
        precision=PRECISIONS[precision],
        batch_size=batch_size,
        workers=workers,
        retry_failed=retry_failed,
        launcher=launcher,
        slurm=tuple(slurm or ()),
        validate=validate,
    )


@contextlib.contextmanager
def together(how: How, workspace: Workspace, device: str) -> Iterator[torch.device | None]:
    """Within it this process's device; None on a rank that has helped rank 0, and is done.

    Raises:
        ConfigError: torchrun and Slurm's launcher do not go together.
    """
    from maskclip_bench import distributed
    from maskclip_bench.tasks import sharding

    if not sharding.under_torchrun():
        yield resolve_device(device)
        return
    if how.launcher == "slurm":
        raise ConfigError("--launcher slurm submits jobs; start it without torchrun.")
    how.sharded = True
    with sharding.group():
        target = resolve_device(device)
        if not distributed.is_main():
            sharding.serve(workspace, target)
            yield None
            return
        try:
            yield target
        finally:
            store = how.store(workspace)
            assert isinstance(store, sharding.ShardedStore)
            store.close()


def run_on_cluster(
    plan: Plan, workspace: Workspace, device: torch.device, how: How, messages: SafeConsole
) -> RunResult:
    """Submit the open cells, wait, and read what came of them from the records.

    Raises:
        ConfigError: There is no Slurm, or a row must be pretrained first.
    """
    from maskclip_bench.cli.run_display import RunDisplay
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.tasks.cell import records_of
    from maskclip_bench.tasks.cluster import cluster_jobs, submit, wait_for
    from maskclip_bench.tasks.execution import RunResult

    if plan.pretraining:
        names = ", ".join(row.name for row in plan.pretraining)
        raise ConfigError(
            f"--launcher slurm measures rows whose weights are there, and {names} must be "
            "pretrained first: maskclip-bench pretrain RECIPE --launcher slurm"
        )
    extra = how.arguments()
    extra += ["--limit", str(plan.limit)] if plan.limit is not None else []
    jobs = cluster_jobs(plan, workspace, device=str(device), extra=extra)
    submitted = submit(jobs, workspace, options=how.slurm)
    messages.print(f"{len(jobs)} jobs submitted; logs: {workspace.root / 'slurm'}", markup=False)
    with RunDisplay(messages) as display:
        wait_for(jobs, submitted, display)
    store, result = RecordStore(records_of(workspace, plan.limit)), RunResult()
    for cell in plan.open_cells:
        protocol, dataset = cell.column.protocol.name, cell.column.declaration.name
        record = store.load(cell.row_id, protocol, dataset)
        if record is not None:
            (result.measured if record.status == "ok" else result.failed).append(record)
    return result


def show_estimate(plan: Plan, workspace: Workspace, output: Console) -> None:
    """One line: images, minutes, bytes and memory that a run of the plan will take here."""
    to_measure = [cell for cell in plan.cells if cell.is_to_measure]
    if not to_measure:
        return
    from maskclip_bench.tasks.estimate import estimate

    kind = device_kind(resolve_device("auto"))
    found = estimate(
        to_measure, workspace, device=kind, precision=plan.precision, limit=plan.limit
    ).sentence()
    if found:
        output.print(found, markup=False, soft_wrap=True)


def say_what_it_took(plan: Plan, workspace: Workspace, device: torch.device, how: How) -> str:
    """What the passes of this run took, beside what was expected; notes their throughput.

    Raises:
        StorageError: The disk refused.
    """
    from maskclip_bench.tasks.cost import note_passes
    from maskclip_bench.tasks.estimate import estimate, truth

    if how.made_store is None or not how.made_store.passes:
        return ""
    to_measure = [cell for cell in plan.cells if cell.is_to_measure]
    kind = device_kind(device)
    expected = estimate(
        to_measure, workspace, device=kind, precision=plan.precision, limit=plan.limit
    )
    note_passes(how.made_store.passes, workspace)
    return truth(how.made_store.passes, expected)
