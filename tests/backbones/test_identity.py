"""Whatever a row is made of: a change of it changes the row's identity, and nothing else does."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from maskclip_bench.backbones import BackboneDeclaration, weights_identity
from maskclip_bench.runtime import Workspace

from .conftest import declare

WriteFolder = Callable[..., Path]

MODULE = """
import torch
from own_layers import scale

class Encoder:
    preprocess = {"image_size": 16, "mean": [0.0] * 3, "std": [1.0] * 3}

    def __init__(self, file):
        self.net = torch.nn.Linear(3, 4)
        self.net.load_state_dict(torch.load(file, weights_only=True))

    def encode_image(self, images):
        return self.net(images.mean(dim=(2, 3))) * scale()

def make(file):
    return Encoder(file)
"""


@pytest.fixture
def made(
    tmp_path: Path,
    workspace: Workspace,
    write_folder: WriteFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dict[str, BackboneDeclaration]]:
    """One row of each family that has files on this machine, below `tmp_path`."""
    root = workspace.root
    write_folder(root / "folder")
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), root / "vit.pth")
    torch.save({"a": torch.zeros(1)}, root / "clip.pt")
    hf = root / "hf"
    hf.mkdir()
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (hf / name).write_text(json.dumps({"model_type": "vit"}))
    save_file({"a": torch.zeros(1)}, str(hf / "model.safetensors"))
    code = root / "code"
    code.mkdir()
    (code / "own_encoder.py").write_text(MODULE)
    (code / "own_layers.py").write_text("def scale():\n    return 2\n")
    torch.save(torch.nn.Linear(3, 4).state_dict(), root / "linear.pt")
    monkeypatch.syspath_prepend(str(code))
    arguments = {"file": str(root / "linear.pt")}
    yield {
        "folder": declare(source={"open_clip_folder": "folder"}),
        "timm": declare(source={"timm": "test_vit", "checkpoint": "vit.pth"}),
        "open_clip": declare(source={"open_clip": "ViT-B-32", "pretrained": str(root / "clip.pt")}),
        "hf": declare(source={"huggingface": str(hf)}),
        "python": declare(source={"python": "own_encoder:make", "arguments": arguments}),
    }
    for name in ("own_encoder", "own_layers"):
        sys.modules.pop(name, None)


def edit_config(root: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = root / "folder" / "open_clip_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def other_weights(path: Path) -> None:
    tensors = load_file(str(path))
    save_file({name: value + 1 for name, value in tensors.items()}, str(path))


def other_checkpoint(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, path)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def activation(config: dict[str, object]) -> None:
    config["model_cfg"]["quick_gelu"] = True  # type: ignore[index]


def normalization(config: dict[str, object]) -> None:
    config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]  # type: ignore[index]


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "weights of a folder": (
        "folder", lambda root: other_weights(root / "folder" / "open_clip_model.safetensors"),
    ),
    "mean of a folder": ("folder", lambda root: edit_config(root, normalization)),
    "activation of a folder": ("folder", lambda root: edit_config(root, activation)),
    "tokenizer of a folder": (
        "folder", lambda root: next((root / "folder").glob("*.gz")).write_bytes(b"merges"),
    ),
    "checkpoint: of timm": ("timm", lambda root: other_checkpoint(root / "vit.pth")),
    "pretrained: file of open_clip": (
        "open_clip", lambda root: other_checkpoint(root / "clip.pt"),
    ),
    "weights of a Hugging Face folder": (
        "hf", lambda root: other_weights(root / "hf" / "model.safetensors"),
    ),
    "processor of a Hugging Face folder": (
        "hf", lambda root: append(root / "hf" / "preprocessor_config.json", " "),
    ),
    "tokenizer of a Hugging Face folder": (
        "hf", lambda root: append(root / "hf" / "tokenizer.json", " "),
    ),
    "configuration of a Hugging Face folder": (
        "hf", lambda root: append(root / "hf" / "config.json", " "),
    ),
    "weights of a python encoder": (
        "python", lambda root: other_checkpoint(root / "linear.pt"),
    ),
    "code of a python encoder": (
        "python", lambda root: replaced(root / "code/own_encoder.py", "scale()\n", "scale() + 1\n"),
    ),
    "a module that it imports": (
        "python", lambda root: replaced(root / "code/own_layers.py", "2", "3"),
    ),
    "preprocess of a python encoder": (
        "python", lambda root: replaced(root / "code/own_encoder.py", "[1.0]", "[0.5]"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES, ids=str)
def test_change_is_noticed(
    case: str, made: dict[str, BackboneDeclaration], workspace: Workspace
) -> None:
    changed, change = CHANGES[case]
    before = {name: weights_identity(row, workspace) for name, row in made.items()}
    assert before == {name: weights_identity(row, workspace) for name, row in made.items()}
    change(workspace.root)
    after = {name: weights_identity(row, workspace) for name, row in made.items()}
    assert {name for name in made if after[name] != before[name]} == {changed}
    assert not after[changed].startswith("unknown")


def test_moved_folder__is_the_same_row(
    made: dict[str, BackboneDeclaration], workspace: Workspace
) -> None:
    before = weights_identity(made["folder"], workspace)
    moved = workspace.root / "elsewhere"
    shutil.move(workspace.root / "folder", moved)
    path = moved / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = str(next(moved.glob("*.gz")))
    path.write_text(json.dumps(config, indent=1))
    (moved / "README.md").write_text("a card")
    (moved / "provenance.json").write_text("{}")
    row = declare(source={"open_clip_folder": str(moved)})
    assert weights_identity(row, workspace) == before


def test_unreadable__equals_nothing(
    made: dict[str, BackboneDeclaration], workspace: Workspace
) -> None:
    (workspace.root / "vit.pth").unlink()
    first = weights_identity(made["timm"], workspace)
    assert first.startswith("unknown-")
    assert weights_identity(made["timm"], workspace) != first


def test_drawn_weights__follow_seed_and_architecture(workspace: Workspace, tmp_path: Path) -> None:
    row = declare(source={"open_clip": "tiny-identity", "random_init": True})
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1},
    }
    path = tmp_path / "tiny-identity.json"
    found = set()
    for layers in (1, 2):
        config["vision_cfg"]["layers"] = layers  # type: ignore[index]
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
        found |= {weights_identity(row, workspace, seed) for seed in (0, 1)}
    assert len(found) == 4
