from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from maskclip_bench.errors import DataError
from maskclip_bench.study.collecting import HELD_OUT
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.figure import band, draw_figure, read_curves

KEY = "zero_shot_classification/demo_long_objects/top1_accuracy"


def curves(folder: Path, seeds: int = 2) -> Path:
    lines = [
        {"row": row, "seed": seed, "step": step, "passes": step / 2, "cost": step,
         "metric": metric, "value": 0.1 * (step + seed)}
        for row in ("clip", "maskclip")
        for seed in range(seeds)
        for step in (2, 4)
        for metric in (KEY, HELD_OUT)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(lines).to_csv(folder / "curves.csv", index=False)
    return folder


@pytest.mark.parametrize("seeds", [1, 2])
def test_draw__a_panel_a_metric_above_passes_below_cost(
    study: StudyDeclaration, tmp_path: Path, seeds: int
) -> None:
    output = tmp_path / "new" / "study.png"
    draw_figure(
        study, curves(tmp_path, seeds), output, rows={"clip": "CLIP", "maskclip": "MaskCLIP"}
    )
    with Image.open(output) as image:
        assert image.width > image.height > 500


def test_band__points_that_most_seeds_have() -> None:
    table = pd.DataFrame({"passes": [1, 1, 2, 2, 3], "value": [0.1, 0.3, 0.5, 0.5, 0.9]})
    points = band(table, "passes")
    assert points["passes"].tolist() == [1, 2]  # 3 is of one seed, interrupted there
    assert points["mean"].tolist() == pytest.approx([0.2, 0.5])
    assert points["sd"].tolist() == pytest.approx([0.1 * 2**0.5, 0.0])


def test_read__says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"curves\.csv cannot be read .* maskclip-bench study rep"):
        read_curves(tmp_path, {"clip": "CLIP"})
    with pytest.raises(DataError, match=r"has no line of slip; nothing can be drawn"):
        read_curves(curves(tmp_path), {"slip": "SLIP"})
