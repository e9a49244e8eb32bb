"""The example of docs/own_encoder.md is loaded as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from maskclip_bench.backbones import load_backbone, resolve_backbone
from maskclip_bench.runtime import Workspace

from .conftest import declare

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "own_encoder.md"


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found.group(1)


def test_example(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "my_encoder.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        word = re.search(r"-b (\S+)", block("bash"))
        assert word is not None
        row = resolve_backbone(word.group(1))
        assert row.has_text is False
        images = torch.rand(2, 3, 32, 32)
        assert load_backbone(row, workspace=workspace).forward_features(images).shape == (2, 64)
        declared = declare(**yaml.safe_load(block("yaml")))
        backbone = load_backbone(declared, workspace=workspace)
        assert backbone.forward_features(images).shape == (2, 128)
    finally:
        sys.modules.pop("my_encoder", None)
