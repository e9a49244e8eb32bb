"""A row that a job loads: what is missing, and the identity of the loaded one."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.backbones import load_backbone, unloaded_backbone
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.errors import CheckpointError
from maskclip_bench.runtime import Workspace

ROW = BackboneDeclaration(
    name="random",
    display_name="Random",
    world="demo",
    source={"timm": "vit_demo_patch8_48", "random_init": True},
)


def test_unloaded__says_what_is_missing(tmp_path: Path) -> None:
    row = ROW.model_copy(
        update={"source": type(ROW.source)(timm="vit_demo_patch8_48", checkpoint="absent.pth")}
    )
    with pytest.raises(CheckpointError, match=r"random: no file .*absent\.pth"):
        unloaded_backbone(row, workspace=Workspace(root=tmp_path, data=tmp_path))


def test_unloaded__has_the_identity_of_the_loaded_row(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path)
    unloaded = unloaded_backbone(ROW, workspace=workspace, seed=3)
    loaded = load_backbone(ROW, workspace=workspace, seed=3)
    assert unloaded.identity == unloaded.weights_fingerprint == loaded.identity
    assert (unloaded.row_id, unloaded.name) == (loaded.row_id, loaded.name)
    assert not unloaded.has_text and unloaded.transform_id
