"""No protocol is without a picture: `show` draws a cell of each, from a record and its outcomes."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maskclip_bench.backbones import as_backbone
from maskclip_bench.config import validate
from maskclip_bench.report.show import show_cells
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.results.records import Cell, RecordStore, measured_record
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.measure import measure
from maskclip_bench.testing import tiny_images
from tests.tasks.finetuning.tiny import tiny_backbone

COMMITTED = Path(__file__).resolve().parents[2] / "results/records"


def probe_with_augmentation(root: Path) -> Measurement:
    options = {"global_batch_size": 6, "micro_batch_size": 3, "epochs": 1, "precision": "fp32"}
    settings = {"augmented_linear_probe": {"preset": "small_sgd", "options": options}}
    task = tiny_images(root / "colours").model_copy(update={"protocols": settings})
    workspace = Workspace(root=root / "ws", data=root)
    return measure(PROTOCOLS["augmented_linear_probe"], task, tiny_backbone(), workspace=workspace)


def matching(root: Path) -> Measurement:
    folder = root / "sugar_crepe"
    (folder / "val2017").mkdir(parents=True)
    (folder / "data").mkdir()
    Image.new("RGB", (8, 8), (220, 30, 30)).save(folder / "val2017/red.png")
    entry = {"filename": "red.png", "caption": "red", "negative_caption": "blue"}
    (folder / "data/swap_obj.json").write_text(json.dumps({"0": entry}))
    values: dict[str, Any] = {
        "name": "sugar_crepe",
        "display_name": "SugarCrepe",
        "world": "real",
        "reader": {"kind": "sugar_crepe", "root": "sugar_crepe"},
        "splits": {"test": "test"},
        "protocols": {"image_text_matching": {"preset": "caption_choice"}},
        "obtain": "-",
    }
    task = validate(values, TaskDeclaration, where="test")

    def texts(words: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, -1, -1] if "red" in word else [-1.0, -1, 1] for word in words])

    backbone = as_backbone(
        lambda images: images.mean((2, 3)),
        image_size=8,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        encode_text=texts,
        name="colours",
    )
    workspace = Workspace(root=root / "ws", data=root)
    return measure(PROTOCOLS["image_text_matching"], task, backbone, workspace=workspace)


MEASURED: dict[str, Callable[[Path], Measurement]] = {
    "augmented_linear_probe": probe_with_augmentation,
    "image_text_matching": matching,
}
"""Protocols of which the repository has no record."""

BESIDE_METRICS = {
    "zero_shot_classification": "confusion",
    "linear_probe": "confusion",
    "augmented_linear_probe": "confusion",
    "knn": "curve-top1-accuracy",
    "few_shot": "curve-top1-accuracy",
    "calibration": "calibration",
    "finetune": "confusion",
    "knn_segmentation": "classes",
    "linear_segmentation": "classes",
    "zero_shot_segmentation": "classes",
    "segmentation": "classes",
    "detection": "classes",
}
"""A chart that shows more than the metrics; retrieval has its answers (`test_show.py`)."""


def recorded(protocol: str, workspace: Path) -> str:
    """Put a cell of the protocol into a workspace -> its name."""
    paths = sorted(COMMITTED.glob(f"*/{protocol}__*.json"))
    if not paths:
        measurement = MEASURED[protocol](workspace)
        cell = Cell(
            backbone="mine", protocol=protocol, dataset="x", world="real", cell_fingerprint="f"
        )
        store = RecordStore(workspace / "records")
        store.save(measured_record(cell, measurement, num_resamples=200), measurement.outcomes)
        return f"mine/{protocol}/x"
    values = json.loads(paths[0].read_text())
    target = workspace / "records" / paths[0].parent.name
    target.mkdir(parents=True)
    for path in (paths[0], paths[0].parent / values["outcomes_file"]):
        shutil.copy(path, target)
    return f"{target.name}/{protocol}/{values['cell']['dataset']}"


@pytest.mark.parametrize("protocol", PROTOCOLS.names())
def test_show__draws_a_cell_of_every_protocol(protocol: str, tmp_path: Path) -> None:
    name = recorded(protocol, tmp_path / "workspace")
    workspace = Workspace.open(tmp_path / "workspace")
    files = show_cells(name, workspace, tmp_path / "out", suffix=".svg")
    charts = {file.stem.rpartition("__")[2]: file.read_text(encoding="utf-8") for file in files}
    for text in charts.values():
        ET.fromstring(text)
    (record,) = RecordStore(workspace.records).all()
    assert charts["metrics"].count("<title>") == 1 + len(record.metrics)
    if protocol in BESIDE_METRICS:
        assert BESIDE_METRICS[protocol] in charts, sorted(charts)
