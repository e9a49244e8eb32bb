"""Toy data in the layouts of ADE20K and COCO, drawn in a moment."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

CLASSES = ("ground", "square", "bar")


@pytest.fixture(autouse=True)
def _loggers_of_runners() -> Iterator[None]:
    """A runner's logger writes to a file of its test; no later test goes on with it.

    mmengine keeps the newest logger as the current one. Libraries that configure logging (submitit
    does, when it is imported) close the files of all loggers, and a model that is initialized then
    fails on the closed one.
    """
    if importlib.util.find_spec("mmengine") is None:
        yield
        return
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance()  # the one without a file, of which there is only one
    loggers = MMLogger._instance_dict
    before = set(loggers)
    yield
    for name in set(loggers) - before:
        for handler in loggers.pop(name).handlers:
            handler.close()


def draw(seed: int, size: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int]]]]:
    """An image, its labels (0 = unlabelled, 1..3), and its objects (class 1 or 2, box xywh)."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 60, (size, size, 3), dtype=np.uint8)
    labels = np.ones((size, size), np.uint8)
    labels[:2] = 0
    objects = []
    for kind in (1, 2):
        width = size // 4
        height = width if kind == 1 else width * 2
        x = int(generator.integers(2, size // 2 - width)) + (size // 2 if kind == 2 else 0)
        y = int(generator.integers(2, size - height - 2))
        image[y : y + height, x : x + width, kind] = 230
        labels[y : y + height, x : x + width] = kind + 1
        objects.append((kind, [x, y, width, height]))
    return image, labels, objects


def write_scenes(root: Path, *, size: int = 64, counts: tuple[int, int] = (8, 4)) -> Path:
    for split, count, offset in (("training", counts[0], 0), ("validation", counts[1], 100)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            image, labels, _ = draw(index + offset, size)
            Image.fromarray(image).save(root / "images" / split / f"{index:03d}.jpg", quality=95)
            Image.fromarray(labels).save(root / "annotations" / split / f"{index:03d}.png")
    (root / "classes.json").write_text(json.dumps([{"name": name} for name in CLASSES]))
    return root


def write_instances(root: Path, *, size: int = 64, counts: tuple[int, int] = (8, 4)) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, count, offset in (("train", counts[0], 0), ("val", counts[1], 100)):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            image, _, objects = draw(index + offset, size)
            name = f"{index:03d}.jpg"
            Image.fromarray(image).save(root / split / name, quality=95)
            images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
            for kind, (x, y, w, h) in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": kind,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        categories = [{"id": kind, "name": CLASSES[kind]} for kind in (1, 2)]
        (root / "annotations" / f"instances_{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "data" / "demo" / "scenes")


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    return write_instances(tmp_path / "data" / "demo" / "instances")


class TinyModels:
    """A tiny timm ViT with every parameter random, and folders as open_clip exports them."""

    def __init__(self) -> None:
        self.name = "vit_tiny_patch16_224"
        self.arguments: dict[str, Any] = {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 4,
            "num_heads": 2,
            "num_classes": 0,
        }
        self.open_clip_vit = {"width": 64, "head_width": 32, "layers": 3, "patch_size": 8}

    def random_trunk(self, folder: Path, arguments: dict[str, Any]) -> tuple[nn.Module, Path]:
        """The ViT (norms and positions are random too), and its file."""
        torch.manual_seed(0)
        model = timm.create_model(self.name, **arguments).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        file = folder / "trunk.safetensors"
        save_file(model.state_dict(), file)
        return model, file

    def source(self, file: Path) -> dict[str, Any]:
        """Arguments of a backbone with the weights of `file`."""
        return {"timm": self.name, "model_args": self.arguments, "checkpoint": str(file)}

    def images(self, size: tuple[int, int] = (32, 32)) -> Tensor:
        return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    def open_clip_folder(self, folder: Path, vision: dict[str, Any], *, seed: int = 0) -> nn.Module:
        config: dict[str, Any] = {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, **vision},
            "text_cfg": {
                "context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1,
            },
        }  # fmt: skip
        torch.manual_seed(seed)
        custom = "timm_model_name" in vision
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).eval()
        config["custom_text"] = custom
        folder.mkdir(parents=True)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return model


@pytest.fixture
def tiny() -> TinyModels:
    return TinyModels()


@pytest.fixture
def trunk(tiny: TinyModels, tmp_path: Path) -> tuple[nn.Module, Path]:
    """The tiny ViT and its file."""
    return tiny.random_trunk(tmp_path, tiny.arguments)
