"""Checkpoints: everything a run needs to be resumed, tensors and plain values only.

A checkpoint is a file `step_*.pt`, or a folder `step_*.dcp` to which several processes write
(`training.shards`). Either is whole or absent (written aside, flushed, renamed) and has a SHA-256
of its content, which is verified when it is read: one that was cut or changed by a single bit is
noticed, and the one before it is used. The newest few are kept. Nothing is unpickled: tensors are
read with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskclip_bench import storage
from maskclip_bench.errors import CheckpointError, first_line
from maskclip_bench.training.nonfinite import shortened
from maskclip_bench.training.shards import (
    SHARDS_SUFFIX,
    ShardWriter,
    groups_of,
    read_shards,
    read_values,
)

logger = logging.getLogger(__name__)

FORMAT = 2
"""2 ends with a checksum and knows its data; files of format 1 are still read."""
READABLE_FORMATS = (1, 2)
PREFIX = "step_"
SUFFIX = ".pt"
DAMAGED_SUFFIX = ".damaged"

SEAL = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")
SEAL_BYTES = len("\nsha256 ") + 64 + len("\n")
"""Behind torch's archive, which is found from its end and has room for a comment there."""

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps.

    The position in the data and every random stream follow from (seed, step, rank), so the step
    is all that is stored of them.

    Attributes:
        step: Optimizer steps done.
        method: State of the method: student, heads, teacher, quantizer.
        optimizer: State of the optimizer.
        counters: Plain numbers of the run, such as steps skipped.
        recipe: The recipe, as plain values.
        world_size: Processes that trained.
        data: Identity of what it was trained on, as plain values; empty in files of format 1.
        shards: The folder of its tensors, where they are not read yet; then `method` is empty, and
            of `optimizer` only `param_groups` is there, with names of parameters.
    """

    step: int
    method: dict[str, Any]
    optimizer: dict[str, Any]
    counters: dict[str, int]
    recipe: dict[str, Any]
    world_size: int = 1
    data: dict[str, Any] = field(default_factory=dict)
    shards: Path | None = None

    def values(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "format": FORMAT,
            "step": self.step,
            "counters": self.counters,
            "recipe": self.recipe,
            "world_size": self.world_size,
            "data": self.data,
        }


class CheckpointStore:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then remove the oldest beyond `keep`.

        Raises:
            StorageError: The disk refused; older checkpoints are untouched.
        """
        path = self._path(checkpoint.step)
        tensors = {"method": checkpoint.method, "optimizer": checkpoint.optimizer}
        with storage.atomic_file(path) as temporary:
            _write({**checkpoint.values(), **tensors}, temporary)
        self._remove_old()
        return path

    def save_in_shards(
        self,
        writer: ShardWriter,
        checkpoint: Checkpoint,
        tensors: Mapping[str, Tensor],
        groups: list[dict[str, Any]],
    ) -> None:
        """Write a checkpoint in the background; the oldest beyond `keep` go when it is complete.

        Every rank calls it.

        Args:
            writer: Of this rank.
            checkpoint: Without tensors.
            tensors: Those of method and optimizer, as `shards.as_tensors` names them.
            groups: The optimizer's groups, with names of parameters.

        Raises:
            StorageError: The disk refused, now or for the checkpoint before.
        """
        path = self._path(checkpoint.step).with_suffix(SHARDS_SUFFIX)
        values = {**checkpoint.values(), "groups": groups}
        writer.begin(path, tensors, values, after=self._remove_old)

    def load(self, step: int, *, whole: bool = True) -> Checkpoint:
        """The checkpoint of a step.

        Args:
            step: Which.
            whole: See `load_checkpoint`.

        Raises:
            CheckpointError: It cannot be read.
        """
        path = self._path(step)
        found = [other for other in self.paths() if other.stem == path.stem]
        return load_checkpoint(found[-1] if found else path, whole=whole)

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return checkpoint_paths(self._folder)

    def latest(self, *, set_aside: bool = False, whole: bool = True) -> Checkpoint | None:
        """The newest readable checkpoint; None if there has never been one.

        Args:
            set_aside: Rename damaged files, so that they do not count among those kept.
            whole: See `load_checkpoint`.

        Raises:
            CheckpointError: There are some, and none can be read.
        """
        errors: list[CheckpointError] = []
        damaged: list[Path] = []
        for path in reversed(self.paths()):
            try:
                found = load_checkpoint(path, whole=whole)
            except CheckpointError as error:
                errors.append(error)
                damaged.append(path)
                continue
            for passed_over in errors:
                logger.warning("%s The one before it, %s, is used instead.", passed_over, path)
            if set_aside:
                for other in damaged:
                    with contextlib.suppress(OSError):
                        other.rename(other.with_name(other.name + DAMAGED_SUFFIX))
            return found
        if errors:
            names = ", ".join(path.name for path in damaged)
            raise CheckpointError(
                f"None of the checkpoints in {self._folder} can be read ({names}). {errors[0]} "
                "Restore one from a backup, or remove the run's folder to start it again."
            )
        return None

    def _path(self, step: int) -> Path:
        return self._folder / f"{PREFIX}{step:08d}{SUFFIX}"

    def _remove_old(self) -> None:
        for old in self.paths()[: -self._keep]:
            if old.is_dir():
                storage.remove_folder(old)
            else:
                with contextlib.suppress(OSError):
                    old.unlink()


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [
        path for suffix in (SUFFIX, SHARDS_SUFFIX) for path in folder.glob(f"{PREFIX}*{suffix}")
    ]
    return sorted(found)


def load_checkpoint(path: Path, *, whole: bool = True) -> Checkpoint:
    """Read and verify one checkpoint.

    Args:
        path: A file `step_*.pt` or a folder `step_*.dcp`.
        whole: Whether the tensors of a folder are read too; they come whole, on the CPU.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it is of another format.
    """
    in_shards = path.suffix == SHARDS_SUFFIX
    if not (path.is_dir() if in_shards else path.is_file()):
        raise CheckpointError(
            f"No checkpoint {path}. Give a file checkpoints/step_*.pt of a run (or a folder "
            "step_*.dcp of a run in shards), or the folder of the run."
        )
    try:
        sealed, payload = _read_folder(path, whole) if in_shards else _read_file(path)
    except Exception as error:  # torch, zipfile and pickle each have their own
        reason = first_line(error, 200)
        raise CheckpointError(f"The checkpoint {path} cannot be read: {reason}.") from error
    found = payload.get("format") if isinstance(payload, Mapping) else type(payload).__name__
    if found not in READABLE_FORMATS:
        raise CheckpointError(
            f"{path} is not a checkpoint of this version (format {found!r}, expected {FORMAT}). "
            "Use the version of maskclip-bench that wrote it."
        )
    if not sealed and found != 1:
        raise CheckpointError(f"The checkpoint {path} cannot be read: its checksum is missing.")
    try:
        return Checkpoint(
            step=int(payload["step"]),
            method=dict(payload["method"]),
            optimizer=dict(payload["optimizer"]),
            counters=dict(payload["counters"]),
            recipe=dict(payload["recipe"]),
            world_size=int(payload["world_size"]),
            data=dict(payload.get("data", {})),
            shards=path if in_shards and not whole else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: a part is missing or of another kind ({error})."
        ) from error


def _read_file(path: Path) -> tuple[bool, Any]:
    """Whether it has a checksum (which is right), and its content."""
    return _is_sealed(path), torch.load(path, map_location="cpu", weights_only=True)


def _read_folder(path: Path, whole: bool) -> tuple[bool, dict[str, Any]]:
    if whole:
        return True, read_shards(path)
    values = read_values(path)
    return True, {**values, "method": {}, "optimizer": {"param_groups": groups_of(values)}}


def _is_sealed(path: Path) -> bool:
    """Whether a file ends with a checksum, which is then verified.

    Raises:
        CheckpointError: The content is not that of which the checksum was taken.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - SEAL_BYTES))
        seal = SEAL.fullmatch(file.read())
        if seal is None:
            return False
        file.seek(0)
        digest = hashlib.sha256()
        left = size - SEAL_BYTES
        while left > 0:
            block = file.read(min(left, BLOCK_BYTES))
            if not block:
                break
            digest.update(block)
            left -= len(block)
    if digest.hexdigest() != seal[1].decode():
        raise CheckpointError("its content does not match its SHA-256, so it was damaged")
    return True


def restore_module(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load a state into a module; names and shapes must be the same.

    Raises:
        CheckpointError: The state is of another model.
    """
    expected = module.state_dict()
    problems = {
        "missing": [name for name in expected if name not in state],
        "unknown": [name for name in state if name not in expected],
        "of another shape": [
            name
            for name, value in expected.items()
            if name in state and getattr(state[name], "shape", None) != value.shape
        ],
    }
    if any(problems.values()):
        found = [
            f"{len(names)} {what} ({shortened(names)})" for what, names in problems.items() if names
        ]
        raise other_model(where, f"of its tensors are {'; '.join(found)}")
    module.load_state_dict(state)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], *, where: str
) -> None:
    """Load a state into an optimizer; its groups must have the same parameters.

    Raises:
        CheckpointError: The state is of another model.
    """
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise other_model(where, error) from error


def other_model(where: str, error: Exception | str) -> CheckpointError:
    """The error for a state that does not fit the model."""
    return CheckpointError(
        f"The state in {where} is of another model than the recipe builds: {error}. Resume with "
        "the recipe and the version of maskclip-bench that wrote it, or start in another folder."
    )


def _write(payload: dict[str, Any], path: Path) -> None:
    """`torch.save` and the checksum, with the disk's refusal as the `OSError` it was."""
    with path.open("wb") as file:
        sealing: Any = _SealingFile(file)
        try:
            torch.save(payload, sealing)
        except RuntimeError:  # torch's archive writer hides the error of the file beneath
            if sealing.error is not None:
                raise sealing.error from None
            raise
        file.write(b"\nsha256 " + sealing.digest.hexdigest().encode() + b"\n")


class _SealingFile:
    """A file that hashes what is written and remembers the first error of a write."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = int(self._file.write(data))
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()
