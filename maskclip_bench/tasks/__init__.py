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
from maskclip_bench.tasks.detection import Detection
from maskclip_bench.tasks.few_shot import FewShot
from maskclip_bench.tasks.knn import KNN
from maskclip_bench.tasks.linear_probe import LinearProbe
from maskclip_bench.tasks.patch_segmentation import (
    KnnSegmentation,
    LinearSegmentation,
    ZeroShotSegmentation,
)
from maskclip_bench.tasks.protocol import (
    Protocol,
    ProtocolContext,
    cell_fingerprint,
)
from maskclip_bench.tasks.retrieval import Retrieval
from maskclip_bench.tasks.segmentation import Segmentation
from maskclip_bench.tasks.zero_shot_classification import ZeroShotClassification

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        ZeroShotClassification(),
        LinearProbe(),
        KNN(),
        FewShot(),
        Retrieval(),
        KnnSegmentation(),
        LinearSegmentation(),
        ZeroShotSegmentation(),
        Segmentation(),
        Detection(),
    )
}
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
