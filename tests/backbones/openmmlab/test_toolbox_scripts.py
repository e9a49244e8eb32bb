"""The wheels' scripts, plain and through the launcher: what is checked first, and both routes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.backbones.openmmlab import toolbox_scripts as launching
from maskclip_bench.backbones.openmmlab.dense_cell import main as job_main
from maskclip_bench.backbones.openmmlab.trunk_sources import Built, TrunkSource
from maskclip_bench.data_files import shipped_root
from maskclip_bench.errors import ConfigError, DataError, MissingDependencyError, UnknownNameError

SEGMENTATION = shipped_root() / (
    "configs/mmseg/demo/vit-demo_frozen-upernet_1xb4-500_demo-scenes-144x144.py"
)
DETECTION = shipped_root() / (
    "configs/mmdet/demo/vit-demo_frozen-mask-rcnn_1xb4-600_demo-instances-144x144.py"
)
TOY_CLASSES = {
    "mmseg": [
        "model.decode_head.num_classes=3",
        "model.decode_head.loss_decode.class_weight=[1.0,1.0,1.0]",
    ],
    "mmdet": ["model.roi_head.bbox_head.num_classes=2", "model.roi_head.mask_head.num_classes=2"],
}


PYRAMIDS = {
    "mmseg": """
    neck=dict(
        _delete_=True,
        type="DeconvolutionPyramid",
        in_channels=96,
        scale_factors=(2, 1),
        norm_cfg=dict(type="BN"),
    ),
    decode_head=dict(in_channels=[96, 96], in_index=[0, 1]),
""",
    "mmdet": """
    neck=dict(
        _delete_=True,
        type="SimpleFeaturePyramid",
        in_channels=96,
        out_channels=96,
        scale_factors=(1, 0.5),
        num_outs=2,
    ),
    rpn_head=dict(anchor_generator=dict(strides=[8, 16])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[8, 16]),
        mask_roi_extractor=dict(featmap_strides=[8, 16]),
    ),
""",
}


def finetuning(toolbox: str, config: Path, folder: Path) -> Path:
    """A demo config that trains through the backbone and a pyramid."""
    backbone = "backbone=dict(frozen=False, window_size=None, tile_positions=False),"
    file = folder / "finetuning.py"
    file.write_text(f'_base_ = "{config}"\nmodel = dict(\n    {backbone}{PYRAMIDS[toolbox]})\n')
    return file


def options(toolbox: str, iterations: int) -> list[str]:
    """`--cfg-options` that make a demo config train a few iterations on the toy data."""
    number = 3 if toolbox == "mmseg" else 2
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    return [
        "--cfg-options",
        f"train_cfg.max_iters={iterations}",
        f"train_cfg.val_interval={iterations}",
        "default_hooks.checkpoint.interval=5",
        *TOY_CLASSES[toolbox],
        *(f"{loader}.dataset.num_classes={number}" for loader in loaders),
    ]


def test_script__lies_in_the_wheel() -> None:
    pytest.importorskip("mmseg")
    path = launching.script("mmseg", "train")
    assert path.is_file() and path.parts[-3:] == (".mim", "tools", "train.py")


def test_script__unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"No toolbox 'mmsegg'\. Did you mean 'mmseg'"):
        launching.script("mmsegg", "train")
    pytest.importorskip("mmseg")
    with pytest.raises(ConfigError, match=r"no script 'trial'\. Did you mean 'train'.* It has"):
        launching.script("mmseg", "trial")
    with pytest.raises(ConfigError, match=r"several scripts 'browse_dataset': analysis_tools/bro"):
        launching.script("mmseg", "browse_dataset")


def test_script__by_its_name_or_with_its_folder() -> None:
    pytest.importorskip("mmdet")
    for toolbox in launching.TOOLBOXES:
        tools = launching.tools_of(toolbox)
        assert len(tools) > 30
        for name, path in tools.items():
            assert launching.script(toolbox, name) == path and path.is_file()
    assert launching.script("mmdet", "get_flops").parent.name == "analysis_tools"


def test_script__toolbox_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"mmdet is not installed: .*pip install"):
        launching.script("mmdet", "train")

    class Source:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Source)
    with pytest.raises(MissingDependencyError, match=r"carries no scripts"):
        launching.script("mmdet", "train")


def test_launch__no_config() -> None:
    pytest.importorskip("mmseg")
    with pytest.raises(ConfigError, match=r"No config nowhere\.py\. `maskclip-bench path"):
        launching.launch("mmseg", "train", "nowhere.py")


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    return lambda root: monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(root))


def test_check__segmentation(scenes: Path, data: Callable[[Path], None]) -> None:
    data(scenes.parents[1])
    lines = launching.check_config_data(str(SEGMENTATION), actions=["train", "test"])
    assert sorted(lines) == [
        "test_dataloader: 4 images",
        "train_dataloader: 8 images",
        "val_dataloader: 4 images",
    ]
    next((scenes / "annotations" / "validation").iterdir()).unlink()
    with pytest.raises(DataError, match=r"1 of 4 images in .* have no mask"):
        launching.check_config_data(str(SEGMENTATION), actions=["test"])


def test_check__real_ade20k_layout(
    tmp_path: Path, scenes: Path, data: Callable[[Path], None]
) -> None:
    config = next((shipped_root() / "configs/mmseg").glob("maskclip_vit-b-16_upernet*.py"))
    data(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"No folder .*ADEChallengeData2016/images/"):
        launching.launch("mmseg", "train", str(config))
    (tmp_path / "elsewhere").mkdir()
    scenes.rename(tmp_path / "elsewhere" / "ADEChallengeData2016")
    assert launching.check_config_data(str(config), actions=["test"]) == [
        "test_dataloader: 4 images"
    ]


def test_check__detection(instances: Path, data: Callable[[Path], None]) -> None:
    data(instances.parents[1])
    assert launching.check_config_data(str(DETECTION), actions=["test"]) == [
        "test_dataloader: 4 images"
    ]
    (instances / "val" / "000.jpg").unlink()
    with pytest.raises(DataError, match=r"names 1 of 4 images .*, e\.g\. 000\.jpg"):
        launching.check_config_data(str(DETECTION), actions=["test"])


def test_check__follows_cfg_options(instances: Path, data: Callable[[Path], None]) -> None:
    data(instances.parents[1])
    arguments = ["--cfg-options", "test_dataloader.dataset.ann_file=annotations/absent.json"]
    with pytest.raises(DataError, match=r"No annotation file .*absent\.json"):
        launching.check_config_data(str(DETECTION), actions=["test"], arguments=arguments)


def test_check__every_image_or_the_suffix_of_the_config(
    scenes: Path, data: Callable[[Path], None]
) -> None:
    data(scenes.parents[1])
    for path in (scenes / "images" / "validation").iterdir():
        path.rename(path.with_suffix(".jpeg"))
    arguments = ["--cfg-options", "test_dataloader.dataset.img_suffix=.jpg"]
    with pytest.raises(DataError, match=r"holds no \*\.jpg"):
        launching.check_config_data(str(SEGMENTATION), actions=["test"], arguments=arguments)
    assert launching.check_config_data(str(SEGMENTATION), actions=["test"]) == [
        "test_dataloader: 4 images"
    ]


def test_check__mask_value_that_is_no_class(scenes: Path, data: Callable[[Path], None]) -> None:
    data(scenes.parents[1])
    mask = next((scenes / "annotations" / "validation").iterdir())
    values = np.array(Image.open(mask))
    values[0, 0] = 255
    Image.fromarray(values).save(mask)
    arguments = ["--cfg-options", "test_dataloader.dataset.num_classes=3"]
    launching.check_config_data(str(SEGMENTATION), actions=["test"], arguments=arguments)
    values[0, 0] = 40
    Image.fromarray(values).save(mask)
    with pytest.raises(DataError, match=r"no mask of 3 classes: it has the value 40"):
        launching.check_config_data(str(SEGMENTATION), actions=["test"], arguments=arguments)


@pytest.mark.parametrize(
    "dataset",
    [
        {"type": "CityscapesDataset", "data_prefix": {"img_path": "a", "seg_map_path": "b"}},
        {"type": "LVISV1Dataset", "ann_file": "lvis_v1_val.json", "data_prefix": {"img": ""}},
        {"type": "CrowdHumanDataset", "ann_file": "val.odgt", "data_prefix": {"img": "Images"}},
        {"type": "OpenImagesDataset", "ann_file": "val.csv", "data_prefix": {"img": "val/"}},
        {"type": "mmseg.PascalVOCDataset", "ann_file": "val.txt", "data_prefix": {}},
    ],
)
def test_check__other_types_check_themselves(dataset: dict[str, object]) -> None:
    assert launching._check_dataset({"data_root": "nowhere", **dataset}) is None


def test_check__coco_files_without_objects(instances: Path, data: Callable[[Path], None]) -> None:
    """As test-dev: images and categories alone."""
    data(instances.parents[1])
    file = instances / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for objects in ([], None):
        content["annotations"] = objects
        if objects is None:
            del content["annotations"]
        file.write_text(json.dumps(content))
        assert launching.check_config_data(str(DETECTION), actions=["test"]) == [
            "test_dataloader: 4 images"
        ]


def test_check__on_the_first_rank_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Callable[[Path], None]
) -> None:
    pytest.importorskip("mmseg")
    data(tmp_path)
    started: list[str] = []
    monkeypatch.setattr("runpy.run_path", lambda path, run_name: started.append(path))
    monkeypatch.setenv("RANK", "1")
    launching.launch("mmseg", "train", str(SEGMENTATION))
    assert len(started) == 1
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DataError, match="No folder"):
        launching.launch("mmseg", "train", str(SEGMENTATION))


@pytest.mark.parametrize("words", [["--launcher", "pytorch"], ["--launcher=pytorch"]])
def test_launch__both_spellings_of_the_launcher(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    scenes: Path,
    data: Callable[[Path], None],
) -> None:
    pytest.importorskip("mmseg")
    data(scenes.parents[1])
    prepared: list[list[str]] = []
    monkeypatch.setattr("runpy.run_path", lambda path, run_name: None)
    monkeypatch.setattr(
        launching, "_prepare_cpu_group", lambda given: prepared.append(given) or given
    )
    launching.launch("mmseg", "train", str(SEGMENTATION))
    launching.launch("mmseg", "train", str(SEGMENTATION), ["--work-dir", "x", *words])
    assert prepared == [["--work-dir", "x", *words]]


def test_main__exit_codes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Callable[[Path], None]
) -> None:
    assert launching.main(["mmseg"]) == 2
    data(tmp_path)
    assert launching.main(["mmseg", "train", str(SEGMENTATION)]) == 3
    assert "error: No folder" in capsys.readouterr().err
    assert job_main([str(tmp_path / "absent.json")]) == 3
    assert job_main([]) == 2


def test_cpu_group__options_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    wrapper = [
        "model_wrapper_cfg.type=MMDistributedDataParallel",
        "model_wrapper_cfg.device_ids=None",
    ]
    given = ["--launcher", "pytorch"]
    assert launching._prepare_cpu_group(given) == [*given, "--cfg-options", *wrapper]
    given = ["--launcher", "pytorch", "--cfg-options", "a=1"]
    assert launching._prepare_cpu_group(given) == [*given[:3], *wrapper, "a=1"]


def run(
    arguments: list[str], data_root: Path, *, launcher: list[str] | None = None, code: int = 0
) -> str:
    environment = {
        **os.environ,
        "MASKCLIP_BENCH_DATA": str(data_root),
        "PYTHONPATH": str(shipped_root()),
        "CUDA_VISIBLE_DEVICES": "-1",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *(launcher or []), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def last_scores(work_dir: Path, key: str) -> float:
    """The value of `key` in the newest log that has it."""
    values = []
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        values += [row[key] for row in rows if key in row]
    for file in sorted(work_dir.glob("*/*.json")):
        content = json.loads(file.read_text().splitlines()[0])
        values += [content[key]] if key in content else []
    return float(values[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toolbox", "config", "key"),
    [("mmseg", SEGMENTATION, "mIoU"), ("mmdet", DETECTION, "coco/bbox_mAP")],
)
def test_routes__train_resume_test(
    toolbox: str, config: Path, key: str, tmp_path: Path, scenes: Path, instances: Path
) -> None:
    """Plain script, then our launcher on from its checkpoint, then a test of that."""
    pytest.importorskip(toolbox)
    config = finetuning(toolbox, config, tmp_path)
    root, work_dir = scenes.parents[1], tmp_path / "work"
    plain = str(launching.script(toolbox, "train"))
    where = ["--work-dir", str(work_dir)]
    output = run([plain, str(config), *where, *options(toolbox, 5)], root)
    assert "mmcv operators: torchvision stand-in" in output
    launcher = ["-m", "maskclip_bench", "mm", toolbox]
    output = run([*launcher, "train", str(config), *where, "--resume", *options(toolbox, 8)], root)
    assert re.search(r"resumed (from )?epoch: \d+, iter: 5", output)
    trained = last_scores(work_dir, key)
    checkpoint = str(work_dir / "iter_8.pth")
    test = ["test", str(config), checkpoint, *where, *options(toolbox, 8)]
    run([*launcher, *test], root)
    assert last_scores(work_dir, key) == pytest.approx(trained, abs=1e-3)
    if toolbox == "mmseg":  # the plain test script of mmdet imports mmcv.ops before the config
        run([str(launching.script(toolbox, "test")), *test[1:]], root)
        assert last_scores(work_dir, key) == pytest.approx(trained, abs=1e-3)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


ATTACKS = {
    "tested checkpoint": ["test", "CONFIG", "EVIL"],
    "load_from": ["train", "CONFIG", "--cfg-options", "load_from=EVIL"],
    "resumed checkpoint": ["train", "CONFIG", "--resume"],
    "init_cfg of a head": [
        "train",
        "CONFIG",
        "--cfg-options",
        "model.decode_head.init_cfg.type=Pretrained",
        "model.decode_head.init_cfg.checkpoint=EVIL",
    ],
    "init_cfg of the backbone": [
        "train",
        "CONFIG",
        "--cfg-options",
        "model.backbone.init_cfg.type=Pretrained",
        "model.backbone.init_cfg.checkpoint=EVIL",
    ],
    "backbone's file": ["train", "CONFIG", "--cfg-options", "model.backbone.checkpoint=EVIL"],
    "backbone's arguments": [
        "train",
        "CONFIG",
        "--cfg-options",
        "model.backbone.model_args.checkpoint_path=EVIL",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks__code_in_a_file_is_not_run(attack: str, tmp_path: Path, scenes: Path) -> None:
    """Through the whole command, whatever names the file; the error says what to do."""
    pytest.importorskip("mmseg")
    import torch

    work_dir, mark, evil = tmp_path / "work", tmp_path / "code-was-run", tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "meta": Evil(mark)}, evil)
    work_dir.mkdir()
    (work_dir / "last_checkpoint").write_text(str(evil))
    given = [
        word.replace("CONFIG", str(SEGMENTATION)).replace("EVIL", str(evil))
        for word in ATTACKS[attack]
    ]
    if "--cfg-options" in given:
        given += options("mmseg", 2)[1:]
    else:
        given += options("mmseg", 2)
    output = run(
        ["-m", "maskclip_bench", "mm", "mmseg", *given, "--work-dir", str(work_dir)],
        scenes.parents[1],
        code=2 if "backbone" in attack and "file" not in attack else 3,
    )
    assert not mark.exists()
    assert "Traceback" not in output
    assert re.search(
        "--allow-pickle|come from its source|give them as checkpoint=|evil.pth", output
    )


@pytest.mark.slow
def test_allow_pickle__is_recorded(tmp_path: Path, scenes: Path) -> None:
    pytest.importorskip("mmseg")
    import torch

    work_dir, mark, own = tmp_path / "work", tmp_path / "code-was-run", tmp_path / "own.pth"
    torch.save({"state_dict": {}, "meta": {"made_by": Evil(mark)}}, own)
    words = ["mmseg", "test", str(SEGMENTATION), str(own), "--allow-pickle", str(own)]
    given = [*words, "--work-dir", str(work_dir), *options("mmseg", 2)]
    run(["-m", "maskclip_bench", "mm", *given], scenes.parents[1])
    assert mark.is_dir()
    report = json.loads((work_dir / "run_report.json").read_text())
    assert [entry["file"] for entry in report["unpickled_files"]] == [str(own)]


@pytest.mark.slow
@pytest.mark.parametrize(("toolbox", "config"), [("mmseg", SEGMENTATION), ("mmdet", DETECTION)])
def test_ddp__two_gloo_processes(
    toolbox: str, config: Path, tmp_path: Path, scenes: Path, instances: Path
) -> None:
    pytest.importorskip(toolbox)
    config = finetuning(toolbox, config, tmp_path)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    output = run(
        [
            "maskclip_bench.backbones.openmmlab.toolbox_scripts",
            toolbox,
            "train",
            str(config),
            "--work-dir",
            str(tmp_path / "work"),
            "--launcher",
            "pytorch",
            *options(toolbox, 3),
        ],
        scenes.parents[1],
        launcher=torchrun,
    )
    report = json.loads((tmp_path / "work" / "run_report.json").read_text())
    assert report["world_size"] == 2
    assert "Saving checkpoint at 3 iterations" in output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the toolboxes say while they are imported
def test_configs__all_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shipped config makes a model, on fresh weights of its architecture."""
    pytest.importorskip("mmdet")
    import mmdet.models
    import mmseg.models
    import timm
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    from maskclip_bench.backbones.openmmlab import trunk_backbone

    assert mmdet.models and mmseg.models

    original = trunk_backbone.build_trunk

    def fresh(source: TrunkSource) -> Built:
        if source.timm is not None and not source.pretrained:
            return original(source)
        size = "large" if "vit-l" in str(source.backbone) + name else "base"
        model = "convnext_base" if "convnext" in str(source.open_clip) else ""
        trunk = timm.create_model(model or f"vit_{size}_patch16_224")
        return Built(trunk, None, True)

    monkeypatch.setattr(trunk_backbone, "build_trunk", fresh)
    configs = sorted(shipped_root().glob("configs/mm*/*.py"))
    assert len(configs) > 30
    for path in configs:
        name = path.name
        config = Config.fromfile(str(path))
        init_default_scope(config.default_scope)
        import torch

        with torch.device("meta"):
            model = MODELS.build(config.model)
        assert model.backbone is not None
