"""A file of features: tensors in safetensors, and a JSON note with their hash, which commits it."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.errors import storage_error

logger = logging.getLogger(__name__)

_SYSTEM_ERROR = re.compile(r"os error (\d+)|code: (\d+)")
"""Where safetensors says which error of the system stopped it."""

Tensors = dict[str, Tensor]


def read_tensors(path: Path) -> Tensors | None:
    """Stored tensors, or None if there are none or they are damaged (then they are removed)."""
    note = path.with_suffix(".json")
    if not note.is_file():
        return None
    try:
        expected = json.loads(note.read_text(encoding="utf-8"))["sha256"]
        if storage.sha256_file(path) != expected:
            raise ValueError("its hash is not the recorded one")
        return load_file(str(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        logger.warning("Stored features %s are damaged (%s); computing them again", path, error)
        note.unlink(missing_ok=True)
        return None


def write_tensors(path: Path, tensors: Tensors, note: dict[str, Any]) -> None:
    """Write tensors and what they are; the note, written last, makes them count.

    Raises:
        StorageError: The disk refused.
    """
    with storage.atomic_file(path) as temporary:
        try:
            save_file(tensors, str(temporary))
        except SafetensorError as error:
            raise _refusal(error, path) from error
        digest = storage.sha256_file(temporary)
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    storage.write_json(path.with_suffix(".json"), {"sha256": digest, "shapes": shapes, **note})


def _refusal(error: SafetensorError, path: Path) -> Exception:
    """What the disk said, as the error for it: safetensors has a type of its own."""
    found = _SYSTEM_ERROR.search(str(error))
    if found is None:
        return error
    return storage_error(OSError(int(found[1] or found[2]), str(error)), path)
