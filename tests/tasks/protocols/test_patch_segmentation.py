"""Patch protocols: labels, tiles and fits against plain versions, and a whole run on toy scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.loading import load_backbone
from maskclip_bench.data.dense import count_pixels, read_mask
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.base import ProtocolContext
from maskclip_bench.tasks.protocols.patch_segmentation import (
    KnnSegmentation,
    LinearSegmentation,
    PatchProtocol,
    ZeroShotSegmentation,
    evenly_spaced,
    fit_linear,
    image_windows,
    join_tiles,
    patch_labels,
    patch_projection,
    segment,
)

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


@pytest.mark.parametrize("protocol", [KnnSegmentation(), LinearSegmentation()])
def test_run__colours_are_easy(protocol: PatchProtocol, tmp_path: Path) -> None:
    write_scenes(tmp_path / "halves")
    measurement = protocol.run(context(tmp_path, protocol, classes="classes.json"))
    assert measurement.metrics["mean_iou"].value > 0.85
    assert measurement.metrics["thing_mean_iou"].value > 0.85
    assert set(measurement.details["class_iou"]) <= {"blue", "red", "green"}
    assert len(measurement.outcomes) == 4
    labelled = sum(sum(row) for row in measurement.outcomes["pixel_accuracy.denominator"])
    assert labelled == 4 * 88 * 96


def test_run__no_class_list(tmp_path: Path) -> None:
    write_scenes(tmp_path / "halves")
    with pytest.raises(ConfigError, match=r"declares no classes for.*Set reader\.classes"):
        KnnSegmentation().run(context(tmp_path, KnnSegmentation()))


def test_projection__needs_an_open_clip_model(tmp_path: Path) -> None:
    backbone = load_backbone(ROW, workspace=Workspace(root=tmp_path, data=tmp_path))
    with pytest.raises(ConfigError, match="random has no projection that patch tokens can go"):
        patch_projection(backbone)
    assert ZeroShotSegmentation.needs_text


def test_windows__and_their_tokens_make_the_whole_image_again(tmp_path: Path) -> None:
    backbone = load_backbone(ROW, workspace=Workspace(root=tmp_path, data=tmp_path))
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    windows = image_windows(Image.fromarray(pixels), backbone, tiles=2)  # [4, 3, 48, 48]
    assert torch.equal(windows[1].permute(1, 2, 0), torch.from_numpy(pixels[:48, 48:]))
    # One "token" a pixel: joining the tiles gives the pixels in row-major order.
    tokens = windows.flatten(2).transpose(1, 2)
    assert torch.equal(join_tiles(tokens, 2)[0], torch.from_numpy(pixels).reshape(-1, 3))


def test_patch_labels__shares() -> None:
    mask = np.array([[0, 0, 1, 255], [0, 1, 1, 255], [2, 2, 2, 2], [2, 2, 2, 2]], np.uint8)
    shares = patch_labels(mask, num_classes=3, grid=2)
    expected = torch.tensor([[0.75, 0.25, 0], [0, 0.5, 0], [0, 0, 1], [0, 0, 1]])
    assert torch.equal(shares, expected)


def test_segment__nearest_patch_wins() -> None:
    scores = torch.eye(4)  # 4 patches in a 2 x 2 grid, each of its own class
    assert segment(scores, (4, 4)).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


def test_fit_linear__minimum_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(200, 5, generator=generator)
    labels = torch.eye(3)[(tokens[:, :3]).argmax(1)]
    weight, bias = fit_linear(tokens, labels, l2=1e-2)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    loss = -(labels * (tokens @ weight.T + bias).log_softmax(1)).sum(1).mean()
    (loss + 1e-2 * weight.square().sum()).backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-3
    assert ((tokens @ weight.T + bias).argmax(1) == labels.argmax(1)).float().mean() > 0.9


def test_count_pixels__by_hand() -> None:
    labels = np.array([[0, 0, 1], [1, 255, 1]])
    counts = count_pixels(np.array([[0, 1, 1], [1, 0, 0]]), labels, 3)
    assert {key: value.tolist() for key, value in counts.items()} == {
        "intersection": [1, 2, 0],
        "predicted": [2, 3, 0],
        "labelled": [2, 3, 0],
    }


def test_read_mask__values(tmp_path: Path) -> None:
    file = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 1], [3, 2]], np.uint8)).save(file)
    assert read_mask(file, num_classes=3).tolist() == [[255, 0], [2, 1]]
    with pytest.raises(DataError, match=r"no mask of 2 classes: .* largest value 3"):
        read_mask(file, num_classes=2)
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"mask\.png is no readable image"):
        read_mask(file, num_classes=2)


@pytest.mark.parametrize("num", [1, 1999, 2000, 2001, 3000, 3999, 4001, 20210])
def test_evenly_spaced__reaches_over_the_whole_range(num: int) -> None:
    indices = evenly_spaced(num, 2000)
    assert len(indices) == len(set(indices)) == min(num, 2000)
    steps = np.diff([*indices, num])
    assert indices[0] == 0
    assert steps.max() - steps.min() <= 1
