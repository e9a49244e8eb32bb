"""`data prepare NAME`: which library fetches the files of a data set, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maskclip_bench.data import fetching
from maskclip_bench.data.readers import forget, root_of
from maskclip_bench.data.readers.torchvision import TorchvisionSet, torchvision_arguments
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration, missing_data
from maskclip_bench.tasks.protocols.base import open_split


@dataclass(frozen=True)
class Preparation:
    """What fetching a data set would do.

    Attributes:
        task: The data set.
        root: Where it goes.
        source: Who fetches it, for people.
        size: Bytes to fetch; None = not known.
    """

    task: TaskDeclaration
    root: Path
    source: str
    size: int | None


def preparation(task: TaskDeclaration, workspace: Workspace) -> Preparation | None:
    """How a data set is fetched, with its size; None if it is on this machine.

    A folder whose splits cannot be opened, as an interrupted download leaves it, is fetched on.

    Raises:
        ConfigError: No library can fetch it; says how to get it.
        DataError: It is there, cannot be opened, and no library can fetch it again.
    """
    problem = None
    if missing_data(task, workspace) is None:
        problem = _problem(task, workspace)
        if problem is None:
            return None
    root = root_of(task.reader, workspace.data)
    if task.hub is not None:
        size = fetching.hub_size(task.hub)
        return Preparation(task, root, f"the Hugging Face hub ({task.hub})", size)
    if isinstance(task.reader, TorchvisionSet):
        try:
            kind = fetching.torchvision_class(task.reader.dataset)
        except ConfigError:
            raise problem or _by_hand(task) from None
        size = fetching.size_of(fetching.addresses(kind))
        return Preparation(task, root, f"torchvision ({task.reader.dataset})", size)
    raise problem or _by_hand(task)


def fetch(plan: Preparation, *, progress: Progress = no_progress) -> Path:
    """Fetch it; the same call goes on after an interruption -> its folder.

    Raises:
        StorageError: The disk has no room, or refuses.
        DataError: A server refuses, or a file is not what it should be.
    """
    fetching.check_space(plan.root, plan.size)
    if plan.task.hub is not None:
        fetching.fetch_hub(plan.task.hub, plan.root)
    else:
        reader = plan.task.reader
        assert isinstance(reader, TorchvisionSet)
        arguments = [torchvision_arguments(reader, split) for split in plan.task.splits.values()]
        fetching.fetch_torchvision(reader.dataset, plan.root, arguments, progress=progress)
    forget()
    return plan.root


def _problem(task: TaskDeclaration, workspace: Workspace) -> MaskCLIPBenchError | None:
    """Why a split cannot be opened; None if all can."""
    forget()
    for split in task.splits:
        try:
            open_split(task, split, workspace)
        except MaskCLIPBenchError as error:
            return error
    return None


def _by_hand(task: TaskDeclaration) -> ConfigError:
    return ConfigError(f"{task.name} cannot be fetched by a library. {task.obtain}")
