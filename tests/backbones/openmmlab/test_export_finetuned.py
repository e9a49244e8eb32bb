"""A finetuned model leaves its work folder: config and weights, and nothing of the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from maskclip_bench.backbones.openmmlab.export_finetuned import export_finetuned
from maskclip_bench.data_files import shipped_root
from maskclip_bench.errors import CheckpointError, ConfigError, NonFiniteError

CONFIG = "configs/mmseg/demo/vit-demo_frozen-upernet_1xb4-500_demo-scenes-144x144.py"


def write_run(folder: Path, tiny: Any, **changes: Any) -> dict[str, Any]:
    """A work folder as training leaves it, of a segmentor on a model in `pretrained/`."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    vision = {"timm_model_name": "vit_demo_patch8_48", "timm_pool": "", "timm_proj": "linear"}
    tiny.open_clip_folder(folder / "pretrained", {**vision, "image_size": 48})
    config = Config.fromfile(str(shipped_root() / CONFIG))
    config.model.backbone.pop("timm")
    config.model.backbone.checkpoint = str(folder / "pretrained")
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    work_dir = folder / "work"
    work_dir.mkdir()
    config.load_from = "/somewhere/iter_1.pth"
    config.dump(str(work_dir / "config_train.py"))
    classes = tuple(f"class {index}" for index in range(29))
    content = {
        "state_dict": model.state_dict(),
        "optimizer": {"state": {0: torch.zeros(1000, 1000)}},
        "meta": {"dataset_meta": {"classes": classes}, "epoch": 3},
        **changes,
    }
    torch.save(content, work_dir / "iter_5.pth")
    return {"model": model, "work_dir": work_dir, "classes": classes}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("from_folder", [True, False])
def test_export__serves_without_the_pretrained_weights(
    from_folder: bool, tmp_path: Path, tiny: Any
) -> None:
    pytest.importorskip("mmseg")
    from mmseg.apis import init_model

    run = write_run(tmp_path, tiny)
    source = run["work_dir"] if from_folder else run["work_dir"] / "iter_5.pth"
    folder = export_finetuned(source, tmp_path / "exported")
    size = (folder / "model.pth").stat().st_size
    assert size < (run["work_dir"] / "iter_5.pth").stat().st_size - 3_000_000
    for part in ("pretrained", "work"):
        shutil.rmtree(tmp_path / part)
    served = init_model(str(folder / "config.py"), str(folder / "model.pth"), device="cpu")
    pictures = tiny.images((48, 96))
    run["model"].eval()
    with torch.no_grad():
        expected, found = (model(pictures, mode="tensor") for model in (run["model"], served))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert served.dataset_meta["classes"] == run["classes"]
    assert "/somewhere" not in (folder / "config.py").read_text()
    assert "class 28" in (folder / "classes.json").read_text()


@pytest.mark.filterwarnings("ignore")
def test_export__refuses(tmp_path: Path, tiny: Any) -> None:
    pytest.importorskip("mmseg")
    run = write_run(tmp_path, tiny)
    file = run["work_dir"] / "iter_5.pth"
    with pytest.raises(ConfigError, match=r"work is not empty\. Name another folder"):
        export_finetuned(file, run["work_dir"])
    (run["work_dir"] / "config_train.py").rename(run["work_dir"] / "a.py")
    (run["work_dir"] / "b.py").write_text("")
    with pytest.raises(ConfigError, match=r"should be one config \(\*\.py\); found a\.py, b\.py"):
        export_finetuned(file, tmp_path / "out")
    config = run["work_dir"] / "a.py"
    state = run["model"].state_dict()
    state["decode_head.conv_seg.bias"][0] = torch.nan
    torch.save({"state_dict": state}, file)
    with pytest.raises(NonFiniteError, match=r"1 tensors are not finite, e\.g\. decode_head"):
        export_finetuned(file, tmp_path / "out", config=config)
    torch.save({"weights": 1}, file)
    with pytest.raises(CheckpointError, match="holds no state_dict, so it is no checkpoint"):
        export_finetuned(file, tmp_path / "out", config=config)
