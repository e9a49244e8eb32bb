"""A ViT of two blocks and three colours, on which a training takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from maskclip_bench.backbones import Backbone, as_backbone
from maskclip_bench.data.readers import Dataset
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import TaskDeclaration
from maskclip_bench.tasks.finetuning.folder import TrainFolder
from maskclip_bench.tasks.finetuning.recipe import Augmentation, TrainRecipe
from maskclip_bench.tasks.finetuning.training import TrainRun
from maskclip_bench.tasks.protocols.base import open_split

SIZE = 16
NUM_TRAIN = 18
"""Images of the training split of `maskclip_bench.testing.tiny_images`."""


def tiny_vit(**fields: Any) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer(
            img_size=SIZE, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0, **fields
        )


def tiny_backbone(model: torch.nn.Module | None = None) -> Backbone:
    return as_backbone(
        model or tiny_vit(),
        image_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        name="tiny",
    )


def tiny_recipe(**changes: Any) -> TrainRecipe:
    """Three epochs of three steps of six images, everything on."""
    values: dict[str, Any] = {
        "epochs": 3,
        "global_batch_size": 6,
        "micro_batch_size": 2,
        "lr": 1e-2,
        "warmup_epochs": 1,
        "weight_decay": 0.05,
        "layer_decay": 0.75,
        "drop_path": 0.3,
        "label_smoothing": 0.1,
        "ema_decay": 0.8,
        "augmentation": Augmentation(
            auto_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25, mixup=0.8, cutmix=1.0
        ),
        "precision": "fp32",
    }
    return TrainRecipe(**{**values, **changes})


def tiny_run(
    task: TaskDeclaration, root: Path, recipe: TrainRecipe, *, folder: str = "run", **more: Any
) -> TrainRun:
    train: Dataset = open_split(task, "train", Workspace(root=root, data=root))
    return TrainRun(
        backbone=more.pop("backbone", None) or tiny_backbone(),
        recipe=recipe,
        train=train,
        folder=TrainFolder(root / folder),
        num_classes=3,
        **more,
    )
