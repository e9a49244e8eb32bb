"""Starting a run: in this process, under `torchrun`, or as a Slurm job through submitit.

`torchrun --nproc-per-node 8 -m maskclip_bench pretrain RECIPE` needs nothing from here but the
process group. For Slurm, submitit starts one task for each GPU; a job that is preempted, or that
reaches its time limit, finishes its step, writes a checkpoint, and is put back in the queue.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskclip_bench import distributed
from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.extras import install_command
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.pretrain.trainer import Evaluator, train
from maskclip_bench.progress import SnapshotCallback
from maskclip_bench.runtime import configure_threads, resolve_device
from maskclip_bench.training.interruption import STOP_SIGNALS, RunStopped

logger = logging.getLogger(__name__)

SLURM_DEFAULTS: Mapping[str, Any] = {
    "nodes": 1,
    "gpus_per_node": 8,
    "cpus_per_task": 10,
    "timeout_min": 24 * 60,
}
"""What a job asks for unless told otherwise (names of submitit, which hands them to Slurm)."""

PREEMPTION_SIGNAL_SECONDS = 120
"""Slurm's signal comes so long before the end: time for a step and a checkpoint."""

MAX_REQUEUES = 100
"""Times a job that reached its time limit is put back in the queue."""


def launch_here(
    recipe: Recipe,
    *,
    output: Path,
    data_root: Path,
    workspace: Path | None = None,
    device: str = "auto",
    evaluators: Sequence[Evaluator] = (),
    progress: SnapshotCallback | None = None,
    stop_signals: Sequence[signal.Signals] = STOP_SIGNALS,
) -> Path:
    """Train in this process, as a member of the group that the environment describes, if any.

    Args:
        recipe: What to train.
        output: The run's folder.
        data_root: Where data lie.
        workspace: See `train`.
        device: `auto`, or torch's spelling; under `torchrun`, `auto` and `cuda` take this rank's.
        evaluators: See `train`.
        progress: See `train`.
        stop_signals: See `train`.

    Returns:
        The folder of the model.
    """
    place = rank_device(device)
    if place.type == "cpu":
        configure_threads()
    with distributed.process_group(place):
        return train(
            recipe,
            output=output,
            data_root=data_root,
            workspace=workspace,
            device=place,
            evaluators=evaluators,
            progress=progress if distributed.is_main() else None,
            stop_signals=stop_signals,
        )


def rank_device(name: str) -> torch.device:
    """This rank's device.

    Raises:
        ConfigError: There is no such device.
    """
    device = resolve_device(name)
    if device.type == "cuda" and device.index is None:
        # submitit shows each task its own GPU only; torchrun shows all of them.
        return torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
    return device


@dataclass
class SlurmTraining:
    """One task of a Slurm job; submitit pickles it, and calls it on the node.

    Attributes:
        recipe: The recipe as plain values, so that the pickle holds no class of ours but this.
        output: The run's folder, seen by all nodes.
        data_root: Where data lie, seen by all nodes.
        device: See `launch_here`.
        workspace: See `launch_here`.
    """

    recipe: dict[str, Any]
    output: str
    data_root: str
    device: str = "auto"
    workspace: str | None = None

    def __call__(self) -> str:
        """Join the group that Slurm describes, and train.

        At submitit's signal the run stops with a checkpoint; then submitit's own handler, of which
        the signal was taken meanwhile, puts the job back in the queue.
        """
        import submitit

        submitit.helpers.TorchDistributedEnvironment().export(overwrite=True)
        preemption = preemption_signal()
        try:
            model = launch_here(
                Recipe.model_validate(self.recipe),
                output=Path(self.output),
                data_root=Path(self.data_root),
                workspace=Path(self.workspace) if self.workspace else None,
                device=self.device,
                stop_signals=(preemption,),
            )
        except RunStopped:
            put_back: Any = signal.getsignal(preemption)
            put_back(preemption, None)  # ends the first task
            sys.exit(0)  # the others must not end with an error, which would end the first early
        return str(model)

    def checkpoint(self) -> Any:
        """What submitit puts back in the queue: the same call, which goes on by itself."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def preemption_signal() -> signal.Signals:
    """The signal by which submitit learns that a job's time is over (SIGUSR2, or as it is told)."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def need_submitit() -> Any:
    """The module submitit, which the extra `slurm` brings.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise MissingDependencyError(
            f"--launcher slurm needs submitit: {install_command('slurm')}"
        ) from None
    return submitit


def submit_to_slurm(
    recipe: Recipe,
    *,
    output: Path,
    data_root: Path,
    workspace: Path | None = None,
    device: str = "auto",
    options: Sequence[str] = (),
    cluster: str | None = None,
) -> Any:
    """Submit a run as a Slurm job, one task for each GPU; returns submitit's job.

    Args:
        recipe: What to train.
        output: The run's folder; submitit's logs go to `slurm/` in it.
        data_root: Where data lie.
        workspace: See `launch_here`.
        device: See `launch_here`.
        options: `key=value`, names of submitit (`nodes=2`, `slurm_partition=gpu`,
            `slurm_account=...`); they win over `SLURM_DEFAULTS`.
        cluster: `local` runs the tasks on this machine, for tests; by default it is Slurm.

    Raises:
        MissingDependencyError: submitit is not installed.
        ConfigError: An option is not `key=value`, or unknown to submitit, or there is no Slurm.
    """
    submitit = need_submitit()
    parameters = {**SLURM_DEFAULTS, **_parse_options(options)}
    parameters.setdefault("tasks_per_node", parameters["gpus_per_node"] or 1)
    parameters.setdefault("slurm_signal_delay_s", PREEMPTION_SIGNAL_SECONDS)
    try:
        executor = submitit.AutoExecutor(
            folder=str(output / "slurm"), cluster=cluster, slurm_max_num_timeout=MAX_REQUEUES
        )
        if executor.cluster not in (cluster, "slurm"):
            raise ConfigError(
                "--launcher slurm: there is no Slurm on this machine (no `srun`). Start the "
                "command on a login node, or leave --launcher out."
            )
        executor.update_parameters(name=f"pretrain-{recipe.name or 'run'}", **parameters)
    except (NameError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"submitit refuses the options: {error}") from error
    training = SlurmTraining(
        recipe=recipe.model_dump(mode="json"),
        output=str(output.absolute()),
        data_root=str(data_root.absolute()),
        device=device,
        workspace=str(workspace.absolute()) if workspace else None,
    )
    return executor.submit(training)


def local_rank_speaks() -> bool:
    """Whether this process tells the user something: the only one, or rank 0 of several."""
    return int(os.environ.get("RANK", 0)) == 0


def _parse_options(options: Sequence[str]) -> dict[str, Any]:
    import yaml

    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{option!r} is not an option for Slurm. Write key=value, e.g. nodes=2."
            )
        parsed[key.removeprefix("--").replace("-", "_")] = yaml.safe_load(value)
    return parsed
