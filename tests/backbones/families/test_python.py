from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from maskclip_bench.backbones import load_backbone
from maskclip_bench.backbones.transform import IMAGENET_MEAN
from maskclip_bench.errors import CheckpointError, ConfigError, MaskCLIPBenchError
from maskclip_bench.runtime import Workspace

from .conftest import declare

MODULE = """
import sys
import torch

class Texts:
    preprocess = {"image_size": 16, "mean": [0.0] * 3, "std": [1.0] * 3}
    def __init__(self):
        self.parts = {"net": torch.nn.Linear(3, 4)}
    def encode_image(self, images):
        return self.parts["net"](images.mean(dim=(2, 3)))
    def encode_text(self, texts):
        return torch.ones(len(texts), 4)

class ImagesOnly(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 4)
    def forward(self, images):
        return self.net(images.mean(dim=(2, 3)))

class Sized(ImagesOnly):
    preprocess = {"image_size": 16}

class Odd(ImagesOnly):
    preprocess = 3

class Misspelt(ImagesOnly):
    preprocess = {"image_size": 16, "mena": [0.0] * 3}

def raises():
    raise IndexError

def exits():
    sys.exit(0)

def nothing():
    return None

number = 3
made = ImagesOnly()
"""
STATED = {"image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "their_encoders.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("their_encoders", None)


def test_has_text__is_known_before_loading() -> None:
    assert declare(source={"python": "their_encoders:Texts"}).has_text is True
    assert declare(source={"python": "their_encoders:ImagesOnly"}).has_text is False
    assert declare(source={"python": "their_encoders:raises"}).has_text is None


def test_module__is_enough_where_the_row_states_the_preprocessing(workspace: Workspace) -> None:
    row = declare(source={"python": "their_encoders:ImagesOnly"}, preprocess=STATED)
    backbone = load_backbone(row, workspace=workspace)
    assert not backbone.has_text
    assert backbone.forward_features(torch.rand(2, 3, 16, 16)).shape == (2, 4)
    assert backbone.transform.mean == (0.5, 0.5, 0.5)


def test_preprocessing__is_not_guessed(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    bare = declare(source={"python": "their_encoders:ImagesOnly"})
    with pytest.raises(ConfigError, match=r"is not guessed, and image_size, mean, std") as refused:
        load_backbone(bare, workspace=workspace)
    sized = load_backbone(declare(source={"python": "their_encoders:Sized"}), workspace=workspace)
    assert sized.transform.mean == IMAGENET_MEAN
    assert "states an image size and no mean and no std: ImageNet's are taken" in caplog.text
    lines = str(refused.value).splitlines()  # what it says to add is what is read
    stated = eval("".join(lines[1:3]).partition("=")[2])
    assert yaml.safe_load(lines[4]) == {"preprocess": stated}
    row = declare(
        source={"python": "their_encoders:Sized"}, preprocess=yaml.safe_load(lines[4])["preprocess"]
    )
    assert load_backbone(row, workspace=workspace).transform.mean == tuple(stated["mean"])
    with pytest.raises(ConfigError, match=r"preprocess of Odd is a int. Make it a dictionary"):
        load_backbone(declare(source={"python": "their_encoders:Odd"}), workspace=workspace)
    with pytest.raises(ConfigError, match=r"unknown key 'mena'. Known keys: image_size"):
        load_backbone(declare(source={"python": "their_encoders:Misspelt"}), workspace=workspace)


def test_module_already_made__can_be_named(workspace: Workspace) -> None:
    row = declare(source={"python": "their_encoders:made"}, preprocess=STATED)
    assert row.has_text is False
    backbone = load_backbone(row, workspace=workspace)
    assert backbone.forward_features(torch.rand(2, 3, 16, 16)).shape == (2, 4)
    with pytest.raises(ConfigError, match=r"is a model, not a function .* takes no arguments"):
        load_backbone(
            declare(source={"python": "their_encoders:made", "arguments": {"width": 3}}),
            workspace=workspace,
        )


def test_modules_behind_attributes__are_part_of_the_model(workspace: Workspace) -> None:
    backbone = load_backbone(
        declare(source={"python": "their_encoders:Texts"}), workspace=workspace
    )
    assert [tuple(value.shape) for value in backbone.model.parameters()] == [(4, 3), (4,)]
    assert not any(value.requires_grad for value in backbone.model.parameters())


@pytest.mark.parametrize(
    ("python", "kind", "message"),
    [
        ("their_encoders:raises", CheckpointError, r"failed with IndexError: . Correct the fac"),
        (
            "their_encoders:exits",
            CheckpointError,
            r"their_encoders:exits failed with SystemExit: 0",
        ),
        ("their_encoders:nothing", ConfigError, r"returned a NoneType, which is no encoder"),
        ("their_encoders:number", ConfigError, r"is a int, not a function that returns an encod"),
        ("their_encoders:none", ConfigError, r"cannot be imported"),
        ("broken_module:make", ConfigError, r"importing broken_module failed with SystemExit"),
        ("their_encoders", ConfigError, r"should be 'module:factory'"),
    ],
)
def test_whatever_the_code_does__ends_one_row(
    python: str, kind: type[MaskCLIPBenchError], message: str, workspace: Workspace
) -> None:
    with pytest.raises(kind, match=message):
        load_backbone(declare(source={"python": python}), workspace=workspace)


def test_current_folder__is_importable(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "project"
    here.mkdir()
    (here / "encoder_of_this_folder.py").write_text(MODULE)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    row = declare(source={"python": "encoder_of_this_folder:Texts"})
    assert load_backbone(row, workspace=workspace).has_text
    sys.modules.pop("encoder_of_this_folder", None)
