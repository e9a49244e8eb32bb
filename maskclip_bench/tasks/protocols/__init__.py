"""The protocols: one file is one way to evaluate, one line registers it."""

from __future__ import annotations

from maskclip_bench.errors import unknown_name
from maskclip_bench.tasks.protocols.base import (
    Protocol,
    ProtocolContext,
    cell_fingerprint,
)
from maskclip_bench.tasks.protocols.detection import Detection
from maskclip_bench.tasks.protocols.few_shot import FewShot
from maskclip_bench.tasks.protocols.knn import KNN
from maskclip_bench.tasks.protocols.linear_probe import LinearProbe
from maskclip_bench.tasks.protocols.patch_segmentation import (
    KnnSegmentation,
    LinearSegmentation,
    ZeroShotSegmentation,
)
from maskclip_bench.tasks.protocols.retrieval import Retrieval
from maskclip_bench.tasks.protocols.segmentation import Segmentation
from maskclip_bench.tasks.protocols.zero_shot_classification import ZeroShotClassification

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


__all__ = ["PROTOCOLS", "Protocol", "ProtocolContext", "cell_fingerprint", "get_protocol"]
