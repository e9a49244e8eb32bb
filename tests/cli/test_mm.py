"""`mm TOOLBOX config ROW` on the command line; the scripts are in tests/backbones/openmmlab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine")


@pytest.mark.parametrize(
    ("toolbox", "words", "name"),
    [
        ("mmseg", [], "upernet_8xb2-amp-160k_ade20k-512x512"),
        ("mmseg", ["--head", "linear", "--data", "cityscapes"], "linear_8xb2-40k_cityscapes"),
        ("mmdet", ["--head", "vitdet-mask-rcnn"], "vitdet-mask-rcnn_64xb1-amp-100e_coco-1024"),
    ],
)
def test_config__is_written_and_loads(
    toolbox: str,
    words: list[str],
    name: str,
    in_process: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mmengine.config import Config

    monkeypatch.chdir(tmp_path)
    result = in_process("mm", toolbox, "config", "maskclip_vit-b-16_yfcc15m", *words)
    assert result.code == 0, result.errors
    (file,) = tmp_path.glob("*.py")
    assert name in file.name and file.name in result.output.replace("\n", "")
    loaded = Config.fromfile(str(file))
    assert loaded.model.backbone.backbone == "maskclip_vit-b-16_yfcc15m"
    named = in_process("mm", toolbox, "config", "maskclip_vit-b-16_yfcc15m", "-o", "other.py")
    assert named.code == 0 and (tmp_path / "other.py").is_file()


def test_config__refuses(in_process: Callable[..., Any]) -> None:
    row = "maskclip_vit-b-16_yfcc15m"
    for words, message in (
        (["config"], "usage: maskclip-bench mm mmseg config"),
        (["config", row, "--hea"], "usage: maskclip-bench mm mmseg config"),
        (["config", row, "--head", "upernett"], "Did you mean 'upernet'"),
        (["config", "maskclip_vit-b-17"], "maskclip_vit-b-16"),
    ):
        result = in_process("mm", "mmseg", *words)
        assert result.code == 2, result.errors
        assert message in " ".join(result.errors.split())
