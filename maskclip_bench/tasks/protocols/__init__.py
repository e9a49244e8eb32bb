"""The protocols: one file is one way to evaluate, one line registers it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskclip_bench.registry import Registry

if TYPE_CHECKING:
    from maskclip_bench.tasks.protocols.base import Protocol

_HERE = "maskclip_bench.tasks.protocols"

PROTOCOLS: Registry[Protocol] = Registry(
    "protocol",
    "maskclip_bench.protocols",
    {
        "zero_shot_classification": f"{_HERE}.zero_shot_classification:ZeroShotClassification",
        "linear_probe": f"{_HERE}.linear_probe:LinearProbe",
        "augmented_linear_probe": f"{_HERE}.augmented_linear_probe:AugmentedLinearProbe",
        "knn": f"{_HERE}.knn:KNN",
        "few_shot": f"{_HERE}.few_shot:FewShot",
        "calibration": f"{_HERE}.calibration:Calibration",
        "finetune": f"{_HERE}.finetune:Finetune",
        "retrieval": f"{_HERE}.retrieval:Retrieval",
        "image_text_matching": f"{_HERE}.image_text_matching:ImageTextMatching",
        "knn_segmentation": f"{_HERE}.knn_segmentation:KnnSegmentation",
        "linear_segmentation": f"{_HERE}.linear_segmentation:LinearSegmentation",
        "zero_shot_segmentation": f"{_HERE}.zero_shot_segmentation:ZeroShotSegmentation",
        "segmentation": f"{_HERE}.segmentation:Segmentation",
        "detection": f"{_HERE}.detection:Detection",
    },
    remedy="List tasks with: maskclip-bench list tasks",
    make=lambda protocol: protocol(),
)
"""One instance of every protocol by name, imported when it is first asked for; one line each."""

__all__ = ["PROTOCOLS"]
