"""Logits of a split, results that are stored and read, the transform at test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from maskclip_bench.backbones.transform import Transform
from maskclip_bench.errors import DataError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import TaskDeclaration
from maskclip_bench.tasks.finetuning.classifier import build_classifier
from maskclip_bench.tasks.finetuning.folder import TrainFolder
from maskclip_bench.tasks.finetuning.recipe import FINETUNE_PRESETS
from maskclip_bench.tasks.finetuning.scoring import (
    ScoredSplit,
    read_result,
    result_of,
    scores_of,
    transform_at_test,
    write_result,
)
from maskclip_bench.tasks.protocols.base import open_split
from tests.tasks.finetuning.tiny import tiny_backbone, tiny_recipe


def test_transform_at_test__as_published() -> None:
    own = Transform(224, 224, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), interpolation="bilinear")
    for name, resized in (("slip_beit", 256), ("mae", 256), ("ft_clip", 224)):
        made = transform_at_test(FINETUNE_PRESETS[name], own)
        assert (made.image_size, made.resize_to, made.interpolation) == (224, resized, "bicubic")
        assert (made.mean, made.std) == (own.mean, own.std)
    assert transform_at_test(FINETUNE_PRESETS["small"], own) is own


def test_scores_of__in_the_order_of_the_images(colours: TaskDeclaration, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    dataset = open_split(colours, "test", Workspace(root=tmp_path, data=tmp_path))
    classifier = build_classifier(backbone, tiny_recipe(), num_classes=3, seed=0)
    told: list[tuple[str, int, int]] = []
    scores = scores_of(
        classifier,
        dataset,
        backbone.transform,
        TrainFolder(tmp_path),
        device=backbone.device,
        progress=lambda *state: told.append(state),
    )
    assert told[-1] == ("testing test", 12, 12)
    images = torch.stack([backbone.transform(dataset.image(i)) for i in range(len(dataset))])
    with torch.no_grad():
        expected = classifier(backbone.transform.normalize(images))
    assert scores is not None
    assert torch.allclose(scores, expected, atol=1e-6)
    dataset.image_paths[2].write_bytes(b"")
    with pytest.raises(DataError, match=dataset.image_paths[2].name):
        scores_of(
            classifier, dataset, backbone.transform, TrainFolder(tmp_path), device=backbone.device
        )


def test_result__is_stored_and_read_unless_damaged(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    dataset = open_split(colours, "test", Workspace(root=tmp_path, data=tmp_path))
    tested = ScoredSplit("", dataset, np.arange(3), "mean_per_class_accuracy")
    scores = torch.eye(3)[torch.from_numpy(dataset.need_labels())]
    scores[0] = torch.tensor([0.0, 1.0, 0.0])
    result = result_of(scores, tested)
    assert result.metrics["top1_accuracy"].value == pytest.approx(11 / 12)
    folder, identity = TrainFolder(tmp_path), tested.identity(None)
    assert read_result(folder, identity) is None
    write_result(folder, identity, result)
    found = read_result(folder, identity)
    assert found is not None
    assert found.metrics == result.metrics
    pd.testing.assert_frame_equal(found.outcomes, result.outcomes)
    folder.result(identity).with_suffix(".parquet").write_bytes(b"x")
    assert read_result(folder, identity) is None


def test_identity__of_all_that_a_result_depends_on(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path)
    test, train = (open_split(colours, split, workspace) for split in ("test", "train"))
    base = ScoredSplit("", test, np.arange(3), "top1_accuracy")
    others = [
        ScoredSplit("", train, np.arange(3), "top1_accuracy").identity(None),
        ScoredSplit("", test, np.arange(2), "top1_accuracy").identity(None),
        ScoredSplit("", test, np.arange(3), "mean_per_class_accuracy").identity(None),
        base.identity(0.5),
    ]
    assert base.identity(None) not in others
    assert len(set(others)) == 4
    assert ScoredSplit("other", test, np.arange(3), "top1_accuracy").identity(
        None
    ) == base.identity(None)


def test_result_of__answers_among_the_classes_that_occur(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    dataset = open_split(colours, "test", Workspace(root=tmp_path, data=tmp_path))
    some = dataset.take([i for i, label in enumerate(dataset.need_labels()) if label != 1])
    scores = torch.tensor([[0.5, 9.0, 0.1]]).expand(len(some), 3)
    found = result_of(scores, ScoredSplit("", some, np.array([0, 2]), "top1_accuracy"))
    assert set(found.outcomes["prediction"]) == {0}
    assert found.metrics["top1_accuracy"].value == 0.5
