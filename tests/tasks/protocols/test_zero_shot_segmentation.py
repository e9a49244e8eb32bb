"""Zero-shot segmentation: what it needs of a backbone."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.backbones.loading import load_backbone
from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.protocols.zero_shot_segmentation import (
    ZeroShotSegmentation,
    patch_projection,
)

from .scenes import ROW


def test_projection__needs_an_open_clip_model(tmp_path: Path) -> None:
    backbone = load_backbone(ROW, workspace=Workspace(root=tmp_path, data=tmp_path))
    with pytest.raises(ConfigError, match="random has no projection that patch tokens can go"):
        patch_projection(backbone)
    assert ZeroShotSegmentation.needs_text
