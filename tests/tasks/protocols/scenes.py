"""Scenes of two colours with masks, for the protocols that segment with frozen patches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.loading import load_backbone
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.base import ProtocolContext
from maskclip_bench.tasks.protocols.patch_segmentation import PatchProtocol

COLORS = np.array([[20, 40, 200], [230, 40, 30], [40, 220, 60]])
ROW = BackboneDeclaration(
    name="random",
    display_name="Random",
    world="demo",
    source={"timm": "vit_demo_patch8_48", "random_init": True},
)


def write_scenes(root: Path) -> None:
    """Halves of two of three colours; a strip on top is unlabelled."""
    for split, count in (("training", 12), ("validation", 4)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            generator = np.random.default_rng([index, count])
            first, second = generator.permutation(3)[:2]
            labels = np.full((96, 96), first + 1, np.uint8)
            labels[:, 48:] = second + 1
            pixels = COLORS[labels - 1] + generator.integers(-15, 15, (96, 96, 3))
            labels[:8] = 0
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(root / "annotations" / split / f"{index}.png")
    names = [{"name": name, "kind": "thing"} for name in ("blue", "red", "green")]
    (root / "classes.json").write_text(json.dumps(names))


def context(root: Path, protocol: PatchProtocol, **reader: str) -> ProtocolContext:
    task = TaskDeclaration(
        name="halves",
        display_name="Halves",
        world="demo",
        reader={"kind": "ade20k", "root": "halves", **reader},
        splits={"train": "training", "test": "validation"},
        protocols={protocol.name: {"tiles": 2, "max_patches": 600}},
        obtain="-",
    )
    workspace = Workspace(root=root, data=root)
    return ProtocolContext(
        task=task,
        settings=protocol.settings_of(task),
        backbone=load_backbone(ROW, workspace=workspace),
        features=FeatureStore(workspace.features),
        workspace=workspace,
        device=torch.device("cpu"),
    )
