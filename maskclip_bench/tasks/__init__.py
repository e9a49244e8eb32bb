"""Data sets (`tasks/*.yaml`) and the protocols that measure backbones on them."""

from __future__ import annotations

from maskclip_bench.errors import unknown_name
from maskclip_bench.tasks.declaration import (
    TaskDeclaration,
    data_available,
    dataset_names,
    load_task,
    load_task_declaration,
    missing_data,
    task_names,
)
from maskclip_bench.tasks.protocol import (
    Protocol,
    ProtocolContext,
    cell_fingerprint,
)

PROTOCOLS: dict[str, Protocol] = {}
"""All protocols by name; one line each."""


def get_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in PROTOCOLS:
        raise unknown_name(
            "protocol", name, PROTOCOLS, remedy="List tasks with: maskclip-bench list tasks"
        )
    return PROTOCOLS[name]


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
