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
from maskclip_bench.tasks.protocols import (
    PROTOCOLS,
    Protocol,
    ProtocolContext,
    cell_fingerprint,
    get_protocol,
)

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "ProtocolContext",
    "TaskDeclaration",
    "cell_fingerprint",
    "data_available",
    "dataset_names",
    "get_protocol",
    "load_task",
    "load_task_declaration",
    "missing_data",
    "task_names",
]
