"""Data sets (`tasks/*.yaml`) and the protocols that measure backbones on them."""

from __future__ import annotations

from maskclip_bench.tasks.declaration import (
    TaskDeclaration,
    data_available,
    dataset_names,
    load_task,
    load_task_declaration,
    missing_data,
    task_names,
)
from maskclip_bench.tasks.protocols import PROTOCOLS

__all__ = [
    "PROTOCOLS",
    "TaskDeclaration",
    "data_available",
    "dataset_names",
    "load_task",
    "load_task_declaration",
    "missing_data",
    "task_names",
]
