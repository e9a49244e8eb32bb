"""Pictures of a few predictions: which images, where they go, and that they never fail a test."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.backbones.openmmlab.pictures import Pictures


def test_pictures__of_a_segmentation(tmp_path: Path, scenes: Path) -> None:
    """The truth is on the left, and the wrong class of the prediction on the right."""
    pytest.importorskip("mmseg")
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    palette = [[250, 0, 0], [0, 250, 0], [0, 0, 250]]
    visualizer = SegLocalVisualizer(alpha=1.0)
    visualizer.dataset_meta = {"classes": ("a", "b", "c"), "palette": palette}
    images = sorted((scenes / "images" / "training").iterdir())
    runner: Any = SimpleNamespace(visualizer=visualizer, test_dataloader=_Loader(len(images), 3))
    hook = Pictures(
        "training", str(tmp_path / "p"), str(tmp_path / "p.json"), str(scenes / "images"), number=3
    )
    hook.before_test(runner)
    for start in range(0, len(images), 3):
        batch = []
        for path in images[start : start + 3]:
            sample = SegDataSample(metainfo={"img_path": str(path)})
            sample.gt_sem_seg = PixelData(data=torch.zeros(1, 64, 64, dtype=torch.long))
            sample.pred_sem_seg = PixelData(data=torch.ones(1, 64, 64, dtype=torch.long))
            batch.append(sample)
        hook.after_test_iter(runner, start // 3, outputs=batch)
    hook.after_test(runner)
    index = json.loads((tmp_path / "p.json").read_text())
    assert (index["split"], index["left"], index["right"]) == ("training", "truth", "prediction")
    assert [entry["sample_id"] for entry in index["pictures"]] == [
        f"training/{number:03d}.jpg" for number in (0, 2, 5)
    ]
    pixels = np.asarray(Image.open(tmp_path / index["pictures"][0]["file"]))
    assert pixels.shape == (64, 128, 3)
    assert pixels[:, :64, 0].min() > 200 and pixels[:, 64:, 1].min() > 200


class _Loader:
    def __init__(self, number: int, batch_size: int) -> None:
        self.dataset, self.batch_size = range(number), batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)


def test_pictures__a_failure_is_a_warning(
    tmp_path: Path, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner: Any = SimpleNamespace(visualizer=None, test_dataloader=_Loader(1, 1))
    hook = Pictures("s", str(tmp_path / "p"), str(tmp_path / "p.json"))
    hook.before_test(runner)
    image = next((scenes / "images" / "training").iterdir())
    hook.after_test_iter(runner, 0, outputs=[_Sample(str(image))])
    hook.after_test(runner)
    assert "no picture" in caplog.text
    assert json.loads((tmp_path / "p.json").read_text())["pictures"] == []


class _Sample(dict):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.img_path = path


@pytest.mark.parametrize(("number", "total"), [(0, 5), (4, 2), (4, 0)])
def test_pictures__few_images_or_none(number: int, total: int, tmp_path: Path) -> None:
    hook = Pictures("s", str(tmp_path), str(tmp_path / "p.json"), number=number)
    hook.before_test(SimpleNamespace(test_dataloader=_Loader(total, 2)))
    assert len(hook._chosen) == min(number, total)
