from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskclip_bench.backbones import load_backbone_declaration
from maskclip_bench.errors import DataError
from maskclip_bench.report.costs import RowCost, choose_costs, costs_of
from maskclip_bench.report.selection import ReportRow
from maskclip_bench.runtime import Workspace


def row(name: str, *, declared: bool = True) -> ReportRow:
    return ReportRow(name, name, (0,), 0, load_backbone_declaration(name) if declared else None)


def pretrained(workspace: Workspace, recipe: str, origin: dict[str, object]) -> None:
    """A run of 40 steps of 100 pairs at 1,000 pairs a second, and its model."""
    folder = workspace.pretraining(recipe, 0)
    (folder / "model").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("global_batch_size: 100\n")
    lines = [{"step": step, "images_per_second": 1000.0} for step in (20, 40)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "model/provenance.json").write_text(json.dumps(origin))
    tensors = {
        "visual.head": np.zeros((3, 4), dtype=np.float32),
        "visual.scale": np.zeros((), dtype=np.float32),
        "text.head": np.zeros((50, 2), dtype=np.float32),
    }
    save_file(tensors, folder / "model/open_clip_model.safetensors")


def test_costs__of_a_run_on_gpus_and_of_weights_that_were_drawn(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    origin = {"hardware": {"gpu": "a GPU"}, "num_devices": 8}
    pretrained(workspace, "demo/clip", origin)
    rows = [row("clip_vit-demo_demo"), row("random_init_vit-demo_demo")]
    found = costs_of(rows, workspace)
    assert found["clip_vit-demo_demo"] == RowCost(
        gpu_hours=pytest.approx(8 * 4 / 3600), images_seen=4000, parameters=13
    )
    assert found["random_init_vit-demo_demo"] == RowCost(images_seen=0)


@pytest.mark.parametrize(
    "origin", [{"hardware": {"device": "cpu"}, "num_devices": 1}, {"hardware": {"gpu": "a"}}, {}]
)
def test_costs__hours_are_only_said_of_gpus_that_were_counted(
    origin: dict[str, object], tmp_path: Path
) -> None:
    workspace = Workspace.open(tmp_path)
    pretrained(workspace, "demo/clip", origin)
    assert costs_of([row("clip_vit-demo_demo")], workspace)["clip_vit-demo_demo"].gpu_hours is None


def test_costs__damaged_weights_and_rows_without_a_file(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    pretrained(workspace, "demo/clip", {})
    path = workspace.pretraining("demo/clip", 0) / "model/open_clip_model.safetensors"
    path.write_bytes(b"damaged")
    rows = [row("clip_vit-demo_demo"), row("mine", declared=False)]
    found = costs_of(rows, workspace)
    assert found["clip_vit-demo_demo"].parameters is None
    assert found["mine"] == RowCost()


def test_choose__the_first_that_is_known_of_all() -> None:
    found = {"a": RowCost(None, 10, 5), "b": RowCost(2.0, 20, None)}
    assert choose_costs(found) == ("images_seen", {"a": 10, "b": 20})
    assert choose_costs(found, "images_seen")[0] == "images_seen"
    with pytest.raises(DataError, match=r"does not know parameters of b\. Give a CSV"):
        choose_costs(found, "parameters")
    with pytest.raises(DataError, match="gpu_hours of a; images_seen of a; parameters of a"):
        choose_costs({"a": RowCost()})
