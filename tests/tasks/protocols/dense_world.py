"""A small demo world and an untrained row, for the protocols that OpenMMLab trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.loading import load_backbone
from maskclip_bench.data.demo import DemoSizes
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.base import ProtocolContext

SIZES = DemoSizes(
    pretrain=2,
    shard=2,
    objects_train=1,
    objects_val=1,
    objects_val_ood=1,
    objects_tune=1,
    captions_test=1,
    captions_val=1,
    scenes_training=16,
    scenes_validation=6,
    scenes_validation_ood=6,
    instances_train=16,
    instances_val=6,
    instances_val_ood=2,
)
ROW = BackboneDeclaration(
    name="random",
    display_name="Random",
    world="demo",
    source={"timm": "vit_demo_patch8_48", "random_init": True},
    arch="ViT-demo",
)


def dense_context(
    root: Path, protocol: str, task: TaskDeclaration, **changes: Any
) -> ProtocolContext:
    """The untrained row on a task whose data is below `root / "data"`."""
    workspace = Workspace(root=root, data=root / "data")
    return ProtocolContext(
        task=task,
        settings=PROTOCOLS[protocol].settings_of(task),
        backbone=load_backbone(ROW, workspace=workspace),
        features=FeatureStore(workspace.features),
        workspace=workspace,
        device=torch.device("cpu"),
        **changes,
    )
