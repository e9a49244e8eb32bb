"""Checkpoints in shards: each process writes what it holds, while the run goes on.

A folder `step_*.dcp` holds what `torch.distributed.checkpoint` writes (a file for each process, and
`.metadata`), `run.json` with everything that is not a tensor, and `SHA256SUMS` of all of them. Any
number of processes can read it, with weights that are whole or sharded in another way.

A folder is written under a temporary name and renamed when it is complete, so that an interrupted
write leaves the checkpoints before it as they were. `.metadata` is a pickle; it is read by an
unpickler that knows only the classes of torch's metadata and refuses everything else.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from maskclip_bench import distributed, storage
from maskclip_bench.errors import CheckpointError, storage_error

SHARDS_SUFFIX = ".dcp"
RUN_FILE = "run.json"
METADATA_FILE = ".metadata"

METHOD, OPTIMIZER = "method.", "optimizer."
"""Beginnings of the names of tensors: `method.NAME`, `optimizer.PARAMETER.KEY`."""

State = dict[str, Any]


# --- names ---------------------------------------------------------------------------------------


def as_tensors(module_state: Mapping[str, Tensor], optimizer_state: State) -> dict[str, Tensor]:
    """All tensors of a run in one flat dict; sharded ones stay sharded.

    Args:
        module_state: The module's state by names.
        optimizer_state: The optimizer's, keyed by names of parameters.
    """
    tensors = {METHOD + name: tensor for name, tensor in module_state.items()}
    for parameter, values in optimizer_state["state"].items():
        for key, value in values.items():
            tensors[f"{OPTIMIZER}{parameter}.{key}"] = value
    return tensors


def as_states(tensors: Mapping[str, Tensor], groups: list[State]) -> tuple[State, State]:
    """The reverse of `as_tensors`: (module's state, optimizer's state keyed by names).

    Args:
        tensors: As `as_tensors` names them.
        groups: The optimizer's groups, with names of parameters.
    """
    module_state: State = {}
    state: State = {}
    for name, tensor in tensors.items():
        if name.startswith(METHOD):
            module_state[name.removeprefix(METHOD)] = tensor
        else:
            parameter, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
            state.setdefault(parameter, {})[key] = tensor
    return module_state, {"state": state, "param_groups": groups}


def numbered(state: State) -> State:
    """An optimizer's state keyed by parameter names -> keyed by their numbers, as in torch."""
    numbers: dict[str, int] = {}
    groups = []
    for group in state["param_groups"]:
        for name in group["params"]:
            numbers[name] = len(numbers)
        groups.append({**group, "params": [numbers[name] for name in group["params"]]})
    return {
        "state": {numbers[name]: values for name, values in state["state"].items()},
        "param_groups": groups,
    }


# --- writing -------------------------------------------------------------------------------------


class ShardWriter:
    """Writes one checkpoint after another in the background; every rank has one.

    Tensors are copied to the memory of the host before `begin` returns; the files are written
    while the run goes on.
    """

    def __init__(self) -> None:
        # A group of its own: the thread that writes takes no part in the exchanges of the run.
        group: Any = dist.new_group(backend="gloo") if distributed.is_distributed() else None
        self._group = group
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def begin(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        *,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a checkpoint in the background; waits for the one before it. Every rank calls it.

        Args:
            path: The folder, `step_*.dcp`.
            tensors: Whole or sharded, as `as_tensors` names them; whole ones equal on all ranks.
            values: Everything else, as plain values that JSON can hold. Those of the main process
                are written.
            after: Called on the main process when the folder is complete.

        Raises:
            StorageError: The disk refused, now or for the checkpoint before.
        """
        self.wait()
        temporary = Path(distributed.broadcast_text(str(storage.temporary_path(path))))
        writer = FileSystemWriter(temporary)
        saving = async_save(dict(tensors), storage_writer=writer, process_group=self._group)
        self._writing = self._thread.submit(_complete, saving, temporary, path, values, after)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, if there is one. Every rank calls it.

        Raises:
            StorageError: The disk refused; the checkpoints before it are as they were.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        failed = writing.exception()

        def check() -> None:
            if failed is not None:
                raise failed

        distributed.on_main(check)  # what the main process does last, it does alone
        check()

    def close(self) -> None:
        """Wait on this rank alone, whatever comes of it: for the end after an error."""
        if self._writing is not None:
            self._writing.exception()
        self._thread.shutdown()


def _complete(
    saving: Any, temporary: Path, path: Path, values: Mapping[str, Any], after: Callable[[], None]
) -> None:
    """Wait for the files of all ranks; on the main process add the rest, and name the folder."""
    try:
        saving.result()
    except CheckpointException as error:
        _remove_quietly(temporary)
        refused = [cause for cause, _ in error.failures.values() if isinstance(cause, OSError)]
        if refused:
            raise storage_error(refused[0], path) from error
        raise
    if not distributed.is_main():
        return
    try:
        storage.write_json(temporary / RUN_FILE, dict(values))
        storage.write_checksums(temporary)
        storage.replace_folder(temporary, path)
        after()
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        _remove_quietly(temporary)


def _remove_quietly(temporary: Path) -> None:
    if distributed.is_main():
        storage.remove_folder(temporary)


# --- reading -------------------------------------------------------------------------------------


def read_values(folder: Path) -> dict[str, Any]:
    """Verify a folder; returns what is not a tensor, as it was given to `ShardWriter.begin`.

    Raises:
        CheckpointError: The folder is not as it was written.
    """
    problems = storage.check_checksums(folder)
    if problems is None:
        raise CheckpointError("its SHA256SUMS is missing")
    if problems:
        raise CheckpointError(f"it was damaged: {'; '.join(problems[:3])}")
    values: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    return values


def read_shards(folder: Path) -> dict[str, Any]:
    """Verify a folder; returns what is not a tensor and, whole and on the CPU, all tensors.

    Returns:
        The values; and `method` and `optimizer`, the states of both as torch has them in one
        process.

    Raises:
        CheckpointError: The folder is not as it was written, or it is none of ours.
    """
    values = read_values(folder)
    method, optimizer = as_states(read_tensors(folder), groups_of(values))
    return {**values, "method": method, "optimizer": numbered(optimizer)}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors, whole and on the CPU, as `as_tensors` names them; no other rank takes part.

    Args:
        folder: As `read_values` has verified it.
    """
    reader = _Reader(folder)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.entries().items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def groups_of(values: Mapping[str, Any]) -> list[State]:
    """The optimizer's groups with names of parameters; JSON made lists of what were tuples."""
    return [
        {
            key: tuple(value) if isinstance(value, list) and key != "params" else value
            for key, value in group.items()
        }
        for group in values["groups"]
    ]


def load_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in place, each rank its part of what is sharded. Every rank calls it.

    Args:
        folder: As `read_values` has verified it.
        tensors: As `as_tensors` names them.

    Raises:
        CheckpointError: The folder holds other tensors than these.
    """
    reader = _Reader(folder)
    there = {name: tuple(entry.size) for name, entry in reader.entries().items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = sorted(name for name in there.keys() | wanted if there.get(name) != wanted.get(name))
    if names:
        raise CheckpointError(f"{len(names)} of its tensors differ, the first is {names[0]}")
    load(dict(tensors), storage_reader=reader)


class _Reader(FileSystemReader):
    """torch's, with metadata that is read without running anything that a pickle may hold."""

    _metadata: Metadata | None = None

    def read_metadata(self) -> Metadata:  # type: ignore[override]  # of all ranks together
        """The names, sizes and places of all tensors.

        Raises:
            CheckpointError: There is something else than tensors.
        """
        if self._metadata is None:
            with (Path(self.path) / METADATA_FILE).open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
            entries = metadata.state_dict_metadata.values() if type(metadata) is Metadata else [0]
            if any(type(entry) is not TensorStorageMetadata for entry in entries):
                raise CheckpointError(f"{METADATA_FILE} describes something else than tensors")
            self._metadata = metadata
        return self._metadata

    def entries(self) -> dict[str, TensorStorageMetadata]:
        """Size and type of each tensor."""
        found: Any = self.read_metadata().state_dict_metadata
        return found


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes of `torch.distributed.checkpoint`'s metadata, and torch's types of numbers.

    `pickle` has this hook for restricting what a pickle may name.
    """

    KNOWN = frozenset(
        {
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("pathlib", "PosixPath"),
            ("pathlib._local", "PosixPath"),
        }
    )
    METADATA = "torch.distributed.checkpoint.metadata"
    METADATA_CLASSES = frozenset(
        {
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "BytesStorageMetadata",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle names, if it is known."""
        known = (module, name) in self.KNOWN
        known |= module == self.METADATA and name in self.METADATA_CLASSES
        known |= module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not known:
            raise CheckpointError(f"{METADATA_FILE} names {module}.{name}, which is not loaded")
        return super().find_class(module, name)
