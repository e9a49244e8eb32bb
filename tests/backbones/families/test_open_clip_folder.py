from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskclip_bench import storage
from maskclip_bench.backbones import load_backbone
from maskclip_bench.errors import CheckpointError, NonFiniteError
from maskclip_bench.runtime import Workspace

from .conftest import declare

ROW: dict[str, Any] = {"source": {"open_clip_folder": "folder"}}


@pytest.fixture
def folder(workspace: Workspace, write_folder: Callable[..., Path]) -> Path:
    return write_folder(workspace.root / "folder")


def test_flipped_bit__is_named(workspace: Workspace, folder: Path) -> None:
    storage.write_checksums(folder)
    assert load_backbone(declare(**ROW), workspace=workspace).has_text
    path = folder / "open_clip_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"is damaged: open_clip_model.safetensors differs .*Export it again"
    ):
        load_backbone(declare(**ROW), workspace=workspace)


def test_missing_tokenizer__is_named_and_an_added_note_is_not(
    workspace: Workspace, folder: Path
) -> None:
    storage.write_checksums(folder)
    (folder / "notes.txt").write_text("mine")
    load_backbone(declare(**ROW), workspace=workspace)
    next(folder.glob("*.gz")).unlink()
    with pytest.raises(CheckpointError, match=r"is damaged: .*\.gz is missing"):
        load_backbone(declare(**ROW), workspace=workspace)


def test_weights_that_are_not_finite__are_refused(workspace: Workspace, folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(str(path))
    name = next(key for key in tensors if key.endswith("proj.weight"))
    tensors[name].view(-1)[0] = float("inf")
    save_file(tensors, str(path))
    with pytest.raises(NonFiniteError, match=f"row: 1 tensors of its weights .*{name}"):
        load_backbone(declare(**ROW), workspace=workspace)


@pytest.mark.parametrize("where", ["tokenizer_kwargs", "hf_model_config"])
def test_code_of_a_folder__is_refused(where: str, workspace: Workspace, folder: Path) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"].setdefault(where, {})["trust_remote_code"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"sets trust_remote_code, which would run Python"):
        load_backbone(declare(**ROW), workspace=workspace)


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("import sys; sys.evil_was_here = True",))


def test_pickle_in_a_folder__is_not_executed(workspace: Workspace, folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": Evil()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"cannot be loaded"):
        load_backbone(declare(**ROW), workspace=workspace)
    assert not hasattr(sys, "evil_was_here")


def test_config_without_model__is_damaged(workspace: Workspace, folder: Path) -> None:
    (folder / "open_clip_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"cannot be loaded .TypeError"):
        load_backbone(declare(**ROW), workspace=workspace)


def test_vision_trunk(workspace: Workspace, folder: Path) -> None:
    row = declare(**ROW)
    backbone = load_backbone(row, workspace=workspace)
    assert row.family.vision_trunk(backbone.model) is backbone.model.visual.trunk
