"""Where weights are, asked without loading them."""

from __future__ import annotations

from pathlib import Path

from maskclip_bench.backbones import load_backbone_declaration
from maskclip_bench.backbones.presence import missing_weights, weights_available, weights_folder
from maskclip_bench.runtime import Workspace


def test_recipe_row__missing_then_here(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    row = load_backbone_declaration("clip_vit-demo_demo")
    folder = weights_folder(row, workspace, 3)
    assert folder == tmp_path / "pretrain" / "demo" / "clip" / "seed3" / "model"
    assert "no weights in" in str(missing_weights(row, workspace, 3))
    assert not weights_available(row, workspace, 3)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    assert missing_weights(row, workspace, 3) is None
    assert weights_available(row, workspace, 3)
    assert not weights_available(row, workspace, 0)


def test_drawn_weights__have_no_folder_and_are_here(tmp_path: Path) -> None:
    row = load_backbone_declaration("random_init_vit-demo_demo")
    assert weights_folder(row, Workspace.open(tmp_path)) is None
    assert weights_available(row, Workspace.open(tmp_path))
