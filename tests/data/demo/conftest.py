from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.data.demo import DemoSizes, prepare_demo

TINY = DemoSizes(
    pretrain=45,
    shard=20,
    objects_train=6,
    objects_val=1,
    objects_val_ood=1,
    objects_tune=1,
    captions_test=12,
    captions_val=5,
    scenes_training=6,
    scenes_validation=5,
    scenes_validation_ood=5,
    instances_train=12,
    instances_val=8,
    instances_val_ood=8,
)
"""All layouts, made in about a second."""


MINI = DemoSizes(
    pretrain=3,
    shard=2,
    objects_train=1,
    objects_val=0,
    objects_val_ood=0,
    objects_tune=0,
    captions_test=2,
    captions_val=0,
    scenes_training=1,
    scenes_validation=0,
    scenes_validation_ood=0,
    instances_train=1,
    instances_val=0,
    instances_val_ood=0,
)
"""For tests of the making itself."""


@pytest.fixture(scope="session")
def mini() -> DemoSizes:
    return MINI


@pytest.fixture(scope="session")
def sizes() -> DemoSizes:
    return TINY


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo world to read; tests that alter one make their own."""
    return prepare_demo(tmp_path_factory.mktemp("data"), sizes=TINY)
