"""How fast passes were on this machine, and where that is noted."""

from __future__ import annotations

from pathlib import Path

from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.cost import (
    FILE,
    Pass,
    device_kind,
    note_passes,
    read_throughput,
)
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.base import open_split

from .conftest import ColourEncoder, make_backbone, squares_task


def noted(images: int = 100, seconds: float = 20.0, row: str = "toy") -> Pass:
    return Pass(row, "cpu", "float32", images, seconds, 4096, 2 * 10**9)


def test_notes_are_added_up_and_survive_damage(workspace: Workspace) -> None:
    note_passes([], workspace)
    assert not (workspace.root / FILE).exists()
    note_passes([noted(100, 20.0), noted(300, 20.0), noted(5, 1.0, row="other")], workspace)
    known = read_throughput(workspace)["toy float32 cpu"]
    assert (known.num_images, known.seconds) == (400, 40.0)
    (workspace.root / FILE).write_text('{"toy float32 cpu": 3}')
    assert read_throughput(workspace) == {}
    note_passes([noted()], workspace)
    assert len(read_throughput(workspace)) == 1


def test_the_store_notes_its_passes(workspace: Workspace, tmp_path: Path) -> None:
    store, backbone = FeatureStore(tmp_path / "features"), make_backbone(ColourEncoder())
    dataset = open_split(squares_task(), "test", workspace)
    store.images(backbone, dataset)
    store.images(backbone, dataset)
    assert len(store.passes) == 1
    found = store.passes[0]
    assert (found.row, found.device, found.num_images) == ("toy", "cpu", 24)
    outputs = store.images(backbone, dataset)
    assert outputs.joint is not None
    assert found.bytes_per_image == 4 * (outputs.backbone.shape[1] + outputs.joint.shape[1])
    assert found.memory_bytes > 10**6
    assert device_kind("cpu") == "cpu"
